"""Input: a bundle with ``model.app.onnx``; output: a small project that runs it in an application: Node, web, Android or
C++.

What is written is data in this package, filled in with a few words of the manifest; the model goes beside it. Nothing is
installed or downloaded here: each project's README says with which of its ecosystem's commands it is built.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from vitexport.artifacts import ONNX_APP, Task
from vitexport.bundle import Bundle, staging
from vitexport.errors import UsageError

AppKind: TypeAlias = Literal["node", "web", "android", "cpp"]
KINDS: tuple[AppKind, ...] = get_args(AppKind)
TEMPLATES = Path(__file__).parent / "templates"
# Names that begin with a dot would be left out of a wheel.
_HIDDEN = frozenset({"gitignore", "npmrc"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where a project keeps what the templates do not place: the model, and the files that two projects share."""

    model: str
    shared: Mapping[str, str] = dataclasses.field(default_factory=dict)


_LAYOUTS: Mapping[AppKind, _Layout] = {
    "node": _Layout(model="model.onnx", shared={"answer.js": "src/answer.js", "metadata.js": "src/metadata.js"}),
    "web": _Layout(model="model.onnx", shared={"answer.js": "answer.js", "metadata.js": "metadata.js"}),
    "android": _Layout(model="app/src/main/assets/model.onnx"),
    "cpp": _Layout(model="model.onnx"),
}


# What the model does beyond the network, and what an application shows of it.
_STEPS: Mapping[Task, str] = {
    "classification": "resizing, cropping, normalization, probabilities and ranking",
    "multi-label": "resizing, cropping, normalization, a probability for each label (they need not sum to 1) and ranking",
    "regression": "resizing, cropping and normalization",
}
_FOUND: Mapping[Task, str] = {"classification": "Likeliest classes", "multi-label": "Labels", "regression": "Values"}


class _Template(string.Template):
    """``@@name``: neither JavaScript, Kotlin, CMake nor C++ writes two at signs before a name."""

    delimiter = "@@"


def write_app(bundle: Bundle, kind: AppKind, out: Path) -> tuple[str, ...]:
    """Write the project for `kind` into the new folder `out`; returns its files.

    Raises:
        UsageError: The bundle has no model that takes one picture, or that answers with classes, labels or values.
        InputError: `out` exists, or cannot be written.
    """
    model = _model(bundle)
    layout, words = _LAYOUTS[kind], _words(bundle, model)
    with staging(out, force=None) as folder:
        for name, template in _templates(kind, layout):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_Template(template.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
        (folder / layout.model).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model, folder / layout.model)
        return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _templates(kind: AppKind, layout: _Layout) -> Iterator[tuple[str, Path]]:
    """Name in the project, and the template behind it."""
    root = TEMPLATES / kind
    for path in sorted(root.rglob("*")):
        if path.is_file():
            relative = path.relative_to(root)
            yield (relative.with_name(f".{path.name}") if path.name in _HIDDEN else relative).as_posix(), path
    for name, place in layout.shared.items():
        yield place, TEMPLATES / "shared" / name


def _model(bundle: Bundle) -> Path:
    manifest, model = bundle.manifest, bundle.artifact(ONNX_APP)
    if manifest.task == "embedding":
        raise UsageError(f"Bundle {bundle.root} names no classes, and the projects show classes; run its ONNX by hand.")
    if not manifest.preprocess.takes_pictures:
        raise UsageError(
            f"The model of bundle {bundle.root} takes arrays of {manifest.preprocess.channels} channels, and the projects "
            "show pictures; run its ONNX by hand."
        )
    if model is None:
        raise UsageError(
            f"Bundle {bundle.root} has no model that takes the picture itself; build it with `target=web`, with "
            "android-arm64, or for a CPU with `embed_preprocess`."
        )
    outputs = bundle.report().measurements.get("embedded", {}).get("outputs", [])
    needed = {"values"} if manifest.task == "regression" else {"probabilities", "top_indices"}
    if not needed <= set(outputs):
        raise UsageError(f"The model of bundle {bundle.root} ranks no classes; build it without `top_indices=0`.")
    if manifest.batch.minimum > 1:
        raise UsageError(
            f"The model of bundle {bundle.root} takes {manifest.batch} pictures at once, and an application has one; build "
            "it with `batch=1`, or with a range that begins with 1."
        )
    return model


def _words(bundle: Bundle, model: Path) -> dict[str, str]:
    manifest = bundle.manifest
    name = str(manifest.model["name"]).rstrip("/").rpartition("/")[2].rpartition(":")[2]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"
    return {
        # What is quoted in JSON, HTML, XML and Kotlin alike.
        "title": re.sub(r"[^\w .,()-]", "-", name) or slug,
        "slug": slug,
        "precision": manifest.precision,
        "steps": _STEPS[manifest.task],
        "found": _FOUND[manifest.task],
        "mib": f"{model.stat().st_size / 2**20:.1f}",
    }
