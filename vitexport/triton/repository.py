"""Models enter; a Triton repository with one more version of each leaves, or the repository as it was.

A version's folder is added, under the next number; nothing that is there is overwritten. All is written beside the
repository first, so that a server never sees half of it, and neither does whoever comes after a full disk or a kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import string
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vitexport.bundle import Bundle
from vitexport.errors import InputError, UsageError, missing
from vitexport.preprocess import PreprocessSpec
from vitexport.triton.config import text_of
from vitexport.triton.models import PIXELS, WARM_UP, ServeRequest, TritonModel, joins, models_of, name_of

TEMPLATES = Path(__file__).parent / "templates"
FIRST = "1"
CONFIG, LABELS = "config.pbtxt", "labels.txt"
_LONGEST_PREFIX = 100
# Of a name in Kubernetes, with room for what is put behind it.
_LONGEST_LABEL = 50


def write_repository(bundles: Sequence[Bundle], repository: Path, request: ServeRequest) -> tuple[str, ...]:
    """Add `bundles`, all of one model, to the repository; returns the version folders that were added.

    Raises:
        UsageError: The bundles are of different models, or `request` is not usable.
        InputError: The repository cannot be written, or holds another model of that name.
        MissingDependencyError: An ensemble's preprocessing has to be made, and onnx-ir is not installed.
    """
    name = name_of(bundles, request)
    models = models_of(bundles, name, request)
    with _told(repository):
        for model in models:
            _check_place(repository / model.name, model, request)
        with _workshop(repository) as workshop:
            for model in models:
                _write(workshop / model.name, model)
            pages = _write_pages(workshop, models[-1], bundles[0])
            return _move_in(workshop, repository, models, pages)


@contextlib.contextmanager
def _told(repository: Path) -> Iterator[None]:
    """Say in a sentence what the system refuses."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Repository {repository} cannot be written: {error.strerror or error}. It is as it was."
        ) from error


@contextlib.contextmanager
def _workshop(repository: Path) -> Iterator[Path]:
    """A temporary folder on the repository's disk; beside it where that can be, for a server reads what lies in it."""
    existing = _existing(repository)
    beside = existing.parent if existing == repository.resolve() else existing
    same_disk = beside.stat().st_dev == existing.stat().st_dev and os.access(beside, os.W_OK | os.X_OK)
    where = beside if same_disk else existing
    workshop = Path(tempfile.mkdtemp(prefix=f".{repository.name[:_LONGEST_PREFIX]}.", suffix=".partial", dir=where))
    try:
        yield workshop
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists; without links."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def _move_in(workshop: Path, repository: Path, models: Sequence[TritonModel], pages: Sequence[str]) -> tuple[str, ...]:
    """Rename all that was prepared to where it belongs. An ensemble is of no use without one of its models: all or none."""
    added = []
    with contextlib.ExitStack() as undo:
        for parent in reversed([repository.absolute(), *repository.absolute().parents]):
            if not parent.exists():
                parent.mkdir()
                undo.callback(parent.rmdir)
        for model in models:
            prepared, folder = workshop / model.name, repository / model.name
            version = folder / str(max(_versions(folder), default=0) + 1)
            source, place = (prepared / FIRST, version) if folder.exists() else (prepared, folder)
            source.rename(place)
            undo.callback(shutil.rmtree, place, ignore_errors=True)
            added.append(version.relative_to(repository).as_posix())
        for name in pages:
            if not (repository / name).exists():
                (workshop / name).rename(repository / name)
                undo.callback((repository / name).unlink, missing_ok=True)
        undo.pop_all()
    return tuple(added)


def _versions(folder: Path) -> list[int]:
    names = (path.name for path in folder.iterdir()) if folder.exists() else ()
    return [int(name) for name in names if name.isascii() and name.isdigit()]


def _check_place(folder: Path, model: TritonModel, request: ServeRequest) -> None:
    """Refuse, before anything is written, a folder of another model, and options for what is the operator's by now."""
    if not folder.exists():
        return
    config = folder / CONFIG
    try:
        kept = config.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} exists and has no config.pbtxt that can be read ({error}); choose another --name."
        ) from None
    if _interface(kept) != _interface(_config_text(model)):
        raise InputError(
            f"{config} describes a model with other inputs, outputs or batches than this bundle's, and a new version must "
            "have the same; choose another --name."
        )
    labels = folder / LABELS
    if model.labels is not None and (not labels.exists() or labels.read_text(encoding="utf-8") != _labels(model.labels)):
        raise InputError(
            f"{labels} holds other names than this bundle's, and one file serves all versions; choose another --name."
        )
    asked = {"count": request.instances, "max_queue_delay_microseconds": request.queue_delay_us}
    for option, field in (("--instances", "count"), ("--queue-delay", "max_queue_delay_microseconds")):
        there = re.findall(rf"\b{field}: *(\d+)", re.sub(r"(?s)model_warmup \{.*?\n\}", "", kept))
        if asked[field] is not None and there and str(asked[field]) not in there:
            raise UsageError(
                f"{config} exists and is yours to tune: it says {field}: {there[0]}, and {option} says {asked[field]}. Edit "
                f"it there, or leave {option} out."
            )


def _config_text(model: TritonModel) -> str:
    return f"name: {text_of({'name': model.name})[6:]}\n{text_of(model.config)}\n"


def _interface(text: str) -> list[str]:
    """The lines of a configuration that say what goes in and out; the rest is the operator's to tune."""
    kept = re.findall(r"^(?:max_batch_size: .*|(?:input|output) \{\n(?:  .*\n)+\})$", text, re.MULTILINE)
    return sorted(kept)


def _labels(labels: Sequence[str]) -> str:
    return "".join(f"{' '.join(label.split())}\n" for label in labels)


def _write(folder: Path, model: TritonModel) -> None:
    """The whole model: its configuration, and one version."""
    version = folder / FIRST
    version.mkdir(parents=True)
    for name, content in model.files.items():
        if isinstance(content, PreprocessSpec):
            _write_preprocess(content, version / name)
        else:
            shutil.copyfile(content, version / name)
            if (data := content.with_name(f"{content.name}.data")).exists():
                # The graph names it.
                shutil.copyfile(data, version / data.name)
    if not model.files:
        (version / ".keep").touch()  # a bucket has no empty folders, and Triton wants the version of an ensemble too
    (folder / CONFIG).write_text(_config_text(model), encoding="utf-8")
    if model.labels is not None:
        (folder / LABELS).write_text(_labels(model.labels), encoding="utf-8")
    if model.golden is not None:
        (folder / "warmup").mkdir()
        (folder / "warmup" / WARM_UP).write_bytes(model.golden.tobytes())


def _write_preprocess(spec: PreprocessSpec, path: Path) -> None:
    try:
        from vitexport.rewrites import apply, save
        from vitexport.rewrites.embed_preprocess import EmbedPreprocess, preprocess_model
    except ModuleNotFoundError as error:
        raise missing(str(error.name).partition(".")[0], "build", "Writing the preprocessing of an ensemble") from None
    model = preprocess_model(spec, output=PIXELS, opset=17)
    apply(model, EmbedPreprocess(spec))
    save(model, path)


class _Template(string.Template):
    """As in `vitexport.apps`."""

    delimiter = "@@"


def _write_pages(workshop: Path, model: TritonModel, bundle: Bundle) -> list[str]:
    """A client and a page on serving for `model`; returns their names."""
    words, names = _words(model, bundle), []
    for template in sorted(TEMPLATES.iterdir()):
        stem, dot, suffix = template.name.removesuffix(".template").partition(".")
        names.append(f"{stem}-{model.name}{dot}{suffix}")
        text = _Template(template.read_text(encoding="utf-8")).substitute(words)
        (workshop / names[-1]).write_text(text, encoding="utf-8")
    return names


def _words(model: TritonModel, bundle: Bundle) -> dict[str, str]:
    batch, outputs = bundle.manifest.batch, [str(output["name"]) for output in model.config["output"]]
    classes = [output.name for output in bundle.manifest.outputs if output.names_classes]
    if "probabilities" in outputs and "probabilities" not in classes:
        classes.insert(0, "probabilities")
    # perf_analyzer counts the batch only where Triton does not.
    leading = "" if joins(batch) else f"{batch.minimum},"
    return {
        "name": model.name,
        "outputs": json.dumps([*classes, *(name for name in outputs if name not in (*classes, "top_indices"))]),
        "classes": json.dumps(classes),
        "copies": str(1 if joins(batch) else batch.minimum),
        "shape": f"{leading}480,640,3",
        "kube": re.sub(r"[^a-z0-9]+", "-", model.name.lower()).strip("-")[:_LONGEST_LABEL] or "model",
    }
