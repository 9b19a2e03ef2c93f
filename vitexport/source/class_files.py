"""Read a file of class embeddings: the matrix as it is stored, the names and the scale that are in it.

Nothing in a file is executed: NumPy reads without pickle, PyTorch with weights_only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from vitexport.errors import InputError
from vitexport.quiet import quiet

MATRIX_KEY = "class_embeddings"
NAMES_KEY = "names"
SUFFIXES = (".npy", ".npz", ".safetensors", ".pt", ".pth")
# 22,000 classes of 1,280 channels take 0.1 GB; a file that says more than this is damaged, or is something else.
MAX_BYTES = 1 << 31
# What the readers of NumPy, zipfile, safetensors and PyTorch raise on files that are not theirs.
DAMAGED = (
    *(ValueError, LookupError, TypeError, AttributeError, EOFError, OSError, OverflowError, RuntimeError, MemoryError),
    *(SyntaxError, tokenize.TokenError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, SafetensorError),
)
FORMS = f"{', '.join(SUFFIXES[:-1])} with a matrix of floats, [classes, channels] or [channels, classes]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassEmbeddings:
    """One embedding for each class.

    Attributes:
        values: float64 [classes, channels], or [channels, classes] as long as nobody settled which.
        names: Class names in the order of the embeddings, or None.
        logit_scale: Factor of the cosine (the exponential of what a checkpoint stores), or None.
        logit_bias: What is added to the logits, or None.
        origin: Where they came from, for messages and for the manifest.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    origin: str


def read_class_embeddings(path: Path) -> ClassEmbeddings:
    """The embeddings in `path`: one matrix, or the one that is called ``class_embeddings``.

    ``names``, ``logit_scale`` (the logarithm, as open_clip and transformers store it) and ``logit_bias`` are taken where the
    file has them; safetensors keeps the names as a JSON list in its metadata.

    Raises:
        InputError: Missing, of another form, damaged, or with numbers that cannot be embeddings.
    """
    if not path.is_file():
        raise InputError(f"Class embeddings {path} do not exist or are not a file; expected {FORMS}.")
    if path.suffix not in SUFFIXES:
        raise InputError(f"Class embeddings {path} end in {path.suffix!r}; expected {FORMS}.")
    try:
        entries = _READERS[path.suffix](path)
    except DAMAGED as error:
        reason = (" ".join(str(error).split()) or type(error).__name__).partition(". ")[0][:200]
        raise InputError(
            f"Class embeddings {path} are damaged, or hold more than numbers and were not loaded ({reason}). "
            f"Expected {FORMS}; "
            "save them with numpy.save(FILE, matrix) or safetensors.numpy.save_file."
        ) from None
    key = _matrix_key(entries, path)
    return ClassEmbeddings(
        values=_checked(entries[key], path),
        names=_names(entries.get(NAMES_KEY), path),
        logit_scale=_scale(_scalar(entries, "logit_scale", path), path),
        logit_bias=_scalar(entries, "logit_bias", path),
        origin=path.name,
    )


def _read_npy(path: Path) -> Mapping[str, Any]:
    # A map is refused where the header says more than the file holds, before any memory is taken.
    return {MATRIX_KEY: np.load(path, mmap_mode="r", allow_pickle=False)}


def _read_npz(path: Path) -> Mapping[str, Any]:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise InputError(f"Class embeddings {path} unpack to {size / 1e9:.1f} GB, more than {MAX_BYTES / 1e9:.1f} GB.")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    with safe_open(path, framework="pt") as file:
        entries: dict[str, Any] = {name: _as_numpy(file.get_tensor(name), path) for name in file.keys()}  # noqa: SIM118
        names = (file.metadata() or {}).get(NAMES_KEY)
    return entries if names is None else {**entries, NAMES_KEY: json.loads(names)}


def _read_torch(path: Path) -> Mapping[str, Any]:
    with quiet("torch"):
        data = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(data, torch.Tensor):
        return {MATRIX_KEY: _as_numpy(data, path)}
    if not isinstance(data, dict):
        raise InputError(f"Class embeddings {path} hold a {type(data).__name__}; expected a tensor, or a dict with one.")
    return {str(name): _as_numpy(value, path) if isinstance(value, torch.Tensor) else value for name, value in data.items()}


_READERS = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
}


def _as_numpy(tensor: torch.Tensor, path: Path) -> NDArray[Any]:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise InputError(
            f"Class embeddings {path} hold a tensor that is sparse, quantized or without data; save a dense one."
        )
    # NumPy has no bfloat16; float64 holds every number of it.
    wide = tensor.detach().to(torch.float64) if tensor.is_floating_point() else tensor.detach()
    result: NDArray[Any] = wide.resolve_conj().resolve_neg().numpy()
    return result


def _matrix_key(entries: Mapping[str, Any], path: Path) -> str:
    """Which entry holds the embeddings."""
    if MATRIX_KEY in entries:
        return MATRIX_KEY
    found = [name for name, value in entries.items() if isinstance(value, np.ndarray) and value.ndim == 2]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(sorted(map(str, entries))[:5]) or "nothing"
    raise InputError(
        f"Class embeddings {path} hold {len(found) or 'no'} {'matrices' if len(found) != 1 else 'matrix'} "
        f"({shown}); expected "
        f"one, or one named {MATRIX_KEY}."
    )


def _checked(values: Any, path: Path) -> NDArray[np.float64]:
    """`values` as a matrix of finite numbers.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(values, np.ndarray) or values.ndim != 2 or 0 in values.shape:
        seen = f"an array of shape {list(values.shape)}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        raise InputError(f"Class embeddings {path} are {seen}; expected a matrix of classes and channels.")
    if values.dtype.kind != "f":
        raise InputError(
            f"Class embeddings {path} are of type {values.dtype}; expected floats, as a text tower returns them."
        )
    if values.nbytes > MAX_BYTES:
        raise InputError(f"Class embeddings {path} are of shape {list(values.shape)}, more than {MAX_BYTES / 1e9:.1f} GB.")
    if not bool(np.isfinite(values).all()):
        raise InputError(f"Class embeddings {path} hold NaN or infinity; compute them again, in float32.")
    return values.astype(np.float64)


def _names(values: Any, path: Path) -> tuple[str, ...] | None:
    """Class names from an array or a list of strings."""
    if values is None:
        return None
    if isinstance(values, np.ndarray):
        values = values.tolist() if values.ndim == 1 else None
    if not isinstance(values, list) or not values or not all(isinstance(name, str) and name.strip() for name in values):
        raise InputError(f"{NAMES_KEY} in {path} are not class names; expected a list of strings, one for each class.")
    return tuple(name.strip() for name in values)


def _scalar(entries: Mapping[str, Any], key: str, path: Path) -> float | None:
    """The number `key`, or None where the file has none."""
    if key not in entries:
        return None
    with contextlib.suppress(TypeError, ValueError):
        value = np.asarray(entries[key])
        if value.size == 1 and value.dtype.kind in "fi" and bool(np.isfinite(value).all()):
            return float(value.reshape(()))
    raise InputError(f"{key} in {path} is not one finite number.")


def _scale(logarithm: float | None, path: Path) -> float | None:
    """The factor that a stored ``logit_scale`` stands for.

    Raises:
        InputError: It is no logarithm of a factor that any model has.
    """
    if logarithm is None:
        return None
    # CLIP clamps it to the logarithm of 100, and SigLIP reaches 118; e to the 7th is 1,097.
    if not -1 <= logarithm <= 7:
        raise InputError(
            f"logit_scale in {path} is {logarithm:g}; expected the logarithm, as open_clip's and transformers' "
            "checkpoints hold "
            "it (4.6052 for a factor of 100)."
        )
    return float(np.exp(logarithm))
