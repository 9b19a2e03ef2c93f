"""A `ModelRequest` enters; the live module with the outputs that were asked for, and its `ModelSource`, leave."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from vitexport.artifacts import ModelSource, Product, ZeroShot, num_classes
from vitexport.datasets import read_labels
from vitexport.errors import InputError, UsageError
from vitexport.preprocess import PreprocessSpec
from vitexport.quiet import quiet
from vitexport.source import timm_models, torchvision_models, zero_shot
from vitexport.source.checkpoint import first_sentence, load_checkpoint
from vitexport.source.class_files import read_class_embeddings
from vitexport.source.exportable import make_exportable
from vitexport.source.families import check_family
from vitexport.source.heads import Exposed, expose
from vitexport.source.open_clip_texts import find_text_model
from vitexport.source.products import count_products
from vitexport.source.request import ModelRequest, create_kwargs

# What rooms without PyTorch call the module that they hand on.
LiveModel: TypeAlias = Exposed


def load(request: ModelRequest, *, weights: bool = True) -> tuple[Exposed, ModelSource]:
    """Create the model, load its weights and read its data config.

    Args:
        request: What the user asked for.
        weights: Off for a plan: untrained weights stand in for pretrained ones, and nothing is downloaded (but the
            configuration of an ``hf-hub:`` model, without which its shape is not known).

    Returns:
        The module in eval mode, float32, on the CPU, in the form that exports to the operators which engines fuse; and its
        `ModelSource`.

    Raises:
        InputError: The name is unknown or not a ViT; the weights cannot be had, need more than weights_only, or do not
            fit; the model does not take the asked image size.
        UsageError: The asked outputs contradict the model or one another.
    """
    check_available(request)
    door = torchvision_models if torchvision_models.is_ours(request.name) else timm_models
    model = door.create(request, weights=weights)
    config = getattr(model, "pretrained_cfg", {})
    family = _family(model, config)
    check_family(request.name, family)
    if request.checkpoint is not None:
        load_checkpoint(model, request.checkpoint, resized="img_size" in create_kwargs(request), rename=door.timm_name)
    origin = _weights_name(request, config)
    _check_finite(model, origin)
    model.eval().requires_grad_(requires_grad=False)
    preprocess = _preprocess_spec(model, request)
    labels, synsets = door.class_names(model, request)
    digest = _state_sha256(model)
    exposed = expose(model, request)
    texts = None
    if request.zero_shot:
        zero_shot.check_tower(model, request, labels)
        texts, labels = zero_shot.add_classes(exposed, request, (preprocess.height, preprocess.width), weights=weights)
        synsets, digest = None, _with_texts(digest, texts)
    peak, products = _trial_run(exposed, preprocess, request.name)
    named = num_classes(exposed.specs) is not None
    return exposed, ModelSource(
        name=request.name,
        architecture=str(config.get("architecture") or type(model).__name__),
        family=family,
        kwargs=create_kwargs(request),
        weights=origin,
        weights_sha256=digest,
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        peak_activation_elements=peak,
        outputs=exposed.specs,
        timm_version=timm.__version__,
        torch_version=str(torch.__version__),
        preprocess=preprocess,
        labels=labels if named else None,
        synsets=synsets if named else None,
        products=products,
        zero_shot=texts,
    )


def _with_texts(digest: str, texts: ZeroShot | None) -> str:
    """The hash of the weights with that of the class embeddings; two classifiers of one tower are two models."""
    return digest if texts is None else hashlib.sha256(f"{digest} {texts.sha256}".encode()).hexdigest()


def _family(model: nn.Module, config: Mapping[str, Any]) -> str:
    """The module that registers the architecture: MobileViT's classes, for one, are those of a convolutional network."""
    architecture = str(config.get("architecture") or "")
    known = timm.is_model(architecture)
    module = timm.model_entrypoint(architecture).__module__ if known else type(model).__module__
    return module.rpartition(".")[2]


def check_available(request: ModelRequest) -> None:
    """Refuse what cannot be loaded, as far as a few seconds can tell; loads and downloads nothing.

    Raises:
        InputError: The name is unknown, or pretrained weights are asked for and cannot be had.
    """
    zero_shot.check_request(request)
    door = torchvision_models if torchvision_models.is_ours(request.name) else timm_models
    door.check_name(request)
    if request.checkpoint is None and request.pretrained:
        door.check_hub(request.name)
    if request.class_embeddings is not None:
        read_class_embeddings(request.class_embeddings)
    if request.classes is not None:
        read_labels(request.classes)
        find_text_model(request)


def _weights_name(request: ModelRequest, config: Mapping[str, Any]) -> str:
    if request.checkpoint is not None:
        return f"checkpoint:{request.checkpoint.name}"
    if request.pretrained and request.name.startswith("local-dir:"):
        return request.name
    if request.pretrained:
        return f"pretrained:{config.get('tag') or config.get('hf_hub_id') or request.name}"
    return f"random:seed={request.seed}"


def _check_finite(model: nn.Module, weights: str) -> None:
    bad = [name for name, value in model.named_parameters() if not bool(value.isfinite().all())]
    # A buffer may hold infinity with a purpose: a mask, or the bound of a clamp that does nothing.
    bad += [name for name, value in model.named_buffers() if bool(value.isnan().any())]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise InputError(f"The weights ({weights}) hold NaN or infinity, in {bad[0]}{more}.")


def _preprocess_spec(model: nn.Module, request: ModelRequest) -> PreprocessSpec:
    with quiet("timm", "huggingface_hub"):
        config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    channels = request.kwargs.get("in_chans", channels)
    if channels != 3:
        raise InputError(f"{request.name} takes {channels} input channels; vitexport exports models that take RGB images.")
    # A model that was made with another img_size still carries the pretrained size in its data config.
    made_for = create_kwargs(request).get("img_size") or getattr(getattr(model, "patch_embed", None), "img_size", None)
    if made_for is not None:
        height, width = (made_for, made_for) if isinstance(made_for, int) else (int(made_for[0]), int(made_for[1]))
    return PreprocessSpec(
        height=int(height),
        width=int(width),
        mean=_three("mean", request.mean or config["mean"]),
        std=_three("std", request.std or config["std"]),
        interpolation=request.interpolation or str(config["interpolation"]),
        crop_pct=float(config["crop_pct"] if request.crop_pct is None else request.crop_pct),
        crop_mode=config.get("crop_mode", "center"),
    )


def _three(name: str, values: Any) -> tuple[float, float, float]:
    numbers = [float(value) for value in values]
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise UsageError(f"{name} has {len(numbers)} values; give one, or three for red, green and blue.")
    return numbers[0], numbers[1], numbers[2]


def _trial_run(exposed: Exposed, spec: PreprocessSpec, name: str) -> tuple[int, tuple[Product, ...]]:
    """Run one image of noise: the model takes this size; what it returns becomes its outputs' description.

    The module is then brought into the form that exports, which has to compute the same.

    Returns:
        The largest working set of one module in elements; and the products that the form which exports computes.
    """
    _check_patches(exposed.model, spec, name)
    largest = 0

    def watch(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        tensors = [value for value in (*inputs, output) if isinstance(value, torch.Tensor)]
        largest = max(largest, sum(tensor.numel() for tensor in tensors))

    image = torch.randn(1, 3, spec.height, spec.width, generator=torch.Generator().manual_seed(0))
    hooks = [module.register_forward_hook(watch) for module in exposed.modules()]
    try:
        with torch.inference_mode():
            outputs = exposed(image)
    except (MemoryError, InputError):
        raise
    except Exception as error:
        # A module raises whatever its arithmetic meets: AssertionError, RuntimeError, IndexError …
        raise InputError(
            f"{name} does not take images of {spec.height} x {spec.width} pixels, or has no such output: "
            f"{first_sentence(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    exposed.specs = exposed.describe(outputs)
    if exposed.names_classes and exposed.specs[0].shape != (exposed.classes,):
        seen = [list(output.shape) for output in exposed.specs]
        raise InputError(f"{name} returns {seen} for one image; expected logits of shape [{exposed.classes}].")
    return largest, count_products(exposed, image, lambda: make_exportable(exposed, image, outputs), prefix="model.")


def _check_patches(model: nn.Module, spec: PreprocessSpec, name: str) -> None:
    embed = getattr(model, "patch_embed", None)
    patch, stride = getattr(embed, "patch_size", None), getattr(getattr(embed, "proj", None), "stride", None)
    if patch is not None:
        rows, columns = (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))
        if stride is not None and stride != (rows, columns):
            return  # patches that overlap, as PVT's do
        if spec.height % rows or spec.width % columns:
            # timm would drop the last rows and columns of every image without a word.
            raise InputError(
                f"{name} cuts images into patches of {rows} x {columns} pixels; {spec.height} x {spec.width} is not a "
                f"multiple. The nearest sizes are {spec.height // rows * rows} and {-(-spec.height // rows) * rows}."
            )


def _state_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
