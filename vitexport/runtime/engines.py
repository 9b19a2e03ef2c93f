"""A verified bundle enters; the engines that were built for this machine and kept in it leave, each under its fingerprint.

They are not files of the manifest, which stays as it was built: ``engines/FINGERPRINT`` holds one engine, a report and
``engine.json``, which is sealed and names the manifest that the engine was built from. A folder takes its name in one
rename, when it is complete; whatever begins with a dot was never finished, and nobody reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vitexport.artifacts import file_sha256
from vitexport.bundle import Bundle, content_sha256, read_sealed, verify_file, write_sealed
from vitexport.errors import BundleError, DeviceError, InputError
from vitexport.runtime.backends.cuda import Gpu
from vitexport.runtime.backends.tensorrt_api import TITLES

FOLDER = "engines"
FACTS = "engine.json"
ENGINE = "model.engine"
TIMING_CACHE = "timing.cache"
FORMAT_VERSION = 1
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Where an engine was built, and the only place where it is run.

    Attributes:
        library: ``tensorrt`` or ``tensorrt-rtx``.
        version: Of the library.
        compute_capability: Of the GPU.
        system: Operating system and processor, for example ``linux-aarch64``.
        driver: Newest CUDA version that the driver runs.
    """

    library: str
    version: str
    compute_capability: str
    system: str
    driver: str

    @classmethod
    def of(cls, library: str, version: str, gpu: Gpu) -> Fingerprint:
        """That of this machine."""
        system = f"{platform.system()}-{platform.machine()}".lower()
        return cls(
            library=library, version=version, compute_capability=gpu.compute_capability, system=system, driver=gpu.driver
        )

    @property
    def name(self) -> str:
        """Of the engine's folder."""
        return f"{self.library}-{self.version}-sm{self.compute_capability}-{self.system}-cuda{self.driver}"

    def __str__(self) -> str:
        return (
            f"{TITLES[self.library]} {self.version}, compute capability {self.compute_capability}, {self.system}, "
            f"CUDA driver {self.driver}"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuiltHere:
    """An engine in a bundle.

    Attributes:
        path: The serialized engine; its sha256 was held against ``engine.json``.
        fingerprint: Where it was built.
    """

    path: Path
    fingerprint: Fingerprint


def names(bundle: Bundle) -> list[str]:
    """The fingerprints, as folder names, of all engines in `bundle`; nothing of them is read."""
    folder = bundle.root / FOLDER
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def find(bundle: Bundle, here: Fingerprint) -> BuiltHere | None:
    """The engine that was built on a machine like this one from this very bundle, verified; None if there is none.

    Raises:
        BundleError: It was changed, or belongs to another bundle or another machine.
    """
    if here.name not in names(bundle):
        return None
    folder = f"{FOLDER}/{here.name}"
    try:
        files = _checked(bundle, read_sealed(bundle.root / folder / FACTS), here)
        for relative, sha256 in files.items():
            verify_file(bundle.root, f"{folder}/{relative}", sha256)
    except BundleError as error:
        raise BundleError(f"{error} Remove {bundle.root / folder}, or build it again with vitexport engine.") from None
    return BuiltHere(path=bundle.root / folder / ENGINE, fingerprint=here)


def _checked(bundle: Bundle, facts: Mapping[str, Any], here: Fingerprint) -> dict[str, str]:
    """The files that `facts` name, once all that it says of itself fits."""
    try:
        version, manifest = facts["format_version"], facts["manifest_sha256"]
        built = Fingerprint(
            **{field.name: str(facts["fingerprint"][field.name]) for field in dataclasses.fields(Fingerprint)}
        )
        files = {str(name): str(sha256) for name, sha256 in dict(facts["files"]).items()}
        described = str(built)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{FACTS} of {here.name} is not what vitexport writes ({error!r}).") from None
    if version != FORMAT_VERSION:
        raise BundleError(f"{FACTS} of {here.name} has format {version}; this vitexport reads {FORMAT_VERSION}.")
    if built != here:
        raise BundleError(f"The engine in {here.name} was built for {described}; this machine is {here}.")
    if manifest != content_sha256(bundle.manifest.to_json()):
        raise BundleError(f"The engine in {here.name} was built from another bundle than {bundle.root}.")
    if ENGINE not in files:
        raise BundleError(f"{FACTS} of {here.name} names no {ENGINE}.")
    return files


def refusal(bundle: Bundle, here: Fingerprint) -> DeviceError:
    """Why none of the bundle's engines is run here: both sides by name."""
    others = "; ".join(names(bundle))
    return DeviceError(
        f"Bundle {bundle.root} holds no engine for this machine ({here.name}: {here}), only {others}. "
        "Build one here: vitexport engine BUNDLE."
    )


@dataclasses.dataclass(slots=True, kw_only=True)
class Staging:
    """An engine in the making.

    Attributes:
        folder: Hidden, and empty at first.
        keep: Whether what it holds shall take its place in the bundle.
    """

    folder: Path
    keep: bool = False


@contextlib.contextmanager
def staging(bundle: Bundle, here: Fingerprint, options: Mapping[str, Any]) -> Iterator[Staging]:
    """A hidden folder in `bundle` that becomes the engine of `here` if the block asks to keep it, and goes if it does not.

    What the block puts there is hashed. A kill at any moment leaves the bundle valid; what it left hidden, the next build
    removes.

    Raises:
        InputError: Another build is at work in this bundle, or the disk is full or refuses.
    """
    root = bundle.root / FOLDER
    try:
        _check_place(root)
        with _locked(bundle.root):
            root.mkdir(exist_ok=True)
            try:
                _sweep(root)
                folder = Path(tempfile.mkdtemp(prefix=f".{here.name}.", dir=root))
                try:
                    folder.chmod(0o755)
                    staged = Staging(folder=folder)
                    yield staged
                    if staged.keep:
                        _seal(bundle, folder, here, options)
                        _exchange(folder, root / here.name)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                with contextlib.suppress(OSError):
                    root.rmdir()  # where it stays empty
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InputError(
            f"The engine cannot be written to {root}: {error.strerror}. The bundle is as it was; copy it to where there is "
            "room and it may be written to."
        ) from error


def _check_place(root: Path) -> None:
    if root.is_symlink() or (root.exists() and not root.is_dir()):
        raise InputError(f"{root} is not a plain folder; a bundle holds plain files only. Copy the bundle again.")
    parent = root if root.exists() else root.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"The engine cannot be written: {parent} is read-only for this user. Copy the bundle elsewhere.")


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One build at a time; the system takes the lock back from a process that is killed."""
    import fcntl  # not on Windows, where the rest of the runtime works

    # The folder itself is locked: a file for it would have to be left behind.
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(f"Another vitexport engine is at work in {root}; wait for it.") from None
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> None:
    """Remove what killed builds left."""
    for path in root.glob(".*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _seal(bundle: Bundle, folder: Path, here: Fingerprint, options: Mapping[str, Any]) -> None:
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    facts = {
        "format_version": FORMAT_VERSION,
        "fingerprint": dataclasses.asdict(here),
        "manifest_sha256": content_sha256(bundle.manifest.to_json()),
        "options": dict(options),
        "files": files,
    }
    write_sealed(folder / FACTS, facts)
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _exchange(folder: Path, final: Path) -> None:
    """Rename `folder` to `final`; an older engine goes once the new one is there, or comes back."""
    if not final.exists():
        folder.rename(final)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".old", dir=final.parent)) / "engine"
    final.rename(old)
    try:
        folder.rename(final)
    except BaseException:
        old.rename(final)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)
