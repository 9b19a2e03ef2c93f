"""Input: an engine of TensorRT-RTX; output: an execution context whose kernels need not be compiled again.

TensorRT-RTX compiles its kernels for the GPU at hand when a context is made and when it first meets a shape. What it
compiled can be kept, and a later start is then quick. Here the kernels of a shape are compiled when it is first met. By
itself the library would run kernels that do for any shape until they are ready: a CUDA graph that is recorded meanwhile
would hold those for ever, and so would a kept cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any


class RtxCache:
    """The kernels of one engine, in a file that its content names.

    Args:
        api: The library.
        engine: A deserialized engine of TensorRT-RTX.
        folder: Of its own for this machine and this engine; made when there is something to keep. None to keep nothing.
    """

    def __init__(self, api: Any, engine: Any, folder: Path | None) -> None:
        self._engine, self._folder = engine, folder
        self._config = engine.create_runtime_config()
        self._config.dynamic_shapes_kernel_specialization_strategy = api.DynamicShapesKernelSpecializationStrategy.EAGER
        if folder is None:
            return
        self._cache = self._config.create_runtime_cache()
        self._before = self._read(folder)
        # A cache of another version or GPU is refused, and everything is compiled.
        if self._before and not self._cache.deserialize(self._before):
            self._before = b""
        self._config.set_runtime_cache(self._cache)

    def context(self) -> Any:
        """An execution context, or None where the library refuses."""
        return self._engine.create_execution_context(self._config)

    def keep(self) -> None:
        """Write what was compiled since, whole or not at all; a folder that cannot be written costs time, nothing else."""
        if self._folder is None:
            return
        serialized = self._cache.serialize()
        data = b"" if serialized is None else bytes(serialized)
        if not data or data == self._before or _is_behind_a_link(self._folder):
            return
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            older = _files(self._folder)
            descriptor, name = tempfile.mkstemp(prefix=".", dir=self._folder)
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(data)
                final = self._folder / f"{hashlib.sha256(data).hexdigest()}.cache"
                Path(name).replace(final)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
            for path in older:
                if path != final:
                    path.unlink(missing_ok=True)

    @staticmethod
    def _read(folder: Path) -> bytes:
        """What an earlier run kept; a file that is not what its name says is not used."""
        for path in _files(folder):
            with contextlib.suppress(OSError):
                data = path.read_bytes()
                if hashlib.sha256(data).hexdigest() == path.stem:
                    return data
        return b""


def _files(folder: Path) -> list[Path]:
    if _is_behind_a_link(folder) or not folder.is_dir():
        return []
    return sorted(path for path in folder.glob("*.cache") if path.is_file() and not path.is_symlink())


def _is_behind_a_link(folder: Path) -> bool:
    """Whether `folder`, its machine's, or the bundle's cache lies somewhere else: a bundle holds plain files only."""
    return any(path.is_symlink() for path in (folder, folder.parent, folder.parent.parent))
