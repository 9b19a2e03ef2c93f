"""Input: artifacts, or a folder; output: a bundle folder, written whole or not at all, or the verified `Bundle` in it.

A bundle is data: opening it runs none of its content, and every file is hashed before anything reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vitexport import notebook
from vitexport.artifacts import (
    DEFAULT_THRESHOLD,
    ENGINE_LIBRARIES,
    BatchRange,
    Outputs,
    OutputSpec,
    Precision,
    Task,
    describe_outputs,
    file_sha256,
    num_classes,
    num_names,
    task_of,
)
from vitexport.errors import BundleError, InputError
from vitexport.preprocess import PreprocessSpec
from vitexport.report import Report
from vitexport.targets import Target

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
REPORT = "report.json"
REPORT_PAGE = "report.md"
MOST_CLASSES = 10_000_000
_WRITE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG}
)
GOLDEN_PIXELS = "golden/pixels.npy"
PREPROCESSED = "golden/preprocessed.npy"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle says of itself; ``manifest.json`` is its JSON form.

    Attributes:
        versions: Of vitexport and of every library that took part.
        model: Where the model came from (`ModelSource.to_json`).
        target: What it was built for.
        precision: Of the shipped artifact.
        batch: Batch sizes that the artifact accepts.
        preprocess: How a picture becomes its input.
        task: What the model is for.
        threshold: Probability from which on a label of a multi-label model is true.
        labels: Names of the classes, labels or values in the order of the output, or None.
        synsets: Other names that class folders may have, in the same order, or None.
        outputs: What the model computes, in order.
        artifacts: Role to path in the bundle: ``onnx``, ``onnx_float``, ``engine``, ``golden_pixels``, ``golden_`` with
            the name of each output, and ``checkpoints`` with their ``checkpoints_index`` (`vitexport.runtime.checkpoints`);
            for full TensorRT also ``raw_image`` and ``raw_`` with the name of each output, one call's as trtexec reads them.
        engine: Library, version, recipe and, where there is no file, the reason; None for a CPU target.
        recipe: The INT8 recipe, or None.
        requires: What runs the artifact in a role, at least: ``onnxruntime`` (its least release) with ``opset`` and
            ``ir_version`` of an ONNX file; ``tensorrt`` or ``tensorrt-rtx`` of ``engine``. Empty in older bundles.
        files: sha256 of every file by its path, the manifest itself apart (it carries a hash of its own content).
    """

    versions: Mapping[str, str]
    model: Mapping[str, Any]
    target: Target
    precision: Precision
    batch: BatchRange
    preprocess: PreprocessSpec
    task: Task
    threshold: float
    labels: tuple[str, ...] | None
    synsets: tuple[str, ...] | None
    outputs: tuple[OutputSpec, ...]
    artifacts: Mapping[str, str]
    engine: Mapping[str, Any] | None
    recipe: Mapping[str, Any] | None
    files: Mapping[str, str]
    requires: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        """How many classes the model tells apart, or None where it names none."""
        return num_classes(self.outputs)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {
            "format_version": FORMAT_VERSION,
            "versions": dict(self.versions),
            "model": dict(self.model),
            "target": self.target.to_json(),
            "precision": self.precision,
            "batch": str(self.batch),
            "preprocess": self.preprocess.to_json(),
            "task": self.task,
            "threshold": self.threshold,
            "labels": list(self.labels) if self.labels is not None else None,
            "synsets": list(self.synsets) if self.synsets is not None else None,
            "outputs": [{**dataclasses.asdict(output), "shape": list(output.shape)} for output in self.outputs],
            "artifacts": dict(self.artifacts),
            "engine": self.engine,
            "recipe": self.recipe,
            "requires": {role: dict(needs) for role, needs in self.requires.items()},
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError, VitexportError: `data` is not a manifest.
        """
        outputs = _outputs(data["outputs"])
        labels, synsets = (_names(data[key], num_names(outputs)) for key in ("labels", "synsets"))
        precision = _precision(data["precision"])
        if (precision == "int8") != (data["recipe"] is not None):
            raise ValueError(f"precision {precision} and the INT8 recipe contradict each other")
        return cls(
            versions=_strings(data["versions"]),
            model=_model(data["model"]),
            target=Target.from_json(data["target"]),
            precision=precision,
            batch=BatchRange.parse(data["batch"]),
            preprocess=PreprocessSpec.from_json(data["preprocess"]),
            task=_task(data.get("task"), outputs),
            threshold=_threshold(data.get("threshold", DEFAULT_THRESHOLD)),
            labels=labels,
            synsets=synsets,
            outputs=outputs,
            artifacts=_strings(data["artifacts"]),
            engine=None if data["engine"] is None else _engine(data["engine"]),
            recipe=None if data["recipe"] is None else _recipe(data["recipe"]),
            requires=_requires(data.get("requires", {})),
            files=_strings(data["files"]),
        )


def _strings(values: Any) -> dict[str, str]:
    return {str(key): str(value) for key, value in dict(values).items()}


def _model(values: Any) -> dict[str, Any]:
    """What reports show of the model must be there, and of its type."""
    data = dict(values)
    for key, kind in (("name", str), ("weights", str), ("weights_sha256", str), ("parameters", int)):
        if not isinstance(data.get(key), kind):
            raise TypeError(f"model.{key} is {data.get(key)!r}, expected {kind.__name__}")
    return data


def _engine(values: Any) -> dict[str, Any]:
    """What decides whether an engine may be loaded must be there, and of its type."""
    data = dict(values)
    capabilities = dict(data["recipe"])["compute_capabilities"]
    known = data["library"] in ENGINE_LIBRARIES and isinstance(data["library_version"], str)
    if not known or not isinstance(capabilities, list) or not all(isinstance(entry, str) for entry in capabilities):
        raise TypeError("engine.library, engine.library_version or engine.recipe is not what vitexport writes")
    if data["skipped"] is not None and not isinstance(data["skipped"], str):
        raise TypeError("engine.skipped is not a text")
    return data


def _recipe(values: Any) -> dict[str, Any]:
    """What reports show of the INT8 recipe must be there."""
    data = dict(values)
    if not isinstance(data["layers"], list) or not isinstance(data["images"], dict):
        raise TypeError("recipe.layers or recipe.images is not what vitexport writes")
    for key in ("placement", "observer"):
        if not isinstance(dict(data["settings"])[key], str):
            raise TypeError(f"recipe.settings.{key} is not a text")
    return data


def _requires(values: Any) -> dict[str, dict[str, Any]]:
    """Texts and numbers by role and by what is needed."""
    data = {str(role): dict(needs) for role, needs in dict(values).items()}
    if not all(isinstance(value, (str, int)) for needs in data.values() for value in needs.values()):
        raise TypeError("requires is not what vitexport writes")
    return data


def _outputs(values: Any) -> tuple[OutputSpec, ...]:
    """At least one, each with a name of its own, and no more than one that answers."""
    outputs = tuple(OutputSpec.from_json(value) for value in values)
    if not outputs or len({output.name for output in outputs}) != len(outputs):
        raise ValueError("outputs are none, or two of them have one name")
    answers = [output for output in outputs if output.is_answer]
    if len(answers) > 1 or any(len(output.shape) != 1 or output.shape[0] > MOST_CLASSES for output in answers):
        raise ValueError(f"{[output.name for output in answers]} cannot be the answer")
    return outputs


def _task(value: Any, outputs: tuple[OutputSpec, ...]) -> Task:
    """What the outputs are for; bundles of before there were tasks do not say it."""
    task = task_of(outputs)
    if value is not None and value != task:
        raise ValueError(f"task {value!r} does not fit the outputs, which are for {task}")
    return task


def _threshold(value: Any) -> float:
    if not isinstance(value, float) or not 0 < value < 1:
        raise ValueError(f"threshold is {value!r}")
    return value


def _names(values: Any, count: int | None) -> tuple[str, ...] | None:
    """Labels or synsets: absent, or as many texts as the answer needs."""
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count or not all(isinstance(value, str) for value in values):
        raise ValueError(f"labels or synsets are not {count} texts")
    return tuple(values)


def _precision(value: Any) -> Precision:
    if value not in ("fp32", "fp16", "int8"):
        raise ValueError(f"precision is {value!r}")
    return cast(Precision, value)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle on disk."""

    root: Path
    manifest: Manifest

    def _repr_html_(self) -> str:
        """How a notebook shows it: what it is, what is in it, and its report."""
        manifest = self.manifest
        facts = [
            ("model", manifest.model.get("name", "")),
            ("weights", manifest.model.get("weights", "")),
            ("target", f"{manifest.target.name} ({manifest.target.id})"),
            ("precision", manifest.precision),
            ("batch", manifest.batch),
            ("input", f"{manifest.preprocess.height} x {manifest.preprocess.width}"),
            ("outputs", describe_outputs(manifest.outputs)),
        ]
        files = [(name, f"{(self.root / name).stat().st_size / 2**20:.2f} MiB") for name in manifest.files]
        shown = notebook.heading(f"bundle {self.root}") + notebook.table((), facts)
        return shown + notebook.table(("file", "size"), files) + self.report()._repr_html_()

    def artifact(self, role: str) -> Path | None:
        """Path of the artifact in `role`, or None if the bundle has none."""
        relative = self.manifest.artifacts.get(role)
        return None if relative is None else self.root / relative

    def golden(self) -> tuple[NDArray[np.uint8], Outputs]:
        """Golden inputs before normalization, uint8 [n, height, width, channels], and PyTorch's outputs, float32 [n, …].

        Raises:
            BundleError: They are absent or not of these shapes.
        """
        spec = self.manifest.preprocess
        pixels = self._golden("pixels", np.uint8, None, (spec.height, spec.width, spec.channels))
        outputs = {
            output.name: self._golden(output.name, np.float32, len(pixels), output.shape) for output in self.manifest.outputs
        }
        return np.array(pixels), {name: np.array(values) for name, values in outputs.items()}

    def preprocessed(self) -> NDArray[np.uint8] | None:
        """Known pictures as the build's preprocessing left them, uint8 [n, height, width, channels]; None if absent.

        Raises:
            BundleError: They are not of this shape.
        """
        if "golden_preprocessed" not in self.manifest.artifacts:
            return None
        spec = self.manifest.preprocess
        return np.array(self._golden("preprocessed", np.uint8, None, (spec.height, spec.width, spec.channels)))

    def _golden(self, what: str, dtype: type, count: int | None, shape: tuple[int, ...]) -> NDArray[Any]:
        """One golden array, mapped, of `count` entries (None for any number) of `shape`."""
        path = self.artifact(f"golden_{what}")
        if path is None:
            raise BundleError(f"Bundle {self.root} has no golden_{what}; build it again.")
        try:
            # Mapped, not read: a header that lies about its size must not take the memory.
            with np.errstate(over="raise"):
                array: NDArray[Any] = np.load(path, allow_pickle=False, mmap_mode="r")
        except (OSError, ValueError, ArithmeticError) as error:
            raise BundleError(f"{path} cannot be read: {error}") from None
        expected = (*(array.shape[:1] if count is None else (count,)), *shape)
        if array.dtype != dtype or array.shape != expected or not len(array):
            raise BundleError(f"{path} is {array.dtype} {array.shape}; expected {np.dtype(dtype)} {expected}.")
        return array

    def report(self) -> Report:
        """The report of the build.

        Raises:
            BundleError: It is absent or not a report.
        """
        if REPORT not in self.manifest.files:
            raise BundleError(f"Bundle {self.root} has no sha256 for {REPORT}; it is not read. Build the bundle again.")
        try:
            return Report.from_json(json.loads((self.root / REPORT).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{self.root / REPORT} is not a report of vitexport: {error}") from None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())


def open_bundle(root: Path) -> Bundle:
    """Read the manifest and verify every file's sha256.

    Raises:
        BundleError: No bundle, a newer format, a file missing or changed, or a path that leaves the bundle.
    """
    manifest = _read_manifest(root)
    for relative, expected in manifest.files.items():
        verify_file(root, relative, expected)
    for role, relative in manifest.artifacts.items():
        if relative not in manifest.files:
            raise BundleError(f"Bundle {root} names {relative} as {role}, but has no sha256 for it; build it again.")
    return Bundle(root=root, manifest=manifest)


def verify_file(root: Path, relative: str, expected: str) -> None:
    """Check one file of a bundle against its sha256.

    Raises:
        BundleError: It is missing, changed, outside the bundle or behind a symbolic link.
    """
    try:
        path = inside(root, relative)
        seen = file_sha256(path) if path.is_file() else None
    except OSError as error:
        raise BundleError(f"{relative[:80]} in bundle {root} cannot be read: {error.strerror}.") from None
    if seen is None:
        raise BundleError(f"Bundle {root} lacks {relative}, which its manifest names; copy or build it again.")
    if seen != expected:
        raise BundleError(
            f"{relative} in bundle {root} has sha256 {seen[:16]}…, but the manifest says {expected[:16]}…; "
            "the file was changed or damaged. Copy the bundle again, or build it again."
        )


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST
    if not root.is_dir():
        raise BundleError(f"Bundle {root} does not exist or is not a folder.")
    try:
        text = path.read_bytes().decode("utf-8")
        data = json.loads(text)
    except FileNotFoundError:
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or version < 1:
        raise BundleError(f"{path} is not a manifest of vitexport: format_version is {version!r}.")
    if version < FORMAT_VERSION:
        raise BundleError(
            f"Bundle {root} has format {version}, of an older vitexport; this one reads {FORMAT_VERSION}. Build it again."
        )
    if version > FORMAT_VERSION:
        raise BundleError(
            f"Bundle {root} has format {version}; this vitexport reads up to {FORMAT_VERSION}. Upgrade vitexport."
        )
    if not _is_as_written(text, data):
        raise BundleError(f"{path} was changed after it was written. Copy the bundle again, or build it again.")
    try:
        return Manifest.from_json(data)
    except Exception as error:  # noqa: BLE001
        # Whatever a stranger's manifest provokes, it is the manifest that is wrong.
        raise BundleError(f"{path} is not a valid manifest: {type(error).__name__}: {error}") from None


def inside(root: Path, relative: str) -> Path:
    """Where `relative` lies in the bundle at `root`.

    Raises:
        BundleError: Outside the bundle, or behind a symbolic link.
    """
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or "\\" in relative:
        raise BundleError(f"Bundle {root} names {relative!r}, which lies outside it; it is not opened.")
    path = root
    for part in pure.parts:
        path /= part
        if path.is_symlink():
            raise BundleError(f"{relative} in bundle {root} is or passes a symbolic link; a bundle holds plain files only.")
    return path


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file in `folder` but the manifest, by POSIX path, in the order of the paths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {relative: file_sha256(path) for path in paths if (relative := path.relative_to(folder).as_posix()) != MANIFEST}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, sealed."""
    write_sealed(folder / MANIFEST, manifest.to_json())


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` as JSON with a sha256 over the rest of its content, so that no byte of it can change unseen."""
    write_json(path, {**data, "sha256": content_sha256(data)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Raises:
        BundleError: It cannot be read, or is not, to the byte, what was written.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        data = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict) or not _is_as_written(text, data):
        raise BundleError(f"{path} was changed after it was written.")
    return data


def _is_as_written(text: str, data: Mapping[str, Any]) -> bool:
    """Whether `text` is, to the byte, what `write_manifest` wrote: its content has the hash, and its form is ours."""
    content = {key: value for key, value in data.items() if key != "sha256"}
    try:
        return data.get("sha256") == content_sha256(content) and text == _json_text(data)
    except ValueError:  # NaN, or half a surrogate pair
        return False


def content_sha256(data: Mapping[str, Any]) -> str:
    """Of JSON values, whatever the order and the spacing in which they are written."""
    canonical = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` as UTF-8 JSON, indented; NaN and infinity are refused, since JSON has none."""
    path.write_bytes(_json_text(data).encode())


def _json_text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def check_output(out: Path, *, force: bool | None) -> None:
    """Refuse an output that cannot be written, before the slow steps.

    Args:
        out: The folder.
        force: Whether a bundle that is there is replaced; None where the output is no bundle and nothing is.

    Raises:
        InputError: It exists and `force` is not set, or is not a bundle; or its folder cannot be written.
    """
    try:
        objection = _objection(out, force=force)
    except OSError as error:  # a name that is too long, a folder that may not be read
        objection = f"Output {out} cannot be written: {error.strerror}."
    if objection is not None:
        raise InputError(objection)


def _objection(out: Path, *, force: bool | None) -> str | None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        kind = "is a symbolic link, which is not followed" if out.is_symlink() else "exists and is not a folder"
        return f"Output {out} {kind}; choose another with `out`."
    if out.is_dir() and (out.resolve() == Path.cwd() or os.path.ismount(out)):
        return f"Output {out} is the current folder or a mount point, which cannot be replaced; name a folder inside it."
    if out.is_dir() and any(out.iterdir()):
        if force is None or not (out / MANIFEST).is_file():
            kind = "empty" if force is None else "a bundle"
            return f"Output folder {out} exists and is not {kind}; it is not touched. Choose another with `out`."
        if not force:
            return f"Bundle {out} exists; give `force` to replace it, or another folder with `out`."
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return f"Output {out} cannot be written: {parent} is not a folder that this user may write to."
    return None


@contextlib.contextmanager
def staging(out: Path, *, force: bool | None) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` if the block ends well, and goes away if it does not.

    Args:
        out: The folder, or where it is to be.
        force: As for `check_output`.

    Raises:
        InputError: As `check_output`, before the block and, for what appeared meanwhile, after it; or the disk is full or
            refuses.
    """
    check_output(out, force=force)
    folder: Path | None = None
    made = make_parents(out.absolute().parent)
    try:
        folder = _temporary(out)
        folder.chmod(0o755)
        yield folder
        check_output(out, force=force)
        _replace(folder, out)
        made = []
    except OSError as error:
        if error.errno not in _WRITE_ERRORS:
            raise
        raise InputError(f"Output {out} cannot be written: {error.strerror}. Nothing was left behind.") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _temporary(out: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.absolute().parent))
    except OSError as error:  # also what a file system that only looks like one says, such as /proc
        raise InputError(f"Output {out} cannot be written: {error.strerror or error}. Nothing was left behind.") from error


def make_parents(parent: Path) -> list[Path]:
    """Create what is missing above the output; returns what was created, innermost first."""
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir()
            made.insert(0, folder)
    except OSError as error:
        for folder in made:
            folder.rmdir()
        raise InputError(f"Folder {missing[0]} cannot be created: {error.strerror or error}.") from error
    return made


def sync(folder: Path) -> None:
    """Have every file below `folder` on the disk, before a name says that it is whole."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def _replace(folder: Path, out: Path) -> None:
    """Rename `folder` to `out`. An old bundle is moved aside first and comes back if the rename fails."""
    sync(folder)
    if not out.exists():
        folder.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.absolute().parent))
    old = aside / "bundle"
    try:
        out.rename(old)
        folder.rename(out)
    finally:
        # After an error, and after Ctrl-C too. Should the way back fail, the old bundle stays where it is.
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
