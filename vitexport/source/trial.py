"""Input: a module; output: what running it once tells of it, in the form that exports."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from vitexport.artifacts import Product
from vitexport.errors import InputError
from vitexport.preprocess import PreprocessSpec
from vitexport.source.exportable import make_exportable
from vitexport.source.heads import Exposed
from vitexport.source.products import count_products
from vitexport.source.weights_file import first_sentence


def check_finite(model: nn.Module, weights: str) -> None:
    """Refuse weights that cannot have been trained.

    Raises:
        InputError: A parameter holds NaN or infinity, or a buffer NaN.
    """
    bad = [name for name, value in model.named_parameters() if not bool(value.isfinite().all())]
    # A buffer may hold infinity with a purpose: a mask, or the bound of a clamp that does nothing.
    bad += [name for name, value in model.named_buffers() if bool(value.isnan().any())]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise InputError(f"The weights ({weights}) hold NaN or infinity, in {bad[0]}{more}.")


def trial_run(exposed: Exposed, spec: PreprocessSpec, name: str) -> tuple[int, tuple[Product, ...]]:
    """Run one image of noise: the model takes this size; what it returns becomes its outputs' description.

    The module is then brought into the form that exports, which has to compute the same.

    Returns:
        The largest working set of one module in elements; and the products that the form which exports computes.

    Raises:
        InputError: The model does not take this size, has not the outputs that were asked for, or other logits than its
            classes.
    """
    _check_patches(exposed.model, spec, name)
    largest = 0

    def watch(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        tensors = [value for value in (*inputs, output) if isinstance(value, torch.Tensor)]
        largest = max(largest, sum(tensor.numel() for tensor in tensors))

    image = torch.randn(1, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(0))
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
            below = (spec.height // rows * rows, spec.width // columns * columns)
            above = (-(-spec.height // rows) * rows, -(-spec.width // columns) * columns)
            sizes = [_shown_size(*size) for size in (below, above) if all(size)]
            raise InputError(
                f"{name} cuts images into patches of {rows} x {columns} pixels; {spec.height} x {spec.width} is not a "
                f"multiple. The nearest size{' is' if len(sizes) == 1 else 's are'} {' and '.join(sizes)}."
            )


def _shown_size(height: int, width: int) -> str:
    """As ``--img-size`` takes it."""
    return str(height) if height == width else f"{height}x{width}"


def state_sha256(model: nn.Module) -> str:
    """Of the state dict: names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
