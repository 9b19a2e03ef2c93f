"""`vitexport.build` and its kin: keywords for every option, modules of one's own, and what a notebook shows."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CALIBRATION, TINY, VALIDATION, Built
from own_models import SPEC, FixedBatch, PlainVit, make
from PIL import Image
from torch import nn

import vitexport
from vitexport.api import _FILLED, _PARTS, _request
from vitexport.artifacts import BatchRange
from vitexport.cli.commands import build as build_command
from vitexport.eager import pytorch_beside
from vitexport.errors import InputError, UsageError, VitexportError
from vitexport.pipeline import BuildRequest
from vitexport.preprocess import PreprocessSpec, preprocess
from vitexport.quantize.settings import Placement
from vitexport.source import ModelRequest, load

DIGIT = VALIDATION / "7" / "digit_0081.png"
OWN: dict[str, Any] = {"target": "cpu", "precision": "fp32", "num_classes": 5}
FIELDS: dict[str, Any] = {
    "img_size": 32,
    "mean": SPEC.mean,
    "std": SPEC.std,
    "crop_pct": SPEC.crop_pct,
    "interpolation": SPEC.interpolation,
}


@dataclasses.dataclass(frozen=True)
class Own:
    """A build of a module of one's own, and the module."""

    module: nn.Module
    before: nn.Module
    result: vitexport.BuildResult
    said: list[str]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """INT8 and float, a dynamic batch, from a module that was left in training mode."""
    module, said = make().train(), list[str]()
    before = copy.deepcopy(module)
    result = vitexport.build(
        module,
        SPEC,
        target="cpu",
        num_classes=5,
        calibration=str(CALIBRATION),
        calibration_size=32,
        batch="1:2:4",
        out=str(tmp_path_factory.mktemp("own") / "plain"),
        progress=lambda what, done=0, total=0: said.append(what),
    )
    return Own(module, before, result, said)


# ---- a module of one's own


def test_the_bundle_computes_what_the_users_module_computes(own: Own) -> None:
    pixels = [preprocess(path, SPEC) for path in (DIGIT, DIGIT.with_name("digit_0173.png")) if path.exists()]
    with torch.inference_mode():
        wanted = own.before.eval()(torch.from_numpy(np.stack(pixels))).numpy()
    model = vitexport.load(own.result.bundle.root)
    seen = model.predict_tensor(np.stack(pixels)).logits
    # INT8 may have been chosen; without it the graph is equal to rounding.
    limit = 1e-4 if own.result.bundle.manifest.precision == "fp32" else 0.1
    assert np.abs(seen - wanted).max() <= limit * np.abs(wanted).max()


def test_the_users_module_stays_as_it_was(own: Own) -> None:
    assert own.module.training
    assert all(parameter.requires_grad for parameter in own.module.parameters())
    before = own.before.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in own.module.state_dict().items())
    assert own.module.__dict__.keys() == own.before.__dict__.keys()


def test_the_manifest_names_the_class_and_no_timm_model(own: Own) -> None:
    model = own.result.bundle.manifest.model
    assert (model["name"], model["architecture"]) == ("PlainVit", "own_models.PlainVit")
    assert (model["family"], model["weights"], model["kwargs"]) == ("module", "module:PlainVit", {})
    assert own.result.bundle.manifest.preprocess == SPEC
    assert own.said[0].startswith("stage 1 of ")


def test_pytorch_is_not_timed_beside_a_module_that_the_bundle_does_not_hold(own: Own) -> None:
    beside = pytorch_beside(own.result.bundle.manifest, gpu=False)
    assert beside.contenders == ()
    assert "PlainVit was a module of its author's own" in str(beside.skipped)


def test_fields_say_the_same_as_a_spec(tmp_path: Path) -> None:
    request = ModelRequest(name="mine", module=make(), num_classes=5, **FIELDS)
    assert load(request)[1].preprocess == SPEC


def test_what_training_wraps_around_a_module_is_taken_off() -> None:
    wrapped = nn.DataParallel(make().half())
    exposed, source = load(ModelRequest(name="mine", module=wrapped, num_classes=5, preprocess=SPEC))
    assert source.architecture == "own_models.PlainVit"
    assert {parameter.dtype for parameter in exposed.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in wrapped.parameters()} == {torch.float16}


def test_a_module_without_classes_gives_its_output_as_an_embedding() -> None:
    _, source = load(ModelRequest(name="mine", module=make(), head="none", preprocess=SPEC))
    assert [(output.kind, output.shape) for output in source.outputs] == [("embedding", (5,))]


class Locked(PlainVit):
    def __init__(self) -> None:
        super().__init__()
        self.scale = self.head.weight * 2  # the result of a computation


class Dictionary(PlainVit):
    def forward(self, image: torch.Tensor) -> Any:
        return {"logits": super().forward(image)}


def infinite() -> nn.Module:
    model = make()
    with torch.no_grad():
        model.get_parameter("head.bias")[0] = torch.inf
    return model


@pytest.mark.parametrize(
    ("module", "changes", "error", "message"),
    [
        (make(), {"preprocess": None}, UsageError, "`img_size`, `mean`, `std`, `crop_pct` and `interpolation` are missing"),
        (
            make(),
            {"preprocess": None, "mean": (0.5,)},
            UsageError,
            "`img_size`, `std`, `crop_pct` and `interpolation` are missing",
        ),
        (make(), {"crop_pct": 0.9}, UsageError, "`crop_pct` and a PreprocessSpec were given"),
        (make(), {"num_classes": None}, UsageError, "has no attribute num_classes"),
        (make(), {"num_classes": 6}, InputError, r"returns \[\[5\]\].*expected logits of shape \[6\]"),
        (make(), {"checkpoint": Path("x.pth")}, UsageError, "`checkpoint` cannot be asked of a module"),
        (make(), {"kwargs": {"depth": 2}}, UsageError, "`kwargs` cannot be asked of a module"),
        (make(), {"model_from": "x.py:f"}, UsageError, "exclude each other"),
        (make(), {"head": "tokens"}, InputError, "has no such output"),
        (Locked(), {}, InputError, "Locked cannot be copied"),
        (Dictionary(), {}, InputError, "a dict with logits"),
        (infinite(), {}, InputError, "NaN or infinity, in head.bias"),
        ("mine", {}, UsageError, "expected a torch.nn.Module"),
        (make(), {"preprocess": dataclasses.replace(SPEC, height=64, width=64)}, InputError, "64 x 64"),
    ],
)
def test_what_cannot_be_had_of_a_module_is_refused(
    module: Any, changes: dict[str, Any], error: type[VitexportError], message: str
) -> None:
    request = ModelRequest(name="mine", module=module, num_classes=5, preprocess=SPEC)
    with pytest.raises(error, match=message):
        load(dataclasses.replace(request, **changes))


def test_a_forward_that_fixes_the_batch_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="turns the batch size into a constant"):
        vitexport.build(FixedBatch(), SPEC, **OWN, batch="1:2:4", out=tmp_path / "fixed")
    assert list(tmp_path.iterdir()) == []


# ---- keywords


def test_every_option_of_the_command_line_is_a_keyword() -> None:
    options = {str(parameter.name) for parameter in build_command.params} - {"as_json", "quiet", "verbose", "help"}
    keywords = {field.name for part in _PARTS for field in dataclasses.fields(part)}
    # The command line's MODEL is the first argument; --model-kwarg KEY=VALUE adds to `kwargs`.
    assert options - keywords == {"model_kwargs"}
    assert keywords - options == {"kwargs", "more_targets", "quantization", "budget", "module", "preprocess", "name"}
    assert keywords >= _FILLED


def test_text_and_paths_are_read_as_on_the_command_line() -> None:
    request = _request(
        "vit_tiny_patch16_224",
        None,
        ("l4", "a10"),
        {
            "calibration": "dir",
            "batch": "1:4:8",
            "placement": "B",
            "max_drop": 1,
            "include": "fc1",
            "mean": 0.5,
            "features": [1, 2],
            "pretrained": False,
            "force": True,
            "kwargs": {"depth": 2},
            "seed": 3,
        },
    )
    assert request == BuildRequest(
        model=ModelRequest(
            name="vit_tiny_patch16_224", pretrained=False, kwargs={"depth": 2}, features=(1, 2), mean=(0.5,), seed=3
        ),
        target="l4",
        more_targets=("a10",),
        calibration=Path("dir"),
        batch=BatchRange(minimum=1, optimum=4, maximum=8),
        quantization=vitexport.QuantSettings(placement=Placement(base="B"), include=("fc1",)),
        budget=vitexport.Budget(max_drop=1.0),
        force=True,
    )
    assert _request("vit_tiny_patch16_224", None, "cpu", {"checkpoint": "x.pth"}).model.pretrained is False
    assert _request("vit_tiny_patch16_224", None, "cpu", {}).model.pretrained is True
    assert _request("x", None, "cpu", {"batch": 4}).batch == BatchRange.parse("4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precison": "int8"}, "Unknown option precison; did you mean precision"),
        ({"max_dorp": 1}, "did you mean max_drop"),
        ({"quantization": 1}, "Unknown option quantization"),
        ({"zzzzz": 1}, "see the fields of ModelRequest"),
        ({"precision": "int4"}, "precision is 'int4'; expected 'auto' or 'fp32' or 'fp16' or 'int8'"),
        ({"max_drop": "much"}, "max_drop is 'much'; expected a number"),
        ({"batch": True}, "batch is True"),
        ({"batch": "8:1"}, "minimum:optimum:maximum"),
        ({"placement": "Z"}, "Z"),
        ({"force": 1}, "force is 1; expected True or False"),
        ({"seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"calibration": 7}, "calibration is 7; expected a path or None"),
        ({"features": ["a"]}, "features is"),
        ({"name": "mine"}, "a model that is asked for by name has that name"),
        ({"preprocess": SPEC}, "preprocess is for a module"),
    ],
)
def test_a_keyword_that_is_wrong_is_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        vitexport.build("vit_tiny_patch16_224", target="cpu", out=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_without_a_model_or_a_target_nothing_is_built() -> None:
    with pytest.raises(UsageError, match="No target was given"):
        vitexport.build("vit_tiny_patch16_224", target=())
    with pytest.raises(UsageError, match="No model was given"):
        vitexport.build(target="cpu")


def test_a_plan_takes_a_request_or_keywords(tmp_path: Path) -> None:
    kwargs = dict(TINY.kwargs)
    asked = vitexport.plan(
        TINY.name, target="cpu", pretrained=False, kwargs=kwargs, img_size=32, num_classes=7, out=tmp_path / "tiny"
    )
    assert asked.steps == vitexport.plan(BuildRequest(model=TINY, target="cpu", out=tmp_path / "tiny")).steps
    assert asked.exit_code == 0
    with pytest.raises(UsageError, match="holds everything"):
        vitexport.plan(BuildRequest(model=TINY, target="cpu"), force=True)


# ---- what Python and a notebook see


def test_public_names_are_there_without_anything_heavy() -> None:
    code = (
        "import sys, vitexport; names = dir(vitexport); assert vitexport.__version__;"
        "print(sorted(n for n in names if not n.startswith('_')));"
        "print([m for m in ('torch', 'timm', 'onnx', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, heavy = done.stdout.splitlines()
    assert {"build", "plan", "load", "PreprocessSpec", "BuildResult"} <= set(eval(names))  # noqa: S307 - our own list
    assert heavy == "[]"
    for name in vitexport.__all__:
        assert getattr(vitexport, name) is not None
        assert name == "__version__" or getattr(vitexport, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vitexport.nothing  # type: ignore[attr-defined]


def test_a_function_is_not_hidden_by_the_module_of_its_name() -> None:
    code = "import vitexport.source.load; from vitexport.source import load; from vitexport.quantize import calibrate"
    subprocess.run([sys.executable, "-c", f"{code}; assert callable(load) and callable(calibrate)"], check=True)


class Balanced(HTMLParser):
    """Collects the tags, and fails where they do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_notebook_shows_a_bundle_and_its_report_escaped(cpu_bundle: Built) -> None:
    report = dataclasses.replace(
        cpu_bundle.report, title="<script>alert(1)</script>", notes=("a < b & c", "<img src=x onerror=alert(1)>")
    )
    shown = report._repr_html_()
    assert "a &lt; b &amp; c" in shown
    parser = Balanced()
    parser.feed(shown + cpu_bundle.bundle._repr_html_() + vitexport.BuildResult(cpu_bundle.bundle, report)._repr_html_())
    assert parser.open == []
    assert parser.seen == {"p", "b", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert "model.onnx" in cpu_bundle.bundle._repr_html_()


# ---- the command line


def test_model_from_runs_the_file_that_was_named(tmp_path: Path) -> None:
    source = Path(__file__).with_name("own_models.py")
    file = tmp_path / "models.py"
    file.write_text(source.read_text("utf-8") + "\nfrom neighbour import CLASSES\n", encoding="utf-8")
    (tmp_path / "neighbour.py").write_text("CLASSES = 5\n", encoding="utf-8")
    exposed, made = load(ModelRequest(name="make_with_spec", model_from=f"{file}:make_with_spec"))
    assert (made.name, made.preprocess, made.num_classes) == ("make_with_spec", SPEC, 5)
    with torch.inference_mode():
        image = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(exposed(image)[0], make().eval()(image))
    for function, message in (
        ("make_nothing", "returned int; expected a torch.nn.Module"),
        ("make_error", "make_error of .* failed: LookupError: the weights are elsewhere"),
        ("absent", "has no function absent"),
    ):
        with pytest.raises(InputError, match=message):
            load(ModelRequest(name="x", model_from=f"{file}:{function}"))
    file.write_text("import sys\nsys.exit('not like this')\n", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be run: SystemExit: not like this"):
        load(ModelRequest(name="x", model_from=f"{file}:make"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("vit_tiny_patch16_224", "--model-from", "x.py:f"), 2, "exclude each other"),
        ((), 2, "No model was given"),
        (("--model-from", "x.txt:f"), 2, "is not FILE.py:FUNCTION"),
        (("--model-from", "nowhere.py:f"), 3, "does not exist"),
    ],
)
def test_model_from_is_refused_without_running_anything(
    words: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "vitexport", "build", *words, "--target", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def test_the_command_line_builds_from_a_file(tmp_path: Path) -> None:
    source = Path(__file__).with_name("own_models.py")
    command = (
        *(sys.executable, "-m", "vitexport", "build", "--model-from", f"{source}:make_with_spec", "--target", "cpu"),
        *("--precision", "fp32", "--json", "-o", "out"),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "passed"
    Image.new("RGB", (40, 50), (200, 10, 90)).save(tmp_path / "x.png")
    assert vitexport.load(tmp_path / "out").predict(tmp_path / "x.png").logits.shape == (1, 5)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".py"]


def test_a_spec_of_a_module_is_checked_as_any_other() -> None:
    with pytest.raises(UsageError, match="Interpolation"):
        PreprocessSpec(**{**dataclasses.asdict(SPEC), "interpolation": "best"})
