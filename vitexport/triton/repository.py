"""Input: models; output: a Triton repository with one more version of each, or the repository as it was.

A version's folder is added, under the next number; nothing that is there is overwritten. Each model is prepared whole where
a server looks for none, and appears by renaming. Triton takes every folder of a repository for a model, hidden ones too, and
ignores what is no number in a model's own: a new model is prepared beside the repository, a new version within its model.
Only where nothing can be renamed into the repository, as into a volume, is a new model's folder there before its version.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import stat
import string
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vitexport.artifacts import Task, data_file, is_binary
from vitexport.bundle import Bundle, make_parents, sync
from vitexport.errors import InputError, UsageError, missing
from vitexport.preprocess import PreprocessSpec
from vitexport.triton.config import text_of
from vitexport.triton.models import PIXELS, WARM_UP, ServeRequest, TritonModel, joins, models_of, name_of

TEMPLATES = Path(__file__).parent / "templates"
FIRST = "1"
CONFIG, LABELS = "config.pbtxt", "labels.txt"
PARTIAL = ".partial"
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
    if repository.is_symlink() and not repository.exists():
        raise InputError(f"Repository {repository} is a symbolic link to nothing; name a folder.")
    if repository.exists() and not repository.is_dir():
        raise InputError(f"Repository {repository} is not a folder; name one, which need not exist yet.")
    with _told(repository), contextlib.ExitStack() as undo:
        for model in models:
            _check_place(repository / model.name, model, request)
        added = _add(repository.resolve(), models, request, undo)
        for page, text in _pages(models[-1], bundles[0]).items():
            _write_page(repository.resolve() / page, text, undo)
        undo.pop_all()
    return tuple(added)


@contextlib.contextmanager
def _told(repository: Path) -> Iterator[None]:
    """Say in a sentence what the system refuses."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"Repository {repository} cannot be written: {reason}. What was written is removed again."
        ) from error


def _add(repository: Path, models: Sequence[TritonModel], request: ServeRequest, undo: contextlib.ExitStack) -> list[str]:
    """All models or none: an ensemble is of no use without one of its parts."""
    for parent in reversed(make_parents(repository)):
        _later(undo, parent.rmdir)
    with contextlib.ExitStack() as stagings:
        prepared = [stagings.enter_context(_staging(repository, model.name, undo)) for model in models]
        for model, staging in zip(models, prepared, strict=True):
            _write(staging, model)
            sync(staging)
        # What came to be there meanwhile has to fit, too.
        for model in models:
            _check_place(repository / model.name, model, request)
        return [_move_in(staging, repository / model.name, undo) for model, staging in zip(models, prepared, strict=True)]


def _later(undo: contextlib.ExitStack, step: Callable[[], object]) -> None:
    """Take something back, should it come to that; what cannot be taken back must not hide why."""

    def tried() -> None:
        with contextlib.suppress(OSError):
            step()

    undo.callback(tried)


@contextlib.contextmanager
def _staging(repository: Path, name: str, undo: contextlib.ExitStack) -> Iterator[Path]:
    """A folder from which the model can be renamed to its place, and in which no server looks for one."""
    place = repository / name
    if not _exists(place) and _renames(repository.parent, repository):
        place = repository.parent
    elif not place.exists():
        place.mkdir()
        _later(undo, place.rmdir)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name[:_LONGEST_PREFIX]}.", suffix=PARTIAL, dir=place))
    try:
        # Nobody else may enter what mkdtemp makes, and it is not what is renamed.
        staging = temporary / name
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exists(folder: Path) -> bool:
    """Whether there is a model: what a kill left of one, folders to be renamed, is none."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder; choose another `name`.")
    return folder.exists() and not all(path.name.endswith(PARTIAL) for path in folder.iterdir())


def _renames(source: Path, repository: Path) -> bool:
    """Whether what is made in `source` can be renamed into the repository and is then as if it had been made there."""
    if repository.stat().st_mode & stat.S_ISGID:
        # The group of what is made in it is the repository's own.
        return False
    try:
        with tempfile.NamedTemporaryFile(dir=source, prefix=".", suffix=PARTIAL, delete=False) as file:
            path = Path(file.name)
    except OSError:  # a folder that is not ours
        return False
    moved = repository / path.name  # a file, which Triton ignores
    try:
        path.rename(moved)
    except OSError:  # another disk, or the same one mounted twice
        return False
    finally:
        path.unlink(missing_ok=True)
        moved.unlink(missing_ok=True)
    return True


def _move_in(staging: Path, folder: Path, undo: contextlib.ExitStack) -> str:
    """Rename a new model, or its one version where there is such a model; returns the version's path in the repository."""
    if not folder.exists():
        staging.rename(folder)
        _later(undo, lambda: shutil.rmtree(folder))
        return f"{folder.name}/{FIRST}"
    if not _exists(folder):
        _later(undo, lambda: shutil.rmtree(folder))
        for path in sorted(staging.iterdir()):
            if path.name != FIRST:
                path.rename(folder / path.name)
    version = folder / str(max(_versions(folder), default=0) + 1)
    (staging / FIRST).rename(version)
    _later(undo, lambda: shutil.rmtree(version))
    return f"{folder.name}/{version.name}"


def _versions(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]


def _check_place(folder: Path, model: TritonModel, request: ServeRequest) -> None:
    """Refuse a folder of another model, and options for what is the operator's by now."""
    if not _exists(folder):
        return
    config, labels = folder / CONFIG, folder / LABELS
    kept = _read(config)
    if _interface(kept) != _interface(_config_text(model)):
        raise InputError(
            f"{config} describes a model with other inputs, outputs or batches than this bundle's, and a new version must "
            "have the same; choose another `name`."
        )
    if model.labels is not None and _read(labels) != _labels(model.labels):
        raise InputError(
            f"{labels} holds other names than this bundle's, and one file serves all versions; choose another `name`."
        )
    for option, asked, block, field in (
        ("`instances`", request.instances, "instance_group", "count"),
        ("`queue_delay`", request.queue_delay_us, "dynamic_batching", "max_queue_delay_microseconds"),
    ):
        there = re.findall(rf"\b{field}\s*:\s*(\d+)", _block(kept, block))
        if asked is not None and block in model.config and there != [str(asked)]:
            says = f"{field}: {', '.join(there)}" if there else f"no {field} in {block}"
            raise UsageError(
                f"{config} exists and is yours to tune: it has {says}, and {option} says {asked}. Edit it there, or leave "
                f"{option} out."
            )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path.parent} exists and has no {path.name} that can be read ({error}); choose another `name`."
        ) from None


def _block(text: str, name: str) -> str:
    """All that stands in the brackets behind `name`, in whichever way protobuf's text form lets it be written."""
    text = re.sub(r"#.*", "", text)
    found = ""
    for match in re.finditer(rf"^\s*{name}\s*:?\s*(?=[\[{{])", text, re.MULTILINE):
        depth = 0
        for at in range(match.end(), len(text)):
            depth += (text[at] in "[{") - (text[at] in "]}")
            if depth == 0:
                found += text[match.end() : at]
                break
    return found


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
    version.mkdir()
    for name, content in model.files.items():
        if isinstance(content, PreprocessSpec):
            _write_preprocess(content, version / name)
            continue
        if not content.is_file():
            raise InputError(f"{content} has gone since the bundle was verified; copy or build it again.")
        shutil.copyfile(content, version / name)
        if (data := data_file(content)).exists():
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


def _pages(model: TritonModel, bundle: Bundle) -> dict[str, str]:
    """A client and a page on serving for `model`, by name."""
    words, pages = _words(model, bundle), {}
    for template in sorted(TEMPLATES.iterdir()):
        stem, dot, suffix = template.name.removesuffix(".template").partition(".")
        pages[f"{stem}-{model.name}{dot}{suffix}"] = _Template(template.read_text(encoding="utf-8")).substitute(words)
    return pages


def _write_page(path: Path, text: str, undo: contextlib.ExitStack) -> None:
    if path.exists():
        return
    partial = path.with_name(f".{path.name}{PARTIAL}")
    _later(undo, partial.unlink)
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)
    _later(undo, path.unlink)


# What SERVING says of the outputs.
_ANSWERS: Mapping[Task, str] = {
    "classification": "Probabilities are of classes that exclude each other: the shares of one picture sum to 1.",
    "multi-label": "Each label has a probability of its own (sigmoid): the shares of one picture need not sum to 1, and a "
    "label\nis true from {threshold:g} on.",
    "regression": "The output `values` holds numbers in the unit of the targets that the model was trained with.",
    "embedding": "The outputs are what the model computes of a picture; it names no classes.",
}


def _words(model: TritonModel, bundle: Bundle) -> dict[str, str]:
    batch, outputs = bundle.manifest.batch, [str(output["name"]) for output in model.config["output"]]
    manifest = bundle.manifest
    ranked = [output for output in manifest.outputs if output.names_classes or output.kind == "label_logits"]
    classes = [output.name for output in ranked]
    if "probabilities" in outputs and "probabilities" not in classes:
        classes.insert(0, "probabilities")
    # perf_analyzer counts the batch only where Triton does not.
    leading = "" if joins(batch) else f"{batch.minimum},"
    return {
        "name": model.name,
        "outputs": json.dumps([*classes, *(name for name in outputs if name not in (*classes, "top_indices"))]),
        "classes": json.dumps(classes),
        # Whose logits are probabilities by themselves.
        "sigmoid": repr(manifest.task == "multi-label" or is_binary(manifest.outputs)),
        "values": json.dumps([output.name for output in manifest.outputs if output.kind == "values"]),
        "answer": _ANSWERS[manifest.task].format(threshold=manifest.threshold),
        "copies": str(1 if joins(batch) else batch.minimum),
        "shape": f"{leading}480,640,{bundle.manifest.preprocess.source_channels}",
        "kube": kubernetes_name(model.name),
    }


def kubernetes_name(name: str) -> str:
    """A name that Kubernetes takes for a service (RFC 1035): small letters first, then digits and hyphens, too."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower())[:_LONGEST_LABEL].strip("-")
    return label if label[:1].isalpha() else f"model-{label}".rstrip("-")
