"""Input: bundles; output: the models of a Triton repository that serve them, each with its configuration and its files.

What a bundle has decides what is served:

- ``model.app.onnx``: one model that takes the picture, run by Triton's ONNX Runtime on the CPU.
- Engines of full TensorRT, which `vitexport engine` built on the GPU: the plans, one for each compute capability, behind a
  model that does the preprocessing, both in an ensemble. Several bundles of one model give plans of several GPUs.
- Neither: the ONNX, run by Triton's ONNX Runtime; for a GPU with its TensorRT provider, which builds an engine as it loads.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitexport.artifacts import BINARY_NAMES, INPUT_NAME, ONNX_APP, BatchRange, OutputSpec, is_binary
from vitexport.bundle import Bundle
from vitexport.errors import InputError, UsageError
from vitexport.preprocess import PreprocessSpec, normalize
from vitexport.runtime import engines
from vitexport.triton.config import Message, Tensor, Word, map_of

PIXELS = "pixels"
WARM_UP = "golden"
DEFAULT_INSTANCES = 1
DEFAULT_QUEUE_DELAY_US = 500
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# A file's name has 255 bytes at most, and longer names are made of this one.
_LONGEST_NAME = 200
# Types of what the model that takes the picture ranks.
_RANKED = {"probabilities": "TYPE_FP32", "top_indices": "TYPE_INT64"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """What ``vitexport triton`` was asked for.

    Attributes:
        name: Of the model in the repository; None takes the model's own.
        instances: Copies that run at once, on the CPU or on each GPU; None for one, or for what a model there has.
        queue_delay_us: How long a request may wait for others to share a batch, in microseconds; None likewise.
    """

    name: str | None = None
    instances: int | None = None
    queue_delay_us: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """One model of the repository, ready to be written.

    Attributes:
        name: Of its folder.
        config: Of ``config.pbtxt``, without the name.
        files: Content of each file of the version: another file, or a preprocessing that is still to be made a graph.
        labels: For ``labels.txt``, or None.
        golden: What it is warmed up with, or None.
    """

    name: str
    config: Message
    files: Mapping[str, Path | PreprocessSpec]
    labels: Sequence[str] | None = None
    golden: np.ndarray[Any, Any] | None = None


def name_of(bundles: Sequence[Bundle], request: ServeRequest) -> str:
    """The name under which `bundles` are served together.

    Raises:
        UsageError: They are of different models, or `request` is not usable.
    """
    if (1 if request.instances is None else request.instances) < 1 or (request.queue_delay_us or 0) < 0:
        raise UsageError("`instances` must be 1 or more, and `queue_delay` 0 or more microseconds.")
    facts = {(bundle.manifest.model["weights_sha256"], bundle.manifest.outputs, bundle.manifest.batch) for bundle in bundles}
    if len(facts) != 1:
        raise UsageError(
            "These bundles are not of one model with one batch range; add each model with a call of its own. Several "
            "bundles in one call are the same model, built for several GPUs."
        )
    name = request.name
    if name is None:
        own = str(bundles[0].manifest.model["name"]).rstrip("/").rpartition("/")[2].rpartition(":")[2]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", own).strip("-.")[:_LONGEST_NAME] or "model"
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise UsageError(
            f"`name` {name[:40]!r} is not a model name; use at most {_LONGEST_NAME} letters, digits, '.', '_' and '-'."
        )
    return name


def models_of(bundles: Sequence[Bundle], name: str, request: ServeRequest) -> list[TritonModel]:
    """The models that serve `bundles` as `name`, which is the last one's.

    Raises:
        UsageError: What the bundles hold cannot be served together, or not as `request` says.
        InputError: There is nothing to serve.
    """
    batch = bundles[0].manifest.batch
    if request.queue_delay_us is not None and not joins(batch):
        raise UsageError(
            f"`queue_delay` is for requests that share a batch, and this model takes batch {batch}; build it with a range "
            "from 1, such as `batch=1:8:32`, or leave the option out."
        )
    plans = _plans(bundles)
    if plans:
        return _ensemble(bundles[0], name, plans, request)
    if len(bundles) > 1:
        raise UsageError(
            "Several bundles are one model for several GPUs, and these hold no engine of TensorRT; run vitexport engine "
            "there."
        )
    bundle = bundles[0]
    app = bundle.artifact(ONNX_APP)
    if app is not None:
        return [_picture_model(bundle, name, app, request)]
    onnx = bundle.artifact("onnx")
    if onnx is None:
        raise InputError(f"Bundle {bundle.root} has no ONNX model.")
    return _ensemble_around(bundle, name, request, inner={"model.onnx": onnx}, backend={"backend": "onnxruntime"}, cc={})


def _plans(bundles: Sequence[Bundle]) -> dict[str, Path]:
    """The engine of full TensorRT for each compute capability; TensorRT-RTX's are none that Triton loads."""
    plans: dict[str, Path] = {}
    for bundle in bundles:
        for built in engines.every(bundle):
            if built.fingerprint.library == "tensorrt":
                if built.fingerprint.compute_capability in plans:
                    raise UsageError(
                        f"Two engines are for compute capability {built.fingerprint.compute_capability}, and Triton takes "
                        f"one; name one bundle, with one engine in {engines.FOLDER}, for each GPU."
                    )
                plans[built.fingerprint.compute_capability] = built.path
    return plans


def joins(batch: BatchRange) -> bool:
    """Triton puts requests together only where the model takes any number from 1 on."""
    return batch.is_dynamic and batch.minimum == 1


def _batching(batch: BatchRange, request: ServeRequest) -> Message:
    if not joins(batch):
        return {"max_batch_size": 0}
    delay = DEFAULT_QUEUE_DELAY_US if request.queue_delay_us is None else request.queue_delay_us
    dynamic = {"preferred_batch_size": [batch.optimum], "max_queue_delay_microseconds": delay}
    return {"max_batch_size": batch.maximum, "dynamic_batching": dynamic}


def _dims(batch: BatchRange, dims: tuple[int, ...]) -> tuple[int, ...]:
    if joins(batch):
        return dims
    return (batch.minimum if not batch.is_dynamic else -1, *dims)


def _picture(batch: BatchRange, spec: PreprocessSpec) -> Tensor:
    """What is preprocessed: of any size, with the channels that `spec` takes."""
    return Tensor(name=INPUT_NAME, data_type="TYPE_UINT8", dims=_dims(batch, (-1, -1, spec.source_channels)))


def _instances(request: ServeRequest, *, gpu: bool) -> Message:
    return {"count": request.instances or DEFAULT_INSTANCES, "kind": Word("KIND_GPU" if gpu else "KIND_CPU")}


def _outputs(outputs: Sequence[OutputSpec], batch: BatchRange, *, labelled: bool) -> list[Tensor]:
    return [
        Tensor(
            name=output.name,
            data_type="TYPE_FP32",
            dims=_dims(batch, output.shape),
            labels=labelled and (output.names_classes or output.kind == "label_logits"),
        )
        for output in outputs
    ]


def _labels(bundle: Bundle) -> tuple[str, ...] | None:
    """What Triton's classification extension names: classes and labels, and not values."""
    manifest = bundle.manifest
    if manifest.labels is None and is_binary(manifest.outputs):
        return BINARY_NAMES
    return manifest.labels if manifest.task in ("classification", "multi-label") else None


def _picture_model(bundle: Bundle, name: str, app: Path, request: ServeRequest) -> TritonModel:
    manifest = bundle.manifest
    labels = _labels(bundle)
    named = labels is not None
    outputs = _outputs(manifest.outputs, manifest.batch, labelled=named)
    known = {output.name for output in outputs}
    for extra, shape in bundle.report().measurements.get("embedded", {}).get("outputs", {}).items():
        if extra in _RANKED and extra not in known:
            dims = _dims(manifest.batch, tuple(shape))
            outputs.append(
                Tensor(name=extra, data_type=_RANKED[extra], dims=dims, labels=named and extra == "probabilities")
            )
    picture = _picture(manifest.batch, manifest.preprocess)
    golden = _as_picture(_golden(bundle), manifest.preprocess)
    return TritonModel(
        name=name,
        config={
            "backend": "onnxruntime",
            **_batching(manifest.batch, request),
            "input": [picture.message()],
            "output": [output.message() for output in outputs],
            "instance_group": [_instances(request, gpu=False)],
            "model_warmup": [_warm_up(manifest.batch, golden, "TYPE_UINT8")],
        },
        files={"model.onnx": app},
        labels=labels,
        golden=golden,
    )


def _golden(bundle: Bundle) -> np.ndarray[Any, Any]:
    """One golden input before normalization: uint8 [height, width, channels], or as many as a static model takes."""
    pixels, _ = bundle.golden()
    batch = bundle.manifest.batch
    if joins(batch):
        return np.ascontiguousarray(pixels[0])
    return np.resize(pixels, (batch.minimum, *pixels.shape[1:]))


def _as_picture(golden: np.ndarray[Any, Any], spec: PreprocessSpec) -> np.ndarray[Any, Any]:
    """What the preprocessing takes for `golden`: of a grey model the same grey in red, green and blue."""
    return np.repeat(golden, 3, axis=-1) if spec.channels == 1 else golden


def _warm_up(batch: BatchRange, golden: np.ndarray[Any, Any], data_type: str) -> Message:
    """Twice, so that lazy initialization and what follows it are over before the first request."""
    size = batch.optimum if joins(batch) else 1
    value = {"data_type": Word(data_type), "dims": list(golden.shape), "input_data_file": WARM_UP}
    return {"name": WARM_UP, "batch_size": size, "inputs": map_of({INPUT_NAME: value}), "count": 2}


def _ensemble(bundle: Bundle, name: str, plans: Mapping[str, Path], request: ServeRequest) -> list[TritonModel]:
    """Plans of full TensorRT behind the preprocessing."""
    files = {f"model.sm{capability}.plan": path for capability, path in sorted(plans.items())}
    cc = {capability: f"model.sm{capability}.plan" for capability in sorted(plans)}
    return _ensemble_around(bundle, name, request, inner=files, backend={"platform": "tensorrt_plan"}, cc=cc)


def _ensemble_around(  # noqa: PLR0913 - an inner model and how it runs
    bundle: Bundle,
    name: str,
    request: ServeRequest,
    *,
    inner: Mapping[str, Path],
    backend: Message,
    cc: Mapping[str, str],
) -> list[TritonModel]:
    """The preprocessing, the model of normalized pixels, and the ensemble that joins them."""
    manifest = bundle.manifest
    batch, spec, gpu = manifest.batch, manifest.preprocess, not manifest.target.loads_graph
    pixels = Tensor(name=PIXELS, data_type="TYPE_FP32", dims=_dims(batch, (spec.channels, spec.height, spec.width)))
    picture = _picture(batch, spec)
    outputs = _outputs(manifest.outputs, batch, labelled=_labels(bundle) is not None)
    batching = _batching(batch, request)
    # Triton's own copy of a size: pictures differ, so requests are joined only behind the preprocessing.
    unbatched = {"max_batch_size": batching["max_batch_size"]}
    golden = _golden(bundle)
    shown, normalized = _as_picture(golden, spec), normalize(golden, spec)
    first = TritonModel(
        name=f"{name}-preprocess",
        config={
            "backend": "onnxruntime",
            **unbatched,
            "input": [picture.message()],
            "output": [pixels.message()],
            "instance_group": [_instances(request, gpu=False)],
            "model_warmup": [_warm_up(batch, shown, "TYPE_UINT8")],
        },
        files={"model.onnx": spec},
        golden=shown,
    )
    config: dict[str, Any] = {
        **backend,
        **batching,
        "input": [dataclasses.replace(pixels, name=INPUT_NAME).message()],
        "output": [dataclasses.replace(output, labels=False).message() for output in outputs],
        "instance_group": [_instances(request, gpu=gpu)],
        "model_warmup": [_warm_up(batch, normalized, "TYPE_FP32")],
    }
    if cc:
        config |= {"default_model_filename": next(iter(inner)), "cc_model_filenames": map_of(cc)}
    elif gpu:
        parameters = map_of({"precision_mode": manifest.precision.upper(), **_profile(batch, spec)})
        config["optimization"] = {
            "execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt", "parameters": parameters}]}
        }
    second = TritonModel(name=f"{name}-engine", config=config, files=inner, golden=normalized)
    whole = TritonModel(
        name=name,
        config={
            "platform": "ensemble",
            **unbatched,
            "input": [picture.message()],
            "output": [output.message() for output in outputs],
            "ensemble_scheduling": {"step": _steps(first, second, outputs)},
        },
        files={},
        labels=_labels(bundle),
    )
    return [first, second, whole]


def _profile(batch: BatchRange, spec: PreprocessSpec) -> dict[str, str]:
    """One engine for all batches; without it the provider builds another whenever a batch leaves what it has seen."""
    if not batch.is_dynamic:
        return {}
    sizes = {"min": batch.minimum, "opt": batch.optimum, "max": batch.maximum}
    return {
        f"trt_profile_{which}_shapes": f"{INPUT_NAME}:{size}x{spec.channels}x{spec.height}x{spec.width}"
        for which, size in sizes.items()
    }


def _steps(first: TritonModel, second: TritonModel, outputs: Sequence[Tensor]) -> list[Message]:
    """`first` from the picture to pixels, then `second` from those to `outputs`."""
    return [
        {
            "model_name": first.name,
            "model_version": -1,
            "input_map": map_of({INPUT_NAME: INPUT_NAME}),
            "output_map": map_of({PIXELS: PIXELS}),
        },
        {
            "model_name": second.name,
            "model_version": -1,
            "input_map": map_of({INPUT_NAME: PIXELS}),
            "output_map": map_of({output.name: output.name for output in outputs}),
        },
    ]
