"""Bundles enter; models in a Triton repository leave: configuration, labels, warm-up, a client, and a new version of each.

What a bundle has decides what is served:

- ``model.app.onnx``: one model that takes the picture, run by Triton's ONNX Runtime on the CPU.
- Engines of full TensorRT, which `vitexport engine` built on the GPU: the plans, one for each compute capability, behind a
  model that does the preprocessing, both in an ensemble. Several bundles of one model give plans of several GPUs.
- Neither: the ONNX, run by Triton's ONNX Runtime; for a GPU with its TensorRT provider, which builds an engine as it loads.

A version's folder is added, under the next number; nothing that is there is overwritten. Serving itself is Triton's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import string
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitexport.artifacts import INPUT_NAME, ONNX_APP, BatchRange, OutputSpec
from vitexport.bundle import Bundle
from vitexport.errors import InputError, UsageError, missing
from vitexport.preprocess import PreprocessSpec, normalize
from vitexport.runtime import engines
from vitexport.triton.config import Message, Tensor, Word, map_of, text_of

TEMPLATES = Path(__file__).parent / "templates"
PIXELS = "pixels"
PICTURE = Tensor(name=INPUT_NAME, data_type="TYPE_UINT8", dims=(-1, -1, 3))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WARM_UP = "golden"
# Types of what the model that takes the picture ranks.
_RANKED = {"probabilities": "TYPE_FP32", "top_indices": "TYPE_INT64"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """What ``vitexport triton`` was asked for.

    Attributes:
        name: Of the model in the repository; None takes the model's own.
        instances: Copies that run at once, on the CPU or on each GPU.
        queue_delay_us: How long a request may wait for others to share a batch, in microseconds.
    """

    name: str | None = None
    instances: int = 1
    queue_delay_us: int = 500


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """One model of the repository, ready to be written.

    Attributes:
        name: Of its folder.
        config: Of ``config.pbtxt``, without the name.
        files: Content of each file of the version: another file, or an ONNX model still to be saved.
        labels: For ``labels.txt``, or None.
        golden: What it is warmed up with, or None.
    """

    name: str
    config: Message
    files: Mapping[str, Path | PreprocessSpec]
    labels: Sequence[str] | None = None
    golden: np.ndarray[Any, Any] | None = None


def write_repository(bundles: Sequence[Bundle], repository: Path, request: ServeRequest) -> tuple[str, ...]:
    """Add `bundles`, all of one model, to the repository; returns the version folders that were added.

    Raises:
        UsageError: The bundles are of different models, or `request` is not usable.
        InputError: The repository cannot be written, or holds another model of that name.
        MissingDependencyError: An ensemble's preprocessing has to be made, and onnx-ir is not installed.
    """
    name = _name(bundles, request)
    models = _models(bundles, name, request)
    for model in models:
        _check_place(repository / model.name, model)
    added = []
    # What a full disk or an interruption cuts short is taken back whole: an ensemble is of no use without one of its models.
    with contextlib.ExitStack() as undo, _told(repository):
        if not repository.exists():
            undo.callback(shutil.rmtree, repository, ignore_errors=True)
        repository.mkdir(parents=True, exist_ok=True)
        for model in models:
            folder = repository / model.name
            if not folder.exists():
                undo.callback(shutil.rmtree, folder, ignore_errors=True)
            version = _write(folder, model)
            undo.callback(shutil.rmtree, version, ignore_errors=True)
            added.append(version.relative_to(repository).as_posix())
        for template in sorted(TEMPLATES.iterdir()):
            path = repository / template.name.removesuffix(".template").replace("client", f"client-{name}")
            words = _words(bundles[0], name)
            if template.is_file() and not path.exists():
                undo.callback(path.unlink, missing_ok=True)
                path.write_text(_Template(template.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
        undo.pop_all()
    return tuple(added)


@contextlib.contextmanager
def _told(repository: Path) -> Iterator[None]:
    """Say in a sentence what the system refuses."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Repository {repository} cannot be written: {error.strerror or error}. It is as it was."
        ) from error


class _Template(string.Template):
    """As in `vitexport.apps`."""

    delimiter = "@@"


def _words(bundle: Bundle, name: str) -> dict[str, str]:
    outputs, batch = bundle.manifest.outputs, bundle.manifest.batch
    ranked = next((output.name for output in outputs if output.names_classes), None)
    # perf_analyzer counts the batch only where Triton does not.
    shape = ",".join(map(str, _dims(batch, (480, 640, 3)))).replace("-1", str(batch.minimum))
    return {"name": name, "output": ranked or outputs[0].name, "ranked": str(ranked is not None), "shape": shape}


def _name(bundles: Sequence[Bundle], request: ServeRequest) -> str:
    if request.instances < 1 or request.queue_delay_us < 0:
        raise UsageError("--instances must be 1 or more, and --queue-delay 0 or more microseconds.")
    facts = {(bundle.manifest.model["weights_sha256"], bundle.manifest.outputs, bundle.manifest.batch) for bundle in bundles}
    if len(facts) != 1:
        raise UsageError(
            "These bundles are not of one model with one batch range; add each model with a call of its own. Several "
            "bundles in one call are the same model, built for several GPUs."
        )
    name = request.name
    if name is None:
        own = str(bundles[0].manifest.model["name"]).rstrip("/").rpartition("/")[2].rpartition(":")[2]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", own).strip("-.") or "model"
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {name!r} is not a model name; use letters, digits, '.', '_' and '-'.")
    return name


def _models(bundles: Sequence[Bundle], name: str, request: ServeRequest) -> list[_Model]:
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


def _batching(batch: BatchRange, request: ServeRequest) -> Message:
    """Triton puts requests together only where the model takes any number from 1 on."""
    if not batch.is_dynamic or batch.minimum > 1:
        return {"max_batch_size": 0}
    dynamic = {"preferred_batch_size": [batch.optimum], "max_queue_delay_microseconds": request.queue_delay_us}
    return {"max_batch_size": batch.maximum, "dynamic_batching": dynamic}


def _dims(batch: BatchRange, dims: tuple[int, ...]) -> tuple[int, ...]:
    if batch.is_dynamic and batch.minimum == 1:
        return dims
    return (batch.minimum if not batch.is_dynamic else -1, *dims)


def _instances(request: ServeRequest, *, gpu: bool) -> Message:
    return {"count": request.instances, "kind": Word("KIND_GPU" if gpu else "KIND_CPU")}


def _outputs(outputs: Sequence[OutputSpec], batch: BatchRange, *, labelled: bool) -> list[Tensor]:
    return [
        Tensor(
            name=output.name,
            data_type="TYPE_FP32",
            dims=_dims(batch, output.shape),
            labels=labelled and output.names_classes,
        )
        for output in outputs
    ]


def _picture_model(bundle: Bundle, name: str, app: Path, request: ServeRequest) -> _Model:
    manifest = bundle.manifest
    named = manifest.labels is not None
    outputs = _outputs(manifest.outputs, manifest.batch, labelled=named)
    known = {output.name for output in outputs}
    for extra, shape in bundle.report().measurements.get("embedded", {}).get("outputs", {}).items():
        if extra in _RANKED and extra not in known:
            dims = _dims(manifest.batch, tuple(shape))
            outputs.append(
                Tensor(name=extra, data_type=_RANKED[extra], dims=dims, labels=named and extra == "probabilities")
            )
    picture = dataclasses.replace(PICTURE, dims=_dims(manifest.batch, PICTURE.dims))
    golden = _golden(bundle)
    return _Model(
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
        labels=manifest.labels,
        golden=golden,
    )


def _golden(bundle: Bundle) -> np.ndarray[Any, Any]:
    """One golden picture, as it is before normalization: uint8 [height, width, 3], or as many as a static model takes."""
    pixels, _ = bundle.golden()
    batch = bundle.manifest.batch
    if batch.is_dynamic and batch.minimum == 1:
        return np.ascontiguousarray(pixels[0])
    return np.resize(pixels, (batch.minimum, *pixels.shape[1:]))


def _warm_up(batch: BatchRange, golden: np.ndarray[Any, Any], data_type: str) -> Message:
    """Twice, so that lazy initialization and what follows it are over before the first request."""
    size = batch.optimum if batch.is_dynamic and batch.minimum == 1 else 1
    value = {"data_type": Word(data_type), "dims": list(golden.shape), "input_data_file": _WARM_UP}
    return {"name": _WARM_UP, "batch_size": size, "inputs": map_of({INPUT_NAME: value}), "count": 2}


def _ensemble(bundle: Bundle, name: str, plans: Mapping[str, Path], request: ServeRequest) -> list[_Model]:
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
) -> list[_Model]:
    """The preprocessing, the model of normalized pixels, and the ensemble that joins them."""
    manifest = bundle.manifest
    batch, spec, gpu = manifest.batch, manifest.preprocess, manifest.target.kind != "cpu"
    pixels = Tensor(name=PIXELS, data_type="TYPE_FP32", dims=_dims(batch, (3, spec.height, spec.width)))
    picture = dataclasses.replace(PICTURE, dims=_dims(batch, PICTURE.dims))
    outputs = _outputs(manifest.outputs, batch, labelled=manifest.labels is not None)
    batching = _batching(batch, request)
    # Triton's own copy of a size: pictures differ, so requests are joined only behind the preprocessing.
    unbatched = {"max_batch_size": batching["max_batch_size"]}
    golden = _golden(bundle)
    normalized = normalize(golden, spec)
    first = _Model(
        name=f"{name}-preprocess",
        config={
            "backend": "onnxruntime",
            **unbatched,
            "input": [picture.message()],
            "output": [pixels.message()],
            "instance_group": [_instances(request, gpu=False)],
            "model_warmup": [_warm_up(batch, golden, "TYPE_UINT8")],
        },
        files={"model.onnx": spec},
        golden=golden,
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
        parameters = map_of({"precision_mode": manifest.precision.upper()})
        config["optimization"] = {
            "execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt", "parameters": parameters}]}
        }
    second = _Model(name=f"{name}-engine", config=config, files=inner, golden=normalized)
    whole = _Model(
        name=name,
        config={
            "platform": "ensemble",
            **unbatched,
            "input": [picture.message()],
            "output": [output.message() for output in outputs],
            "ensemble_scheduling": {"step": _steps(first, second, outputs)},
        },
        files={},
        labels=manifest.labels,
    )
    return [first, second, whole]


def _steps(first: _Model, second: _Model, outputs: Sequence[Tensor]) -> list[Message]:
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


def _config_text(model: _Model) -> str:
    return f"name: {text_of({'name': model.name})[6:]}\n{text_of(model.config)}\n"


def _interface(text: str) -> list[str]:
    """The lines of a configuration that say what goes in and out; the rest is the operator's to tune."""
    kept = re.findall(r"^(?:max_batch_size: .*|(?:input|output) \{\n(?:  .*\n)+\})$", text, re.MULTILINE)
    return sorted(kept)


def _check_place(folder: Path, model: _Model) -> None:
    """Refuse a folder that holds another model, before anything is written."""
    config = folder / "config.pbtxt"
    try:
        if not folder.exists():
            return
        kept = config.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} exists and has no config.pbtxt that can be read ({error}); choose another --name."
        ) from None
    if _interface(kept) != _interface(_config_text(model)):
        raise InputError(
            f"{config} describes a model with other inputs, outputs or batches than this bundle's, and a new version must "
            "have the same; choose another --name."
        )
    labels = folder / "labels.txt"
    if model.labels is not None and (not labels.exists() or labels.read_text(encoding="utf-8") != _labels(model.labels)):
        raise InputError(
            f"{labels} holds other names than this bundle's, and one file serves all versions; choose another --name."
        )


def _labels(labels: Sequence[str]) -> str:
    return "".join(f"{' '.join(label.split())}\n" for label in labels)


def _write(folder: Path, model: _Model) -> Path:
    """The version's folder, complete before it gets its number; what is there already stays as it is."""
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        partial = stack.enter_context(_partial(folder))
        for name, content in model.files.items():
            if isinstance(content, PreprocessSpec):
                _write_preprocess(content, partial / name)
            else:
                shutil.copyfile(content, partial / name)
                if (data := content.with_name(f"{content.name}.data")).exists():
                    # The graph names it.
                    shutil.copyfile(data, partial / data.name)
        for name, text in (("config.pbtxt", _config_text(model)), ("labels.txt", _labels(model.labels or ()))):
            if text and not (folder / name).exists():
                (folder / name).write_text(text, encoding="utf-8")
        if model.golden is not None and not (folder / "warmup" / _WARM_UP).exists():
            (folder / "warmup").mkdir(exist_ok=True)
            (folder / "warmup" / _WARM_UP).write_bytes(model.golden.tobytes())
        if not model.files:
            (partial / ".keep").touch()  # a bucket has no empty folders, and Triton wants the version of an ensemble too
        versions = [int(path.name) for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]
        final = folder / str(max(versions, default=0) + 1)
        partial.rename(final)
    return final


@contextlib.contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """A hidden folder, which Triton does not take for a version; it goes unless it was renamed."""
    partial = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=folder))
    partial.chmod(0o755)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_preprocess(spec: PreprocessSpec, path: Path) -> None:
    try:
        from vitexport.rewrites import apply, save
        from vitexport.rewrites.embed_preprocess import EmbedPreprocess, preprocess_model
    except ModuleNotFoundError as error:
        raise missing(str(error.name).partition(".")[0], "build", "Writing the preprocessing of an ensemble") from None
    model = preprocess_model(spec, output=PIXELS, opset=17)
    apply(model, EmbedPreprocess(spec))
    save(model, path)
