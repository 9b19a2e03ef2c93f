"""torchvision's Vision Transformers, carried over to timm's module; on a small one, for what every size does alike."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import VisionTransformer, ViT_B_16_Weights

from vitexport.errors import InputError, ToolchainError
from vitexport.source import ModelRequest, check_available, load, names, torchvision_models
from vitexport.source.names import TORCHVISION, torchvision_name
from vitexport.source.torchvision_models import _data_config, _translated, class_names

# What the tensors do not tell of the small one.
HEADS = {"embed_dim": 32, "num_heads": 2}
B_16 = "torchvision:vit_b_16"
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def theirs() -> Any:
    """A small one, whose norms, biases and head are not those that every parameter starts with."""
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=7
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def output(model: Any, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(images)
    return result


# ---- the same network


def test_the_translation_computes_the_same(theirs: Any) -> None:
    ours = _translated(theirs, {})
    assert isinstance(ours, timm.models.VisionTransformer)
    assert not ours.training
    logits = output(theirs)
    assert float(logits.std()) > 0.1
    torch.testing.assert_close(output(ours), logits, atol=1e-5, rtol=1e-5)


def test_every_parameter_has_one_name_in_timm(theirs: Any) -> None:
    renamed = [torchvision_name(name) for name in theirs.state_dict()]
    ours = _translated(theirs, {}).state_dict()
    assert sorted(renamed) == sorted(ours)
    assert len(set(renamed)) == len(renamed) == 4 + 2 * 12 + 4
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours[torchvision_name(name)], tensor)


def test_names_that_are_already_timms_stay(theirs: Any) -> None:
    own = list(_translated(theirs, {}).state_dict())
    assert [torchvision_name(name) for name in own] == own


@pytest.mark.parametrize("index", range(5))
def test_the_oldest_names_of_the_mlp_are_known_too(index: int) -> None:
    # Weights of torchvision 0.12 call its two layers linear_1 and linear_2.
    block = f"encoder.layers.encoder_layer_{index}"
    assert (
        torchvision_name(f"{block}.mlp.linear_1.weight")
        == torchvision_name(f"{block}.mlp.0.weight")
        == f"blocks.{index}.mlp.fc1.weight"
    )
    assert (
        torchvision_name(f"{block}.mlp.linear_2.bias")
        == torchvision_name(f"{block}.mlp.3.bias")
        == f"blocks.{index}.mlp.fc2.bias"
    )


def test_a_translation_that_computes_something_else_is_refused(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The shapes of the two norms are alike, so that only their numbers tell.
    crossed = [entry for entry in TORCHVISION if "ln_" not in entry[0]]
    crossed += [(r"\.ln_1\.", ".norm2."), (r"\.ln_2\.", ".norm1.")]
    monkeypatch.setattr(names, "TORCHVISION", crossed)
    with pytest.raises(ToolchainError, match=r"computes something else than torchvision .* defect of vitexport"):
        _translated(theirs, {})


def test_no_number_is_no_proof_that_both_compute_the_same(theirs: Any) -> None:
    with torch.no_grad():
        theirs.heads.head.bias[2] = float("nan")
    with pytest.raises(ToolchainError, match="computes something else"):
        _translated(theirs, {})


def test_number_of_classes_and_image_size_are_applied(theirs: Any) -> None:
    ours = _translated(theirs, {"num_classes": 3, "img_size": 48})
    assert output(ours, torch.zeros(1, 3, 48, 48)).shape == (1, 3)
    expected = _translated(theirs, {})
    expected.set_input_size(img_size=48)
    # The position embeddings are resampled, not cut or drawn anew.
    assert torch.equal(ours.pos_embed, expected.pos_embed)
    assert torch.equal(ours.blocks[1].mlp.fc2.weight, expected.blocks[1].mlp.fc2.weight)


def test_other_model_keywords_are_refused(theirs: Any) -> None:
    with pytest.raises(
        InputError, match=r"Model keywords are for timm's models; torchvision's take none \(depth, qk_norm\)"
    ):
        _translated(theirs, {"depth": 3, "qk_norm": True})


@pytest.mark.parametrize("in_timm", [False, True])
def test_checkpoints_of_either_naming_are_taken(theirs: Any, tmp_path: Path, *, in_timm: bool) -> None:
    state = (_translated(theirs, {}) if in_timm else theirs).state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "w.safetensors")
    request = ModelRequest(name="vit_tiny_patch16_224", checkpoint=tmp_path / "w.safetensors", kwargs=HEADS)
    exposed, _ = load(request)
    torch.testing.assert_close(output(exposed)[0], output(theirs), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_another_image_size_is_resampled(theirs: Any, tmp_path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    wanted = _translated(theirs, {"img_size": 48})
    request = ModelRequest(name="vit_tiny_patch16_224", checkpoint=tmp_path / "w.safetensors", kwargs=HEADS, img_size=48)
    exposed, source = load(request)
    images = torch.nn.functional.interpolate(IMAGES, 48)
    torch.testing.assert_close(output(exposed, images)[0], output(wanted, images), atol=1e-5, rtol=1e-5)
    assert any("position embedding 4×4 → 6×6" in note for note in source.notes)


def test_an_untrained_model_of_another_size_is_loaded_whole() -> None:
    exposed, source = load(ModelRequest(name="torchvision:vit_b_32", pretrained=False, img_size=96))
    assert (source.name, source.architecture, source.family) == ("torchvision:vit_b_32", "vit_b_32", "vision_transformer")
    assert (source.num_classes, source.labels, source.weights) == (1000, None, "random:seed=0")
    assert (source.preprocess.height, source.preprocess.width) == (96, 96)
    [logits] = output(exposed, torch.nn.functional.interpolate(IMAGES, 96))
    assert logits.shape == (2, 1000)
    # torchvision's own head starts with zeros.
    assert float(logits.std()) > 1e-2


# ---- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:vit_b_17", r"has no Vision Transformer named 'vit_b_17'; it has vit_b_16, vit_b_32, .*timm names"),
        ("torchvision:swin_t", r"has no Vision Transformer named 'swin_t'"),
        ("torchvision:resnet50", r"has no Vision Transformer named 'resnet50'"),
        ("torchvision:", r"has no Vision Transformer named ''"),
        (f"{B_16}.IMAGENET1K_V9", r"vit_b_16 has no weights 'IMAGENET1K_V9'; it has IMAGENET1K_V1, IMAGENET1K_SWAG_E2E_V1"),
        (f"{B_16}.imagenet1k_v1", r"has no weights 'imagenet1k_v1'"),
        (f"{B_16}.", r"has no weights ''"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_exist(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(ModelRequest(name=name, pretrained=False))


@pytest.mark.parametrize("name", [B_16, f"{B_16}.DEFAULT", f"{B_16}.IMAGENET1K_SWAG_LINEAR_V1", "torchvision:vit_h_14"])
def test_a_known_name_is_taken(name: str) -> None:
    check_available(ModelRequest(name=name, pretrained=False))


# ---- weights


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An address at which nobody listens, and an empty cache, which is returned."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    serve_at(monkeypatch, "http://127.0.0.1:9")
    return tmp_path / "hub"


def serve_at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    absent = SimpleNamespace(name="IMAGENET1K_V1", url=f"{address}/models/vit.pth", meta=ViT_B_16_Weights.DEFAULT.meta)
    monkeypatch.setattr(torchvision_models, "_weights", lambda _name: absent)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of somebody who takes calls and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("weights", [True, False])
def test_unreachable_weights_are_said_with_the_ways_out(*, weights: bool) -> None:
    with pytest.raises(
        InputError, match=r"pretrained weights of .*vit_b_16 \(IMAGENET1K_V1\) .* cannot be reached"
    ) as caught:
        load(ModelRequest(name=B_16), weights=weights)
    assert "`checkpoint`" in str(caught.value)
    assert "`pretrained=False`" in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.usefixtures("no_weights")
def test_a_server_that_never_answers_is_not_waited_for(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_at(monkeypatch, silent_server)
    monkeypatch.setattr(torchvision_models, "HUB_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"cannot be reached \(.*timed out\)"):
        check_available(ModelRequest(name=B_16))


def test_cached_weights_are_not_asked_for(no_weights: Path) -> None:
    (no_weights / "checkpoints").mkdir(parents=True)
    (no_weights / "checkpoints" / "vit.pth").touch()
    check_available(ModelRequest(name=B_16))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("changes", [{"pretrained": False}, {"checkpoint": Path("weights.pth")}])
def test_without_pretrained_weights_nobody_is_asked(changes: dict[str, Any]) -> None:
    check_available(ModelRequest(name=B_16, **changes))


def test_labels_are_the_weights_own_and_tell_all_classes_apart() -> None:
    labels, synsets = class_names(torch.nn.Identity(), ModelRequest(name=B_16))
    assert synsets is None
    assert labels is not None
    assert (labels[0], labels[134], labels[517]) == ("tench", "crane bird", "crane")
    assert len(set(labels)) == len(labels) == 1000


@pytest.mark.parametrize("changes", [{"pretrained": False}, {"checkpoint": Path("w.pth")}, {"num_classes": 1000}])
def test_other_weights_have_no_labels(changes: dict[str, Any]) -> None:
    assert class_names(torch.nn.Identity(), ModelRequest(name=B_16, **changes)) == (None, None)


@pytest.mark.parametrize(
    ("weights", "size", "interpolation", "crop_pct"),
    [("IMAGENET1K_V1", 224, "bilinear", 224 / 256), ("IMAGENET1K_SWAG_E2E_V1", 384, "bicubic", 1.0)],
)
def test_the_data_config_is_that_of_the_weights(weights: str, size: int, interpolation: str, crop_pct: float) -> None:
    config = _data_config("vit_b_16", ViT_B_16_Weights[weights], size)
    preset = ViT_B_16_Weights[weights].transforms()
    assert (config["mean"], config["std"]) == (tuple(preset.mean), tuple(preset.std))
    assert (config["input_size"], config["interpolation"], config["crop_pct"]) == ((3, size, size), interpolation, crop_pct)
    assert config["tag"] == weights
