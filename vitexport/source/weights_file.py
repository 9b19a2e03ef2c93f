"""Read any file or folder that holds the weights of a model, told by its content; nothing in it is run.

Input: a path. Output: a `WeightsFile`: every dictionary of tensors in it, by the key that leads there, and what else was
recorded as plain data (training arguments, epoch, a folder's ``config.json``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from vitexport.errors import InputError
from vitexport.quiet import quiet
from vitexport.source import open_clip_config

Tensors: TypeAlias = dict[str, torch.Tensor]
CONFIG = "config.json"
# What transformers, timm and open_clip call the weights of a folder, in the order in which they look for them.
FOLDER_FILES = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
SUFFIXES = (".safetensors", ".pth", ".pt", ".pth.tar", ".ckpt", ".bin")
DEEPEST = 4
# The length of a safetensors header is its first eight bytes; the format allows 100 MB.
LARGEST_HEADER = 100_000_000
SHOWN_KEYS = 8
_READ_ERRORS = (
    *(SafetensorError, RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        path: As the user gave it, a file or a folder.
        file: The file that was read.
        groups: Every dictionary of tensors, by the keys that lead to it (``state_dict``, ``model``); ``""`` where the file
            itself is one.
        extra: Everything else at the top, as plain data: ``args``, ``epoch``, ``hyper_parameters`` …
        config: ``config.json`` of the folder; empty without one.
        processor: ``preprocessor_config.json`` of the folder; empty without one.
    """

    path: Path
    file: Path
    groups: Mapping[str, Tensors]
    extra: Mapping[str, Any]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    processor: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def contents(self) -> str:
        """For messages: the keys of the file, with how many tensors each leads to."""
        parts = [f"{key or 'the file itself'} ({len(tensors)} tensors)" for key, tensors in self.groups.items()]
        parts += [str(key) for key in self.extra if key not in self.groups]
        more = f" and {len(parts) - SHOWN_KEYS} more" if len(parts) > SHOWN_KEYS else ""
        return ", ".join(parts[:SHOWN_KEYS]) + more


def read_weights(path: Path) -> WeightsFile:
    """Read the weights at `path`, whatever its suffix says.

    Args:
        path: A safetensors file, a file of ``torch.save`` (zip or the older format), the index of a sharded checkpoint, or a
            folder that holds one of these as transformers, timm or open_clip write it.

    Raises:
        InputError: It does not exist, is damaged, holds no tensors, or holds objects that only running code could load.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError(f"Checkpoint {path} does not exist or is not a file.")
    if path.name in ADAPTER_FILES:
        raise _adapter(path)
    config = _config(path.parent) if path.name in FOLDER_FILES else {}
    processor = _json(path.with_name("preprocessor_config.json")) if config else {}
    return _described(path, path, _tree(path), config, processor)


def read_config(folder: Path) -> WeightsFile:
    """What the ``config.json`` of `folder` says, without any weights.

    Raises:
        InputError: It cannot be read.
    """
    config, processor = _config(folder), _json(folder / "preprocessor_config.json")
    return WeightsFile(path=folder, file=folder / CONFIG, groups={}, extra={}, config=config, processor=processor)


def _folder(path: Path) -> WeightsFile:
    found = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
    if found is None and any((path / name).is_file() for name in ADAPTER_FILES):
        raise _adapter(path)
    if found is None:
        files = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
        if len(files) != 1:
            seen = f"it holds {', '.join(file.name for file in files[:4])}" if files else "it holds no file of weights"
            raise InputError(f"Checkpoint folder {path}: {seen}; give the one file, or a folder with model.safetensors.")
        found = files[0]
    config, processor = _config(path), _json(path / "preprocessor_config.json")
    return _described(path, found, _tree(found), config, processor)


def _adapter(path: Path) -> InputError:
    return InputError(
        f"Checkpoint {path} is a PEFT adapter: it holds only what is added to a base model. Merge it first "
        "(model = peft_model.merge_and_unload()) and save model.state_dict()."
    )


def _described(path: Path, file: Path, tree: Any, config: Mapping[str, Any], processor: Mapping[str, Any]) -> WeightsFile:
    groups = dict(_groups(tree))
    extra = {str(key): value for key, value in tree.items()} if isinstance(tree, Mapping) else {}
    extra = {key: value for key, value in extra.items() if not isinstance(value, torch.Tensor)}
    if not groups:
        seen = f"a dictionary of {', '.join(map(str, list(extra)[:SHOWN_KEYS]))}" if extra else f"a {type(tree).__name__}"
        raise InputError(
            f"Checkpoint {path} holds no tensors by name, but {seen}; expected a state_dict, alone or in a dictionary."
        )
    return WeightsFile(path=path, file=file, groups=groups, extra=extra, config=config, processor=processor)


def _groups(tree: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Tensors]]:
    """Every dictionary that maps names to tensors; the states of optimizers map numbers."""
    if not isinstance(tree, Mapping) or depth > DEEPEST:
        return
    tensors = {name: value for name, value in tree.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if tensors:
        yield key, tensors
    for name, value in tree.items():
        if isinstance(name, str) and not name.startswith("optim"):
            yield from _groups(value, f"{key}.{name}" if key else name, depth + 1)


def _tree(path: Path) -> Any:
    """What the file holds: a dictionary as a rule."""
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
    except OSError as error:
        raise InputError(f"Checkpoint {path} cannot be read: {error.strerror}.") from None
    if path.name.endswith(".index.json"):
        return _sharded(path)
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 1 < length <= LARGEST_HEADER:
        return _safetensors(path)
    return _torch(path, zipped=start[:4] == b"PK\x03\x04")


def _safetensors(path: Path) -> Tensors:
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - it is no mapping
    except _READ_ERRORS as error:
        raise _damaged(path, error) from None


def _sharded(path: Path) -> Tensors:
    """The tensors of all files that an index names, each beside it."""
    index = _json(path)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise InputError(f"Checkpoint index {path} has no weight_map; expected the index of a sharded checkpoint.")
    tensors: Tensors = {}
    for name in sorted(set(files.values())):
        shard = path.parent / name
        if PurePosixPath(name).name != name or not shard.is_file():
            raise InputError(f"Checkpoint index {path} names {name!r}, which does not lie in its folder.")
        tree = _tree(shard)
        if not isinstance(tree, Mapping):
            raise InputError(f"Checkpoint {shard} holds no tensors by name, but a {type(tree).__name__}.")
        tensors |= {key: value for key, value in tree.items() if isinstance(value, torch.Tensor)}
    if absent := sorted(files.keys() - tensors.keys()):
        raise InputError(f"Checkpoint index {path} names {absent[0]}, which is in none of its files.")
    return tensors


def _config(folder: Path) -> dict[str, Any]:
    """What describes the model: timm's and transformers' file, or else open_clip's."""
    return _json(folder / CONFIG) or _json(folder / open_clip_config.NAME)


def _json(path: Path) -> dict[str, Any]:
    """The JSON object at `path`; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {first_sentence(error)}.") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a JSON {type(data).__name__}; expected an object.")
    return data


# Values that training scripts put beside the weights and that cannot run code. What PyTorch's restricted unpickler would
# refuse them for is replaced by functions of our own, so that nothing but these few forms can come of it.


def _path(*parts: str) -> PurePosixPath:
    return PurePosixPath(*(str(part) for part in parts))


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """A NumPy number, as ``numpy.float64`` pickles itself."""
    kind = np.dtype(dtype)
    if kind.hasobject or not isinstance(data, (bytes, str)):
        raise pickle.UnpicklingError(f"Unsupported global: a NumPy scalar of {kind}")
    raw = data.encode("latin-1") if isinstance(data, str) else data
    return np.frombuffer(raw, kind, count=1)[0].item()


def _harmless() -> list[Any]:
    paths = [
        (_path, f"{room}.{name}") for room in ("pathlib", "pathlib._local") for name in pathlib.__all__ if "Path" in name
    ]
    scalars = [(_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = [getattr(np.dtypes, name) for name in ("Float64DType", "Float32DType", "Int64DType", "Int32DType", "BoolDType")]
    return [argparse.Namespace, np.dtype, *kinds, *paths, *scalars]


def _torch(path: Path, *, zipped: bool) -> Any:
    """What ``torch.save`` wrote, by PyTorch's restricted unpickler."""
    if zipped:
        _refuse_programs(path)
    try:
        with quiet(), torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        culprits = _culprits(path, error)
        if not culprits:
            raise _damaged(path, error) from None
        raise _unsafe(path, culprits) from None
    except _READ_ERRORS as error:
        raise _damaged(path, error) from None


def _refuse_programs(path: Path) -> None:
    """TorchScript and torch.export archives hold a program, not only its weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
    except _READ_ERRORS as error:
        raise _damaged(path, error) from None
    if any(name.name == "constants.pkl" for name in names) and any("code" in name.parts for name in names):
        raise InputError(
            f"Checkpoint {path} is a TorchScript program. Load it with torch.jit.load where you trust it, save its "
            "state_dict() with torch.save, and give that."
        )
    if any(name.name in {"archive_format", "serialized_exported_program.json"} for name in names):
        raise InputError(f"Checkpoint {path} is a program of torch.export; give the state_dict of the model it was made of.")


def _culprits(path: Path, error: BaseException) -> list[str]:
    """Classes that only running code could load."""
    try:
        with torch.serialization.safe_globals(_harmless()):
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - the older format, or a damaged file: what the unpickler said is all there is
        found = []
    if found:
        return sorted(found)
    named = re.search(r"(?:GLOBAL|[Uu]nsupported global:|class) ([\w.]+\.\w+)", str(error))
    return [named[1]] if named else []


def _unsafe(path: Path, culprits: list[str]) -> InputError:
    more = f" and {len(culprits) - 3} more" if len(culprits) > 3 else ""
    # torch.save(model) pickles the classes of its modules; a dictionary holds what a script put beside its weights.
    is_module = any(name.startswith(("torch.nn.modules.", "timm.", "torchvision.models.")) for name in culprits)
    cure = (
        "  torch.save(file.state_dict(), 'weights.pth')\nOr give the model itself: `model_from` takes FILE.py:FUNCTION, a "
        "function of yours that loads and returns it."
        if is_module
        else "  torch.save(file['state_dict'], 'weights.pth')  # or the key under which it holds the weights: list(file)"
    )
    return InputError(
        f"Checkpoint {path} holds {'a whole module' if is_module else 'more than tensors'} "
        f"({', '.join(culprits[:3])}{more}), and loading it could run code; it was not loaded. Save the model's state_dict "
        "and give that; where you trust the file, in Python:\n"
        f"  import torch; file = torch.load({str(path)!r}, map_location='cpu', weights_only=False)\n{cure}"
    )


def _damaged(path: Path, error: BaseException) -> InputError:
    return InputError(
        f"Checkpoint {path} is damaged, or not a weights file that PyTorch or safetensors can read "
        f"({type(error).__name__}: {first_sentence(error)})."
    )


def first_sentence(error: BaseException) -> str:
    """The first sentence of what a library said, on one line, at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0][:300]
