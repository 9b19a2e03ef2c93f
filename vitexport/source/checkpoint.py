"""A checkpoint's path enters; its tensors, loaded with weights_only and held against the model, are in the model."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import nn

from vitexport.errors import InputError
from vitexport.quiet import quiet

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt")


def load_checkpoint(model: nn.Module, path: Path, *, resized: bool, rename: Callable[[str], str]) -> None:
    """Put the weights in `path` into `model`.

    Args:
        model: Of the shape that the weights are for.
        path: A safetensors file, or a pickle that holds tensors only.
        resized: Whether the model was made with another image size than the weights may be of; position embeddings are then
            resampled, once, as timm does it.
        rename: From the name of a parameter in the file to the model's.

    Raises:
        InputError: No such file, not readable, more than tensors, or of another model.
    """
    if not path.is_file():
        raise InputError(f"Checkpoint {path} does not exist or is not a file.")
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(f"Checkpoint {path} ends in {path.suffix!r}; expected one of {', '.join(CHECKPOINT_SUFFIXES)}.")
    try:
        with quiet("timm", "huggingface_hub"):
            state = load_state_dict(str(path), use_ema=True, device="cpu", weights_only=True)
    except (
        *(SafetensorError, RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError),
        pickle.UnpicklingError,
    ) as error:
        # timm wraps what PyTorch's restricted unpickler raises.
        if not isinstance(error.__cause__ or error, pickle.UnpicklingError):
            raise InputError(
                f"Checkpoint {path} is damaged, or is no file of weights that timm reads "
                f"({type(error).__name__}: {first_sentence(error)})."
            ) from None
        raise InputError(
            f"Checkpoint {path} holds more than tensors, or is damaged, and loading it could run code; it was not loaded. "
            "Save the model's state_dict (torch.save(model.state_dict(), …) or safetensors.torch.save_file) and give that. "
            f"PyTorch says: {first_sentence(error.__cause__ or error)}"
        ) from None
    tensors = {rename(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    own = model.state_dict()
    if resized and any(name in own and own[name].shape != value.shape for name, value in tensors.items()):
        tensors = _resampled(model, tensors)
    _fit(model, tensors, path)


def _resampled(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights trained at another image size, with the position embeddings that timm's own loader resamples."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    with quiet("timm"):
        result: dict[str, torch.Tensor] = convert(tensors, model)
    return result


def first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0][:300]


def _fit(model: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load `tensors` if names and shapes are the model's own; say where they are not."""
    own = model.state_dict()
    problems = [
        *(f"{name} is missing" for name in own if name not in tensors),
        *(f"{name} is not in the model" for name in tensors if name not in own),
        *(
            f"{name} is {list(tensors[name].shape)} in the file and {list(own[name].shape)} in the model"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ),
        *(
            f"{name} is {_kind(tensors[name])} in the file and {_kind(own[name])} in the model"
            for name in own
            if name in tensors and not _same_kind(tensors[name], own[name])
        ),
    ]
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        raise InputError(
            f"The weights in {path} do not fit the model: {'; '.join(problems[:4])}{more}. "
            "Check the model name, --num-classes, --img-size and --model-kwarg against those it was trained with."
        )
    model.load_state_dict(dict(tensors))


def _same_kind(given: torch.Tensor, own: torch.Tensor) -> bool:
    """Float weights may have any float type; everything else would be converted with a loss that nobody asked for."""
    plain = given.layout == torch.strided and not given.is_quantized and given.device.type == "cpu"
    return plain and given.is_floating_point() == own.is_floating_point() and not given.is_complex()


def _kind(tensor: torch.Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
    device = "" if tensor.device.type == "cpu" else f" on {tensor.device.type}"
    return f"{tensor.dtype}{layout}{device}".replace("torch.", "")
