from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch
from conftest import ROOT, TINY
from huggingface_hub import constants as hub_constants
from safetensors.torch import load_file, save_file

from vitexport.artifacts import OutputSpec
from vitexport.errors import InputError, UsageError, VitexportError
from vitexport.source import ModelRequest, check_available, load

NAME = "vit_tiny_patch16_224"
SAMPLE_FOLDER = ROOT / "scripts" / "sample"
State = dict[str, torch.Tensor]


def tiny(**changes: Any) -> ModelRequest:
    """One block, untrained."""
    kwargs = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, **changes.pop("kwargs", {})}
    values: dict[str, Any] = {"name": NAME, "pretrained": False, "img_size": 32, "num_classes": 7, **changes}
    return ModelRequest(kwargs=kwargs, **values)


@pytest.fixture(scope="module")
def state() -> State:
    """Weights that fit `tiny`, and are not those of its seed."""
    return {name: tensor.clone() for name, tensor in load(tiny(seed=99))[0].model.state_dict().items()}


# ---- names


def test_an_unknown_name_is_refused_with_its_nearest() -> None:
    with pytest.raises(InputError, match=r"no model named 'vit_tny_patch16_224'.*Near it: vit_tiny_patch16_224"):
        load(ModelRequest(name="vit_tny_patch16_224", pretrained=False))


def test_a_name_near_to_nothing_is_refused_plainly() -> None:
    with pytest.raises(InputError, match=r"no model named 'zzzzzzzz'\.$"):
        load(ModelRequest(name="zzzzzzzz", pretrained=False))


def test_a_network_that_is_no_vision_transformer_is_refused() -> None:
    with pytest.raises(InputError, match=r"resnet18 is defined in timm\.models\.resnet, which is not a Vision Transformer"):
        load(ModelRequest(name="resnet18", pretrained=False))


def test_an_unknown_tag_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"no pretrained tag 'imagenet'; it has: augreg_in21k, augreg_in21k_ft_in1k"):
        load(ModelRequest(name=f"{NAME}.imagenet", pretrained=False))


def test_an_unknown_prefix_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"'s3:vit': the prefix is unknown; use a timm name, hf-hub:…, local-dir:… or torchvision:…"
    ):
        load(ModelRequest(name="s3:vit"))


# ---- the model hub


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub address at which nobody listens, and an empty cache."""
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("ask", [check_available, load])
@pytest.mark.parametrize("name", [NAME, f"{NAME}.augreg_in21k", "hf-hub:somebody/some-vit"])
def test_an_unreachable_hub_is_said_with_the_ways_out(name: str, ask: Callable[[ModelRequest], object]) -> None:
    with pytest.raises(InputError, match=r"hub cannot be reached") as caught:
        ask(ModelRequest(name=name))
    assert f"pretrained weights of {name}" in str(caught.value)
    assert "`checkpoint`" in str(caught.value)
    assert "`pretrained=False`" in str(caught.value)
    # A chain of connection errors would drown the sentence.
    assert caught.value.__cause__ is None


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("changes", [{"pretrained": False}, {"checkpoint": Path("weights.pth")}])
def test_without_pretrained_weights_the_hub_is_not_asked(changes: dict[str, Any]) -> None:
    check_available(ModelRequest(name=NAME, **changes))


def test_a_model_that_has_no_pretrained_weights_is_said(no_hub: None) -> None:
    with pytest.raises(InputError, match=r"no pretrained weights for vit_small_patch16_36x1_224\. .*`pretrained=False`"):
        check_available(ModelRequest(name="vit_small_patch16_36x1_224"))


# ---- checkpoints


def in_safetensors(state: State, path: Path) -> Path:
    save_file(state, path)
    return path


def in_torch(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


WRAPPINGS: dict[str, Callable[[State], dict[str, Any]]] = {
    "bare": dict,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "data parallel": lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "averaged": lambda state: {
        "state_dict": state,
        "state_dict_ema": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_the_weights_of_a_torch_checkpoint_are_taken(suffix: str, wrapping: str, state: State, tmp_path: Path) -> None:
    path = in_torch(WRAPPINGS[wrapping](state), tmp_path / f"weights{suffix}")
    exposed, source = load(tiny(checkpoint=path))
    assert all(torch.equal(tensor, state[name]) for name, tensor in exposed.model.state_dict().items())
    assert source.weights == f"checkpoint:weights{suffix}"


def test_all_forms_of_the_same_weights_are_the_same_source(state: State, tmp_path: Path) -> None:
    paths = [in_safetensors(state, tmp_path / "a.safetensors"), in_torch({"model": state}, tmp_path / "b.pth")]
    first, second = (load(tiny(checkpoint=path))[1] for path in paths)
    assert first.weights_sha256 == second.weights_sha256 != load(tiny())[1].weights_sha256


def test_half_precision_weights_are_widened(state: State, tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in state.items()}
    model = load(tiny(checkpoint=in_safetensors(halves, tmp_path / "half.safetensors")))[0].model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.state_dict()["head.weight"], halves["head.weight"].float())


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_would_run_code_is_refused_and_not_run(state: State, tmp_path: Path, *, legacy: bool) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "executed"
    torch.save({"state_dict": state, "args": Bomb(trace)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"loading it could run code; it was not loaded\. Save the model's state_dict"):
        load(tiny(checkpoint=path))
    assert not trace.exists()
    # The trap works: somebody who trusts the file would have sprung it.
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_folder_whose_weights_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, trace = tmp_path / "model", tmp_path / "executed"
    folder.mkdir()
    shutil.copy(SAMPLE_FOLDER / "config.json", folder)
    in_torch({"state_dict": {"head.bias": Bomb(trace)}}, folder / "pytorch_model.bin")
    with pytest.raises(InputError):
        load(ModelRequest(name=f"local-dir:{folder}"))
    assert not trace.exists()


def dropped(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "head.bias"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (dropped, "head.bias is missing"),
        (lambda state: state | {"extra.weight": torch.zeros(1)}, "extra.weight is not in the model"),
        (lambda state: state | {"head.weight": torch.zeros(9, 32), "head.bias": torch.zeros(9)}, "num_classes 9, and"),
        (lambda state: state | {"norm.weight": torch.zeros(9)}, r"norm.weight is \[9\] in the file and \[32\]"),
        (lambda state: {"head.bias": state["head.bias"]}, r"is missing; .* \(and \d+ more\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_where(
    change: Callable[[State], State], problem: str, state: State, tmp_path: Path
) -> None:
    path = in_safetensors(change(state), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=rf"w\.safetensors do not fit the model: .*{problem}.*`num_classes[`=]"):
        load(tiny(checkpoint=path))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(bad: float, state: State, tmp_path: Path) -> None:
    weight = state["blocks.0.attn.qkv.weight"].clone()
    weight[3, 5] = bad
    path = in_safetensors(state | {"blocks.0.attn.qkv.weight": weight}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"NaN or infinity, in blocks\.0\.attn\.qkv\.weight"):
        load(tiny(checkpoint=path))


def test_a_folder_with_weights_that_are_no_numbers_is_refused(tmp_path: Path) -> None:
    weights = load_file(SAMPLE_FOLDER / "model.safetensors")
    weights["head.bias"][0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    shutil.copy(SAMPLE_FOLDER / "config.json", tmp_path)
    with pytest.raises(InputError, match=r"NaN or infinity"):
        load(ModelRequest(name=f"local-dir:{tmp_path}"))


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.pth does not exist or is not a file"):
        load(tiny(checkpoint=tmp_path / "missing.pth"))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it holds no file of weights"):
        load(tiny(checkpoint=tmp_path))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.999])
def test_a_truncated_file_is_refused(keep: float, suffix: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    _ = in_torch(state, path) if suffix == ".pth" else in_safetensors(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(InputError, match=rf"Checkpoint .*w{suffix}"):
        load(tiny(checkpoint=path))


@pytest.mark.parametrize("content", [[1, 2, 3], torch.zeros(3), {"epoch": 3}, {3: torch.zeros(3)}, "text", None])
def test_a_checkpoint_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    path = in_torch(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth"):
        load(tiny(checkpoint=path))


# ---- what the model must be


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (tiny(img_size=36), r"patches of 8 x 8 pixels; 36 x 36 is not a multiple\. The nearest sizes are 32 and 40"),
        (tiny(img_size=(36, 16)), r"; 36 x 16 is not a multiple\. The nearest sizes are 32x16 and 40x16"),
        (tiny(img_size=(32, 4)), r"; 32 x 4 is not a multiple\. The nearest size is 32x8"),
        (tiny(kwargs={"nonsense": 1}), r"timm cannot build .* with .*nonsense=1.*unexpected keyword argument"),
        (tiny(kwargs={"num_heads": 5}), r"timm cannot build .*num_heads=5"),
        (ModelRequest(name="swin_tiny_patch4_window7_224", pretrained=False, img_size=226), r"226 x 226 is not a multiple"),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused(request_: ModelRequest, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(request_)


@pytest.mark.parametrize("key", ["img_size", "num_classes"])
def test_an_option_given_twice_with_two_values_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match=rf"{key} was given twice"):
        load(tiny(kwargs={key: 48}))
    load(tiny(kwargs={key: {"img_size": 32, "num_classes": 7}[key]}))


# ---- what leaves


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    first, again, other = (load(tiny(seed=seed))[1] for seed in (1, 1, 2))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert (first.weights, other.weights) == ("random:seed=1", "random:seed=2")


def test_the_model_is_ready_to_export() -> None:
    torch.manual_seed(0)
    model, source = load(TINY)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(getattr(module, "fused_attn", False) for module in model.modules())
    assert (source.family, source.architecture, source.num_classes) == ("vision_transformer", NAME, 7)
    assert source.outputs == (OutputSpec(name="logits", kind="logits", shape=(7,)),)
    assert source.parameters == sum(parameter.numel() for parameter in model.parameters())
    # Of one image: the hidden layer of the MLP and what goes into or comes out of it, 17 tokens wide.
    assert source.peak_activation_elements == 17 * (128 + 128)
    assert json.loads(json.dumps(source.to_json()))["weights_sha256"] == source.weights_sha256


def test_the_data_config_is_the_models_own() -> None:
    spec = load(ModelRequest(name=f"{NAME}.augreg_in21k_ft_in1k", pretrained=False, kwargs={"depth": 1}))[1].preprocess
    assert (spec.height, spec.width) == (224, 224)
    assert (spec.mean, spec.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (spec.interpolation, spec.crop_pct, spec.crop_mode) == ("bicubic", 0.9, "center")


def test_overrides_replace_the_data_config() -> None:
    request = tiny(mean=(0.1, 0.2, 0.3), std=(0.4,), crop_pct=1.0, interpolation="bilinear", img_size=40)
    spec = load(request)[1].preprocess
    assert (spec.height, spec.width) == (40, 40)
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.4, 0.4))
    assert (spec.interpolation, spec.crop_pct) == ("bilinear", 1.0)


def test_an_image_need_not_be_square() -> None:
    spec = load(tiny(img_size=None, kwargs={"img_size": (32, 48)}))[1].preprocess
    assert (spec.height, spec.width) == (32, 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.1, 0.2)}, "mean has 2 values"),
        ({"std": (0.5, 0.5, 0.5, 0.5)}, "std has 4 values"),
        ({"std": (0.0,)}, "between 1/255"),
        ({"mean": (float("nan"),)}, "a mean lies between 0 and 1"),
        ({"crop_pct": 0.0}, "crop_pct is 0"),
        ({"crop_pct": 0.09}, r"crop_pct is 0\.09; it must be at least 0\.1"),
        ({"crop_pct": 1.5}, "crop_pct is 1.5"),
        ({"interpolation": "cubic"}, "Interpolation 'cubic' is unknown"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(tiny(**changes))


# ---- a folder


def test_a_folder_brings_its_own_weights_labels_and_data_config() -> None:
    exposed, source = load(ModelRequest(name=f"local-dir:{SAMPLE_FOLDER}"))
    weights = load_file(SAMPLE_FOLDER / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in exposed.model.state_dict().items())
    assert source.labels == tuple("0123456789")
    assert (source.preprocess.height, source.preprocess.crop_pct) == (32, 1.0)


def test_a_plan_knows_the_labels_and_the_shape_of_the_real_model() -> None:
    request = ModelRequest(name=f"local-dir:{SAMPLE_FOLDER}")
    planned, real = load(request, weights=False)[1], load(request)[1]
    assert planned.labels == real.labels == tuple("0123456789")
    assert (planned.preprocess, planned.outputs, planned.parameters, planned.peak_activation_elements) == (
        (real.preprocess, real.outputs, real.parameters, real.peak_activation_elements)
    )
    assert planned.num_classes == 10


class Hub(BaseHTTPRequestHandler):
    """A hub that is there, and notes what it is asked for."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.asked.append(f"HEAD {self.path}")
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    Hub.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        monkeypatch.setattr(hub_constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield Hub.asked
        server.shutdown()
        thread.join()


def test_a_plan_for_pretrained_weights_knows_their_labels_and_downloads_nothing(hub: list[str]) -> None:
    source = load(ModelRequest(name=f"{NAME}.augreg_in21k_ft_in1k", kwargs={"depth": 1}), weights=False)[1]
    assert source.labels is not None
    assert (len(source.labels), source.labels[0]) == (1000, "tench")
    assert source.synsets is not None
    assert source.synsets[0] == "n01440764"
    # Whether it is there at all, and no more.
    assert hub == ["HEAD /"]


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("checkpoint_path", "/nowhere/w.pth", "`checkpoint`"),
        ("pretrained", True, "`pretrained=False`"),
        ("pretrained_cfg", {"file": "w.pth"}, "`mean`"),
        ("pretrained_cfg_overlay", {"file": "w.pth"}, "`crop_pct`"),
        ("features_only", True, "`features=2,5,8,11`"),
        ("scriptable", True, "exporter"),
    ],
)
def test_model_keywords_that_vitexport_has_an_answer_for_are_refused(
    key: str, value: object, instead: str, *, weights: bool
) -> None:
    with pytest.raises(UsageError, match=rf"Model keyword {key} is not taken; .*{instead}"):
        load(tiny(kwargs={key: value}), weights=weights)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        load(ModelRequest(name=f"local-dir:{tmp_path}"))


@pytest.mark.parametrize("damage", ["no weights", "truncated", "other shapes", "config is no JSON"])
def test_a_damaged_folder_is_refused(damage: str, tmp_path: Path) -> None:
    config = json.loads((SAMPLE_FOLDER / "config.json").read_text(encoding="utf-8"))
    if damage == "other shapes":
        config["model_args"]["depth"] = 2
    text = "{" if damage == "config is no JSON" else json.dumps(config)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    if damage != "no weights":
        data = (SAMPLE_FOLDER / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2] if damage == "truncated" else data)
    with pytest.raises(VitexportError) as caught:
        load(ModelRequest(name=f"local-dir:{tmp_path}"))
    assert isinstance(caught.value, InputError)
    assert str(tmp_path) in str(caught.value)
