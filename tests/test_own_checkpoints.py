"""A person's own checkpoint: what each framework writes is loaded as that framework computes it, or refused by name."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frameworks import IMAGE, NAME, Case, cases, logits, request, timm_arguments, trained
from torch import nn

from vitexport.errors import InputError, UsageError
from vitexport.source import ModelRequest, load
from vitexport.source.weights_file import read_weights

SAME = 1e-5


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_each_file_computes_what_its_framework_computes_or_is_refused_by_name(case: Case, tmp_path: Path) -> None:
    asked, wanted = case.make(tmp_path)
    if wanted is None:
        with pytest.raises(InputError) as caught:
            load(asked)
        assert case.refusal in str(caught.value)
        return
    exposed, source = load(asked)
    seen = exposed(case.image)[0]
    assert float((seen - wanted).abs().max()) <= SAME * float(wanted.abs().max())
    assert source.loading is not None
    assert (case.ema == "none") == ("EMA" not in source.loading)


def saved(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


# ---- what is said


def test_what_was_done_is_said(tmp_path: Path) -> None:
    state = {f"module.model.{name}": tensor for name, tensor in trained(img_size=48).state_dict().items()}
    path = saved({"epoch": 37, "state_dict": state, "state_dict_ema": state}, tmp_path / "model_best.pth.tar")
    source = load(request(path, img_size=32))[1]
    assert source.loading == (
        'model_best.pth.tar: state_dict (EMA present, not used; `ema` takes it), prefix "module.model.", epoch 37, '
        "num_classes 5, depth 1, position embedding 3×3 → 2×2, resampled"
    )
    assert source.notes == (
        "position embedding 3×3 → 2×2, resampled: the weights are of another image size than the model was asked for.",
    )
    assert source.to_json()["loading"] == source.loading
    assert source.preparation == (
        "mean 0.5, std 0.5, crop_pct 0.9, crop mode center, bicubic "
        "(timm's default for vit_tiny_patch16_224.augreg_in21k_ft_in1k)"
    )


def test_who_says_how_pictures_are_prepared_is_said(tmp_path: Path) -> None:
    args = argparse.Namespace(model="vit_tiny_patch16_224", mean=[0.4, 0.5, 0.6], crop_pct=1.0)
    path = saved({"state_dict": trained().state_dict(), "args": args}, tmp_path / "model_best.pth.tar")
    source = load(request(path, std=(0.25,)))[1]
    assert source.preparation == (
        "std 0.25 (as given); mean 0.4,0.5,0.6, crop_pct 1 (by model_best.pth.tar); crop mode center, bicubic "
        "(timm's default for vit_tiny_patch16_224.augreg_in21k_ft_in1k)"
    )


@pytest.mark.parametrize(
    ("ema", "keys", "message"),
    [
        (True, ("state_dict",), r"`ema`: checkpoint .* holds no averaged weights; it has state_dict \(20 tensors\)"),
        (False, ("state_dict_ema",), r"`ema=False`: checkpoint .* holds averaged weights only \(state_dict_ema\)"),
        (None, ("student", "teacher"), r"several sets of weights: student, teacher\. Choose one with `checkpoint_key`"),
    ],
)
def test_a_choice_that_the_file_does_not_offer_is_refused(
    keys: tuple[str, ...], message: str, tmp_path: Path, *, ema: bool | None
) -> None:
    path = saved({key: trained().state_dict() for key in keys}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        load(request(path, ema=ema))


def test_the_entry_of_a_file_can_be_chosen(tmp_path: Path) -> None:
    student, teacher = trained(seed=2), trained(seed=3)
    path = saved({"student": student.state_dict(), "teacher": teacher.state_dict()}, tmp_path / "w.pth")
    exposed, source = load(request(path, checkpoint_key="teacher"))
    torch.testing.assert_close(exposed(IMAGE)[0], logits(teacher))
    assert source.loading is not None
    assert source.loading.startswith("w.pth: teacher")
    with pytest.raises(InputError, match=r"no tensors under 'model'; it has student \(20 tensors\), teacher"):
        load(request(path, checkpoint_key="model"))


def test_a_key_that_is_not_there_is_refused_with_keys_and_prefixes(tmp_path: Path) -> None:
    state = {f"{side}.{name}": value for side in ("student", "teacher") for name, value in trained().state_dict().items()}
    path = saved({"state_dict": state}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"under 'techer'; .* the prefixes state_dict.student, state_dict.teacher"):
        load(request(path, checkpoint_key="techer"))


# ---- the file knows the model


def test_arguments_that_contradict_the_tensors_are_refused(tmp_path: Path) -> None:
    args = timm_arguments(num_classes=9)
    path = saved({"args": args, "state_dict": trained().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=r"contradicts itself: args\.model says num_classes 9, and its tensors have num_classes 5"
    ):
        load(request(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 7}, r"they have num_classes 5, and `num_classes=7` was given"),
        ({"kwargs": {"depth": 2}}, r"they have depth 1, and `kwargs=depth=2` was given"),
        ({"kwargs": {"patch_size": 8}}, r"they have patch_size 16, and `kwargs=patch_size=8`"),
        ({"kwargs": {"in_chans": 1}}, r"they have in_chans 3, and `in_chans=1` was given"),
        ({"kwargs": {"reg_tokens": 4}}, r"they have reg_tokens 0, and `kwargs=reg_tokens=4`"),
        ({"kwargs": {"global_pool": "avg"}}, r"they have global_pool token, and `kwargs=global_pool=avg`"),
        ({"kwargs": {"init_values": 1e-5}}, r"they have init_values None, and `kwargs=init_values=1e-05`"),
        ({"name": "vit_small_patch16_224"}, r"are 192 wide and vit_small_patch16_224 is 384; how many heads"),
    ],
)
def test_what_was_typed_against_the_tensors_is_refused_with_both(changes: Any, message: str, tmp_path: Path) -> None:
    path = saved(trained().state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        load(request(path, **changes))


@pytest.mark.parametrize(
    "shape",
    [
        {"depth": 2},
        {"img_size": 48},
        {"patch_size": 8},
        {"in_chans": 3, "num_classes": 2},
        {"reg_tokens": 2},
        {"init_values": 1e-3},
        {"global_pool": "avg"},
        {"qkv_bias": False},
        {"mlp_ratio": 2.0},
        {"class_token": False, "global_pool": "avg"},
        {"global_pool": "map"},
    ],
)
def test_the_shape_of_the_model_is_read_off_its_tensors(shape: dict[str, Any], tmp_path: Path) -> None:
    model = trained(**shape)
    size = shape.get("img_size", 32)
    image = torch.nn.functional.interpolate(IMAGE, size)
    exposed, _ = load(request(saved(model.state_dict(), tmp_path / "w.pth")))
    torch.testing.assert_close(exposed(image)[0], logits(model, image), atol=1e-5, rtol=1e-5)


def test_the_tensors_alone_can_name_the_model(tmp_path: Path) -> None:
    model = trained()
    exposed, source = load(request(saved(model.state_dict(), tmp_path / "w.pth"), name=None))
    assert (source.name, source.architecture) == ("vit_tiny_patch16_224", "vit_tiny_patch16_224")
    torch.testing.assert_close(exposed(IMAGE)[0], logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: trained(embed_dim=128, num_heads=4),
            r"no model of timm has its shapes \(width 128, depth 1, (?s:.*)\n  vit_tiny_patch16_224 `che.*=num_heads=N`$",
        ),
        (lambda: nn.Linear(3, 3), r"its names are those of no family whose shapes are read .* Give MODEL, a timm name"),
    ],
)
def test_tensors_that_name_no_model_are_refused(make: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(request(saved(make().state_dict(), tmp_path / "w.pth"), name=None))


def test_without_model_and_checkpoint_nothing_is_loaded() -> None:
    with pytest.raises(UsageError, match="No model was given"):
        load(ModelRequest())


def test_a_model_that_the_file_was_not_made_with_is_refused(tmp_path: Path) -> None:
    path = saved({"args": timm_arguments(), "state_dict": trained().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"is of vit_tiny_patch16_224 \(args\.model\), and MODEL is deit_tiny_patch16_224"):
        load(request(path, name="deit_tiny_patch16_224"))


def test_several_names_are_not_chosen_from(tmp_path: Path) -> None:
    args = {"model": NAME, "backbone": "vit_small_patch16_224"}
    path = saved({"hyper_parameters": args, "state_dict": trained().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=r"names several models: hyper_parameters\.model is vit_tiny.*backbone is vit_small"
    ):
        load(request(path, name=None))


def test_quickgelu_is_not_taken_for_gelu(tmp_path: Path) -> None:
    (case,) = (
        case for case in cases() if (case.framework, case.container, case.head) == ("open_clip", "folder", "QuickGELU")
    )
    asked, _ = case.make(tmp_path)
    with pytest.raises(
        InputError, match=r"trained with QuickGELU \(open_clip_config\.json\).*give vit_large_patch14_clip_quick"
    ):
        load(dataclasses.replace(asked, name="vit_large_patch14_clip_224"))
    source = load(asked)[1]
    assert (source.architecture, source.preprocess.mean) == ("vit_base_patch16_clip_quickgelu_224", (0.48, 0.46, 0.41))


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        ({"layers": [3, 4, 6, 3], "width": 64}, "describes no Vision Transformer"),
        ({"layers": 1, "width": 192, "attentional_pool": True}, "has attentional_pool in vision_cfg"),
        ({"layers": 1, "width": 192, "pool_type": "avg"}, "has pool_type in vision_cfg"),
        ({"timm_model_name": NAME, "timm_proj": "mlp"}, "has timm_proj 'mlp'"),
        ({"timm_model_name": NAME, "timm_pool": "abs_attn"}, "has timm_pool 'abs_attn'"),
    ],
)
def test_towers_that_timm_lacks_are_refused(vision: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = json.dumps({"model_cfg": {"embed_dim": 48, "vision_cfg": vision}})
    (tmp_path / "open_clip_config.json").write_text(config, encoding="utf-8")
    saved(trained().state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match=words):
        load(request(tmp_path, name=None))


@pytest.mark.parametrize(("key", "value"), [("do_rescale", False), ("do_resize", False), ("rescale_factor", 1 / 127.5)])
def test_pictures_that_are_prepared_otherwise_are_refused(key: str, value: object, tmp_path: Path) -> None:
    (case,) = (case for case in cases() if (case.framework, case.container) == ("transformers ViT", "safetensors"))
    asked, _ = case.make(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), key: value}), encoding="utf-8")
    with pytest.raises(InputError, match=r"preprocessor_config\.json .*expected height and width"):
        load(asked)


# ---- recorded preprocessing


def test_the_preprocessing_of_the_training_is_used(tmp_path: Path) -> None:
    args = timm_arguments(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], crop_pct=0.95, interpolation="bilinear")
    path = saved({"args": args, "state_dict": trained().state_dict()}, tmp_path / "w.pth")
    source = load(request(path, name=None))[1]
    spec = source.preprocess
    assert (spec.mean, spec.std, spec.crop_pct, spec.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.95, "bilinear")
    assert source.notes == ()


def test_a_contradiction_to_the_training_is_named(tmp_path: Path) -> None:
    args = timm_arguments(mean=[0.5], std=[0.5], crop_pct=1.0)
    path = saved({"args": args, "state_dict": trained().state_dict()}, tmp_path / "w.pth")
    source = load(request(path, mean=(0.485, 0.456, 0.406), std=(0.5, 0.5, 0.5)))[1]
    assert source.notes == ("`mean=0.485,0.456,0.406` is used, and w.pth was trained with 0.5; leave it out to use that.",)
    assert source.preprocess.mean == (0.485, 0.456, 0.406)


# ---- what cannot be read


def test_what_stands_in_the_way_is_named_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "hp.pth"
    torch.save({"state_dict": trained().state_dict(), "config": np.random.default_rng(0)}, path)
    with pytest.raises(
        InputError, match=r"holds more than tensors \(.*numpy.*\n  import torch; file = torch\.load\(.*\n  torch\.save"
    ):
        load(request(path))


def test_a_whole_module_is_refused_with_the_cure_for_one(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(trained(), path)
    with pytest.raises(InputError, match=r"a whole module \((?s:.*)torch\.save\(file\.state_dict\(\)(?s:.*)`model_from`"):
        load(request(path))


def test_plain_values_of_a_training_are_no_obstacle(tmp_path: Path) -> None:
    values = argparse.Namespace(output=Path("runs"), best=np.float64(91.5), steps=np.int64(7), device=torch.device("cpu"))
    path = tmp_path / "w.pth"
    torch.save({"state_dict": trained().state_dict(), "args": values}, path)
    assert read_weights(path).extra["args"].best == 91.5
    load(request(path))


def test_a_representation_layer_is_not_dropped(tmp_path: Path) -> None:
    # timm's own filter leaves it out, and the function with it.
    state = dict(trained().state_dict()) | {
        "pre_logits.fc.weight": torch.ones(192, 192),
        "pre_logits.fc.bias": torch.ones(192),
    }
    with pytest.raises(InputError, match=r"pre_logits\.fc\.weight is not in the model"):
        load(request(saved(state, tmp_path / "w.pth")))


@pytest.mark.parametrize("change", ["no index", "absent shard", "outside", "absent tensor"])
def test_a_damaged_index_is_refused(change: str, tmp_path: Path) -> None:
    import json

    from safetensors.torch import save_file

    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "one.safetensors")
    maps: dict[str, Any] = {
        "no index": {},
        "absent shard": {"weight_map": {"a.weight": "two.safetensors"}},
        "outside": {"weight_map": {"a.weight": "../one.safetensors"}},
        "absent tensor": {"weight_map": {"a.weight": "one.safetensors", "b.weight": "one.safetensors"}},
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(maps[change]))
    with pytest.raises(InputError, match=r"Checkpoint index .*model\.safetensors\.index\.json"):
        load(request(tmp_path))


def test_weights_are_of_the_size_that_was_trained(tmp_path: Path) -> None:
    source = load(request(saved(trained().state_dict(), tmp_path / "w.pth")))[1]
    assert (source.preprocess.height, source.preprocess.width) == (32, 32)


# ---- what lies beside, behind and before the model


class Wrapped(nn.Module):
    """A model of somebody's, with other parts."""

    temperature: nn.Parameter

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def tempered() -> Wrapped:
    module = Wrapped(backbone=trained())
    module.temperature = nn.Parameter(torch.tensor([2.5]))
    return module


def normalizing() -> nn.Module:
    module = Wrapped(backbone=trained())
    module.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))
    return module


def with_head(head: nn.Module) -> nn.Module:
    model: Any = trained("vit_small_patch14_dinov2", img_size=28, num_classes=0)
    model.head = head
    return model  # type: ignore[no-any-return]


MLP = nn.Sequential(nn.Linear(384, 16), nn.GELU(), nn.Linear(16, 5))


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (
            lambda: Wrapped(teacher=trained(seed=2), student=trained(seed=3)),
            {},
            r"several sets of weights: student, teacher",
        ),
        (lambda: Wrapped(model=trained(), teacher=trained(depth=3)), {}, r"several sets of weights: .*model, .*teacher"),
        (lambda: Wrapped(backbone=trained(num_classes=1000), fc=nn.Linear(1000, 5)), {}, r"more that may change .*: fc\."),
        (tempered, {}, r"under backbone, and more that may change its result: temperature"),
        (normalizing, {}, r"more that may change its result: mean"),
        (lambda: with_head(MLP), {"name": "vit_small_patch14_dinov2"}, r"more that may change its result: head"),
        (
            lambda: Wrapped(
                backbone=trained("vit_small_patch14_dinov2", img_size=28, num_classes=0), linear_head=nn.Linear(768, 5)
            ),
            {"name": "vit_small_patch14_dinov2"},
            r"more that may change its result: linear_head",
        ),
    ],
)
def test_what_may_change_the_result_is_not_left_out(
    make: Callable[[], nn.Module], changes: Any, message: str, tmp_path: Path
) -> None:
    path = saved(make().state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        load(request(path, **changes))


def test_what_is_asked_for_by_name_is_taken(tmp_path: Path) -> None:
    both = Wrapped(teacher=trained(seed=2), student=trained(seed=3))
    path = saved({"state_dict": both.state_dict()}, tmp_path / "w.pth")
    for key in ("student", "state_dict.student"):
        exposed, _ = load(request(path, checkpoint_key=key))
        torch.testing.assert_close(exposed(IMAGE)[0], logits(both.get_submodule("student")), atol=1e-5, rtol=1e-5)
    scaled = tempered()
    exposed, _ = load(request(saved(scaled.state_dict(), path), checkpoint_key="backbone"))
    torch.testing.assert_close(exposed(IMAGE)[0], logits(scaled.get_submodule("backbone")), atol=1e-5, rtol=1e-5)
    exposed, _ = load(request(saved(with_head(MLP).state_dict(), path), name="vit_small_patch14_dinov2", head="none"))
    assert exposed(IMAGE[..., :28, :28])[0].shape == (1, 384)


@pytest.mark.parametrize("key", ["EMA", "emaModel", "shadow", "avg_model", "ema_state_dict"])
def test_averages_have_many_names(key: str, tmp_path: Path) -> None:
    raw, mean = trained(seed=2), trained(seed=3)
    averaged = {f"module.{name}": value for name, value in mean.state_dict().items()}
    path = saved({"model": raw.state_dict(), key: averaged}, tmp_path / "w.pth")
    torch.testing.assert_close(load(request(path))[0](IMAGE)[0], logits(raw), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(load(request(path, ema=True))[0](IMAGE)[0], logits(mean), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "extra"),
    [
        ({"global_pool": "max"}, {"hyper_parameters": {"model_name": NAME, "global_pool": "max"}}),
        ({"num_heads": 6}, {"hyper_parameters": {"model_name": NAME, "num_heads": 6}}),
        ({"num_heads": 6}, {"hyper_parameters": {"model": {"name": NAME, "num_heads": 6}}}),
        ({"img_size": (32, 128)}, {"hyper_parameters": {"model_name": NAME, "img_size": [32, 128]}}),
        ({"img_size": (32, 128)}, {"args": timm_arguments(input_size=[3, 32, 128], model_kwargs={"depth": 1})}),
        ({"no_embed_class": True}, {}),
        ({"no_embed_class": True, "reg_tokens": 4}, {}),
    ],
)
def test_the_file_says_what_the_tensors_do_not(shape: Any, extra: Any, tmp_path: Path) -> None:
    model = trained(**shape)
    height, width = shape.get("img_size", (32, 32))
    image = torch.nn.functional.interpolate(IMAGE, (height, width))
    exposed, _ = load(request(saved({"state_dict": model.state_dict(), **extra}, tmp_path / "w.pth")))
    torch.testing.assert_close(exposed(image)[0], logits(model, image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("vit_small_patch16_dinov3", 64, {"img_size": 64}),
        ("beit_base_patch16_224", 32, {"img_size": 32}),
        ("beit_base_patch16_224", 32, None),
    ],
)
def test_the_size_is_known_without_a_position_embedding(name: str, size: int, args: Any, tmp_path: Path) -> None:
    model = trained(name, img_size=size)
    extra = {} if args is None else {"args": timm_arguments(model=name, **args)}
    source = load(request(saved({"state_dict": model.state_dict(), **extra}, tmp_path / "w.pth"), name=name))[1]
    assert (source.preprocess.height, source.preprocess.width) == (size, size)
    assert source.notes == ()


@pytest.mark.parametrize(
    ("extra", "seen"),
    [
        ({"hyper_parameters": {"model_name": NAME, "mean": 0.1, "std": torch.tensor([0.3, 0.3, 0.3])}}, (0.1, 0.9)),
        ({"hyper_parameters": {"model": {"name": NAME}, "data": {"mean": [0.1] * 3, "crop_pct": "0.8"}}}, (0.1, 0.8)),
        ({"pretrained_cfg": {"mean": [0.1] * 3, "crop_pct": 0.8}}, (0.1, 0.8)),
        ({"args": argparse.Namespace(model=NAME, nb_classes=5, input_size=32, eval_crop_ratio=0.875)}, (0.5, 0.875)),
        ({"args": timm_arguments(model="vit_tiny_patch16_224.augreg_in21k", mean=[0.1] * 3)}, (0.1, 0.9)),
        ({"hyper_parameters": {"model_name": f"hf_hub:timm/{NAME}.augreg_in21k", "mean": [0.1] * 3}}, (0.1, 0.9)),
    ],
)
def test_preprocessing_is_read_in_every_usual_form(extra: Any, seen: tuple[float, float], tmp_path: Path) -> None:
    path = saved({"state_dict": trained().state_dict(), **extra}, tmp_path / "w.pth")
    spec = load(request(path))[1].preprocess
    assert spec.mean == pytest.approx((seen[0],) * 3)
    assert spec.crop_pct == seen[1]


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ({"class_to_idx": {"b": 0, "a": 1, "c": 2, "d": 3, "e": 4}}, "bacde"),
        ({"hyper_parameters": {"model_name": NAME, "class_names": list("edcba")}}, "edcba"),
        ({"hyper_parameters": {"model_name": NAME, "idx_to_class": dict(enumerate("edcba"))}}, "edcba"),
    ],
)
def test_the_order_of_the_classes_is_read(extra: Any, names: str, tmp_path: Path) -> None:
    path = saved({"state_dict": trained().state_dict(), **extra}, tmp_path / "w.pth")
    assert load(request(path))[1].labels == tuple(names)


def test_what_only_the_training_knew_is_named(tmp_path: Path) -> None:
    path = saved({"state_dict": trained().state_dict(), "args": timm_arguments(class_map="classes.txt")}, tmp_path / "w.pth")
    (note,) = load(request(path))[1].notes
    assert "the order of its classes from classes.txt; give `labels`" in note
    (note,) = load(request(saved(trained().state_dict(), path), name=None))[1].notes
    assert "does not say how pictures were prepared" in note
    path = saved({"state_dict": trained().state_dict(), "class_to_idx": {"a": 0, "b": 1}}, path)
    (note,) = load(request(path))[1].notes
    assert "names 2 classes and the model has 5" in note
