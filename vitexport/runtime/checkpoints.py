"""Write and read samples of what the modules of a float graph compute for a few golden inputs.

A bundle for an engine keeps them, so that where the engine departs from PyTorch the first module that does can be found on
the device, without PyTorch and without the float graph being run there. Of each tensor a fixed number of elements is kept,
spread evenly: a fault in a kernel is rarely in a few elements only, and the whole tensors would be larger than the model.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.bundle import Bundle
from vitexport.errors import BundleError
from vitexport.runtime.inspection import block_of

# Roles in the manifest, and the files.
VALUES, INDEX = "checkpoints", "checkpoints_index"
FILES = {VALUES: "golden/checkpoints.npy", INDEX: "golden/checkpoints.json"}
IMAGES = 2
MOST_SAMPLES, FEWEST_SAMPLES = 2048, 64
MOST_BYTES = 2 << 20
# The fractional parts of its multiples are spread evenly, and never in step with the rows of a tensor.
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The output of one timm module.

    Attributes:
        tensor: Its name, in the float graph and in the one that ships.
        module: The module.
        built_db: SQNR of the shipped graph's samples against the float graph's, on the CPU that built the bundle.
    """

    tensor: str
    module: str
    built_db: float

    @property
    def block(self) -> str:
        """The transformer block that the module is, or is in; empty outside of all."""
        return block_of(self.module)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoints:
    """What a bundle keeps of its float graph.

    Attributes:
        items: In the order of the graph.
        values: float32 [images, items, samples], for the first golden inputs.
    """

    items: tuple[Checkpoint, ...]
    values: NDArray[np.float32]


def samples_of(count: int) -> int:
    """How many elements of each of `count` tensors are kept for one image."""
    return max(min(MOST_BYTES // (IMAGES * max(count, 1) * 4), MOST_SAMPLES), FEWEST_SAMPLES)


def sample(values: NDArray[Any], count: int) -> NDArray[np.float32]:
    """float32 [n, count] of `values` [n, …]: always the same elements of tensors of one shape."""
    flat = values.reshape(len(values), -1)
    index = (np.arange(1, count + 1) * _GOLDEN % 1.0 * flat.shape[1]).astype(np.intp)
    return flat[:, index].astype(np.float32)


def write_checkpoints(folder: Path, checkpoints: Checkpoints) -> dict[str, str]:
    """Write both files into the bundle in `folder`; role and path of each leave."""
    (folder / FILES[VALUES]).parent.mkdir(exist_ok=True)
    np.save(folder / FILES[VALUES], checkpoints.values)
    data = {"checkpoints": [dataclasses.asdict(item) for item in checkpoints.items]}
    (folder / FILES[INDEX]).write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return dict(FILES)


def read_checkpoints(bundle: Bundle) -> Checkpoints | None:
    """What `bundle` keeps of its float graph; None if it keeps nothing.

    Raises:
        BundleError: It is not what `write_checkpoints` wrote.
    """
    values, index = bundle.artifact(VALUES), bundle.artifact(INDEX)
    if values is None or index is None:
        return None
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["checkpoints"]
        items = tuple(
            Checkpoint(tensor=str(entry["tensor"]), module=str(entry["module"]), built_db=float(entry["built_db"]))
            for entry in entries
        )
        array: NDArray[np.float32] = np.array(np.load(values, allow_pickle=False, mmap_mode="r"))
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"The checkpoints of bundle {bundle.root} cannot be read: {error}") from None
    if array.dtype != np.float32 or array.ndim != 3 or not array.size or array.shape[1] != len(items):
        raise BundleError(
            f"{values} is {array.dtype} {array.shape}; {index.name} says float32 [images, {len(items)}, samples]."
        )
    return Checkpoints(items=items, values=array)


def lasts(items: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Of each block its last checkpoint, and all that are outside of blocks, in order."""
    last = {item.block: item for item in items if item.block}
    return [item for item in items if not item.block or last[item.block] is item]
