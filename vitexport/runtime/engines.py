"""Input: a verified bundle; output: the engines that were built for this machine and kept in it, each under its
fingerprint.

They are not files of the manifest, which stays as it was built: ``engines/FINGERPRINT`` holds one engine, a report and
``engine.json``, which is sealed and names the manifest that the engine was built from. A folder takes its name in one
rename, when it is complete; whatever begins with a dot was never finished, and nobody reads it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vitexport.artifacts import file_sha256
from vitexport.bundle import Bundle, content_sha256, inside, read_sealed, verify_file, write_sealed
from vitexport.errors import BundleError, DeviceError, InputError
from vitexport.runtime.backends.cuda import Gpu
from vitexport.runtime.backends.tensorrt_api import TITLES

FOLDER = "engines"
FACTS = "engine.json"
ENGINE = "model.engine"
TIMING_CACHE = "timing.cache"
FORMAT_VERSION = 1
AMPERE = (8, 0)
# Major versions that run a version-compatible engine of an older one.
NEXT_MAJOR = {8: (9, 10), 9: (10,), 10: (11,)}
# What an engine is called while another one takes its place in two steps.
_OLD, _ASIDE = ".old", "engine"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# EXDEV is what an overlay gives for a folder of its lower layer, such as a bundle in a container's image.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.EXDEV})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Where an engine was built, and the only place where it is run.

    Attributes:
        library: ``tensorrt`` or ``tensorrt-rtx``.
        version: Of the library.
        compute_capability: Of the GPU.
        gpu: Its name and multiprocessors, for example ``nvidia-l4-58``, where the engine is for that model: NVIDIA warns of
            errors on another one of the same compute capability. Empty for TensorRT-RTX, which compiles on the spot.
        system: Operating system and processor, for example ``linux-aarch64``.
        driver: Newest CUDA version that the driver runs.
    """

    library: str
    version: str
    compute_capability: str
    gpu: str
    system: str
    driver: str

    @classmethod
    def of(cls, library: str, version: str, gpu: Gpu) -> Fingerprint:
        """That of this machine."""
        system = f"{platform.system()}-{platform.machine()}".lower()
        model = re.sub(r"[^a-z0-9]+", "-", f"{gpu.name} {gpu.multiprocessors}".lower()).strip("-")
        return cls(
            library=library,
            version=version,
            compute_capability=gpu.compute_capability,
            gpu="" if library == "tensorrt-rtx" else model,
            system=system,
            driver=gpu.driver,
        )

    @property
    def name(self) -> str:
        """Of the engine's folder."""
        model = f"-{self.gpu}" if self.gpu else ""
        return f"{self.library}-{self.version}-sm{self.compute_capability}{model}-{self.system}-cuda{self.driver}"

    def serves(self, here: Fingerprint, options: Mapping[str, Any]) -> bool:
        """Whether an engine that was built on this machine, with these options of the builder, runs on `here` too.

        Version compatibility reaches forward, across one major version (8 to 10: 9 was for servers only), and never for
        TensorRT-RTX; hardware compatibility reaches every GPU from Ampere on (NVIDIA's TensorRT documentation, "Version
        Compatibility" and "Hardware Compatibility").
        """
        if self == here:
            return True
        forward, anywhere = options.get("version_compatible") is True, options.get("hardware_compatible") is True
        if (self.library, self.system) != (here.library, here.system) or self.library != "tensorrt":
            return False
        if not (forward or anywhere):
            return False
        built, runs = _numbers(self.version), _numbers(here.version)
        version_fits = built == runs or (forward and built <= runs and runs[0] in (built[0], *NEXT_MAJOR.get(built[0], ())))
        capability, other = _numbers(self.compute_capability), _numbers(here.compute_capability)
        gpu_fits = (capability, self.gpu) == (other, here.gpu) or (anywhere and min(capability, other) >= AMPERE)
        return version_fits and gpu_fits and _numbers(self.driver) <= _numbers(here.driver)

    def __str__(self) -> str:
        return (
            f"{TITLES[self.library]} {self.version}, compute capability {self.compute_capability}"
            f"{f' ({self.gpu})' if self.gpu else ''}, {self.system}, CUDA driver {self.driver}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """``10.3.0`` as (10, 3, 0), whatever else a vendor writes behind it."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuiltHere:
    """An engine in a bundle.

    Attributes:
        path: The serialized engine; its sha256 was checked against ``engine.json``.
        fingerprint: Where it was built.
        options: What the builder was asked for.
    """

    path: Path
    fingerprint: Fingerprint
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def names(bundle: Bundle) -> list[str]:
    """The fingerprints, as folder names, of all engines in `bundle`; nothing of them is read."""
    folder = bundle.root / FOLDER
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def every(bundle: Bundle) -> tuple[BuiltHere, ...]:
    """All engines of `bundle`, verified, whatever machine they were built on.

    Raises:
        BundleError: One was changed, or belongs to another bundle.
    """
    return tuple(_verified(bundle, name, None) for name in names(bundle))


def find(bundle: Bundle, here: Fingerprint) -> BuiltHere | None:
    """The engine of `bundle` for this machine, verified: one that was built on a machine like it, else one that serves it.

    Raises:
        BundleError: The one that was built on a machine like this one was changed, or belongs to another bundle or machine.
    """
    there = names(bundle)
    if here.name in there:
        try:
            return _verified(bundle, here.name, here)
        except BundleError as error:
            folder = bundle.root / FOLDER / here.name
            raise BundleError(f"{error} Remove {folder}, or build it again with vitexport engine.") from None
    for name in there:
        # What is damaged here was not made for this machine; to that one it will be told.
        with contextlib.suppress(BundleError):
            built = _verified(bundle, name, None)
            if built.fingerprint.serves(here, built.options):
                return built
    return None


def _verified(bundle: Bundle, name: str, here: Fingerprint | None) -> BuiltHere:
    """The engine in the folder `name`, once all that it says of itself fits; `here` is where it must have been built."""
    folder = f"{FOLDER}/{name}"
    facts = read_sealed(inside(bundle.root, f"{folder}/{FACTS}"))
    try:
        version, manifest = facts["format_version"], facts["manifest_sha256"]
        built = Fingerprint(
            **{field.name: str(facts["fingerprint"][field.name]) for field in dataclasses.fields(Fingerprint)}
        )
        files = {str(file): str(sha256) for file, sha256 in dict(facts["files"]).items()}
        options, described = dict(facts["options"]), str(built)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{FACTS} of {name} is not what vitexport writes ({error!r}).") from None
    if version != FORMAT_VERSION:
        raise BundleError(f"{FACTS} of {name} has format {version}; this vitexport reads {FORMAT_VERSION}.")
    if here is not None and built != here:
        raise BundleError(f"The engine in {name} was built for {described}; this machine is {here}.")
    if built.name != name:
        raise BundleError(f"The engine in {name} was built for {described}.")
    if manifest != content_sha256(bundle.manifest.to_json()):
        raise BundleError(f"The engine in {name} was built from another bundle than {bundle.root}.")
    if ENGINE not in files:
        raise BundleError(f"{FACTS} of {name} names no {ENGINE}.")
    for relative, sha256 in files.items():
        verify_file(bundle.root, f"{folder}/{relative}", sha256)
    return BuiltHere(path=bundle.root / folder / ENGINE, fingerprint=built, options=options)


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
        _check_place(root, here.name)
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


def _check_place(root: Path, name: str) -> None:
    for path in (root, root / name):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(f"{path} is not a plain folder; a bundle holds plain files only. Copy the bundle again.")
    parent = root if root.exists() else root.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"The engine cannot be written: {parent} is read-only for this user. Copy the bundle elsewhere.")


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One build at a time; the system takes the lock back from a process that is killed."""
    try:
        import fcntl
    except ModuleNotFoundError:
        raise InputError("Engines are built into a bundle on Linux only: Windows has no lock for its folder.") from None
    # The folder itself is locked: a file for it would have to be left behind.
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another vitexport engine is already running on {root}; wait for it to finish.") from None
        except OSError as error:
            # Linux asks a network file system for a lock that a folder, opened for reading, cannot have.
            raise InputError(
                f"{root} cannot be locked ({error.strerror}), as on a network file system. Copy the bundle to this device's "
                "own disk, run vitexport engine there, and copy it back."
            ) from error
        yield
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> None:
    """Remove what killed builds left; an engine that one of them had put aside gets its name back."""
    for path in root.glob(".*"):
        if path.is_dir() and not path.is_symlink():
            aside = path / _ASIDE
            final = root / path.name[1:].rpartition(".")[0].rpartition(".")[0]
            if path.name.endswith(_OLD) and aside.is_dir() and not final.exists():
                aside.rename(final)
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_symlink():
            path.unlink()


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
    _flush(folder)


def _exchange(folder: Path, final: Path) -> None:
    """Give `folder` the name `final`; an older engine of that name goes once the new one is there."""
    if not final.exists():
        folder.rename(final)
    elif not _swap(folder, final):
        _replace(folder, final)
    _flush(final.parent)


def _swap(one: Path, other: Path) -> bool:
    """Let two folders change names at once, so that no kill finds neither; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux, with glibc 2.28 or later
    if renameat2 is None:
        return False
    return int(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)) == 0


def _replace(folder: Path, final: Path) -> None:
    """The same in two steps; between them the older engine lies aside, where `_sweep` finds it."""
    old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=_OLD, dir=final.parent)) / _ASIDE
    final.rename(old)
    try:
        folder.rename(final)
    except BaseException:
        # Where this fails too the engine stays aside, for `_sweep`.
        old.rename(final)
        old.parent.rmdir()
        raise
    shutil.rmtree(old.parent, ignore_errors=True)


def _flush(root: Path) -> None:
    """Let what was named in a folder survive a loss of power."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
