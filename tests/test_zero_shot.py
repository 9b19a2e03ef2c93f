"""Image towers with a matrix of class texts: the logits are what open_clip computes, and files that cannot be are "
"refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import timm
import torch
from conftest import ROOT, TINY, Built
from exports import export_onnx
from graphs import read
from graphs import run as onnx_logits
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch.nn.functional import normalize

from vitexport.artifacts import BatchRange, ModelSource, silent
from vitexport.eager import pytorch_beside
from vitexport.errors import InputError, MissingDependencyError, UsageError, VitexportError
from vitexport.pipeline import BuildRequest, plan, run
from vitexport.source import ModelRequest, load
from vitexport.source.class_files import read_class_embeddings
from vitexport.source.open_clip_texts import TextModel, find_text_model
from vitexport.source.zero_shot import ZeroShotHead

WIDTH, CLASSES = 24, 5
NAMES = ("ant", "bee", "cat", "dog", "eel")
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
KWARGS = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
CLIP = ModelRequest(
    name="vit_base_patch16_clip_224",
    pretrained=False,
    kwargs=KWARGS,
    img_size=32,
    num_classes=WIDTH,
    mean=(0.5,),
    std=(0.5,),
)
SIGLIP = dataclasses.replace(CLIP, name="vit_base_patch16_siglip_224", num_classes=None)
TEMPLATES = ("a photo of a {}.", "a bad photo of the {}.")
needs_open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed")


def matrix(classes: int = CLASSES, width: int = WIDTH) -> NDArray[np.float32]:
    """Not normalized, as a mean over templates is not."""
    return np.random.default_rng(1).standard_normal((classes, width), dtype=np.float32)


def tower(request: ModelRequest) -> Any:
    """Timm's model, made without vitexport: the same weights come from the same seed."""
    torch.manual_seed(request.seed)
    classes = {} if request.num_classes is None else {"num_classes": request.num_classes}
    return timm.create_model(request.name, img_size=32, **classes, **request.kwargs).eval()


def logits(request: ModelRequest, images: torch.Tensor = IMAGES) -> tuple[torch.Tensor, ModelSource]:
    exposed, source = load(request)
    with torch.inference_mode():
        (result,) = exposed(images)
    return result, source


def saved(path: Path, values: Any, **more: Any) -> Path:
    """`values` and what else is in the file, in the form that the suffix says."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, class_embeddings=values, **more)
    elif path.suffix == ".safetensors":
        names = more.pop("names", None)
        tensors = {name: torch.as_tensor(value) for name, value in {"texts": values, **more}.items()}
        save_file(tensors, path, metadata=None if names is None else {"names": json.dumps(list(names))})
    else:
        names = {"names": more.pop("names").tolist()} if "names" in more else {}
        tensors = {name: torch.as_tensor(value) for name, value in {"texts": values, **more}.items()}
        torch.save({**tensors, **names} if more or names else tensors["texts"], path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_a_matrix_of_texts_is_a_classifier(suffix: str, transposed: bool, tmp_path: Path) -> None:  # noqa: FBT001
    texts = matrix()
    more = {} if suffix == ".npy" else {"names": np.array(NAMES), "logit_scale": np.float32(math.log(50))}
    path = saved(tmp_path / f"texts{suffix}", np.ascontiguousarray(texts.T) if transposed else texts, **more)
    found, source = logits(dataclasses.replace(CLIP, class_embeddings=path))
    scale = 50 if more else 100
    with torch.inference_mode():
        expected = scale * normalize(tower(CLIP)(IMAGES), dim=-1) @ normalize(torch.from_numpy(texts), dim=-1).T
    torch.testing.assert_close(found, expected, atol=scale * 1e-6, rtol=1e-5)
    assert [(output.kind, output.shape) for output in source.outputs] == [("logits", (CLASSES,))]
    assert source.labels == (NAMES if more else None)
    assert source.zero_shot is not None
    assert (source.zero_shot.origin, source.zero_shot.logit_bias) == (path.name, None)
    assert source.zero_shot.logit_scale == pytest.approx(scale)


def test_siglip_has_a_scale_and_a_bias(tmp_path: Path) -> None:
    texts = matrix(width=64)
    request = dataclasses.replace(SIGLIP, class_embeddings=saved(tmp_path / "texts.npy", texts))
    with pytest.raises(UsageError, match=r"is a SigLIP, whose logits have a scale and a bias .* `logit_scale`"):
        load(request)
    request = dataclasses.replace(request, logit_scale=112.0, logit_bias=-16.5)
    found, source = logits(request)
    with torch.inference_mode():
        expected = 112 * normalize(tower(SIGLIP)(IMAGES), dim=-1) @ normalize(torch.from_numpy(texts), dim=-1).T - 16.5
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert "zero-shot classifier: 112 x cosine - 16.5 with the class embeddings of texts.npy" in str(source.zero_shot)
    assert [(output.kind, output.shape) for output in source.outputs] == [("label_logits", (CLASSES,))]
    assert source.task == "multi-label"
    with pytest.raises(UsageError, match="`softmax` makes the labels share one whole"):
        load(dataclasses.replace(request, softmax=True))
    shares, source = logits(dataclasses.replace(request, task="classification", softmax=True))
    torch.testing.assert_close(shares, expected.softmax(-1), atol=1e-6, rtol=1e-4)
    assert source.task == "classification"
    with pytest.raises(UsageError, match="`task=regression` contradicts class texts"):
        load(dataclasses.replace(request, task="regression"))


def test_any_embedding_is_compared_where_the_scale_is_given(tmp_path: Path) -> None:
    texts = matrix(width=32)
    path = saved(tmp_path / "texts.npy", texts)
    request = dataclasses.replace(TINY, head="features", class_embeddings=path)
    with pytest.raises(UsageError, match="is no CLIP by its name, and nothing says what the cosine is multiplied with"):
        load(request)
    found, _ = logits(dataclasses.replace(request, logit_scale=10.0, softmax=True))
    live = tower(TINY)
    with torch.inference_mode():
        embedding = live.forward_head(live.forward_features(IMAGES), pre_logits=True)
        expected = (10 * normalize(embedding, dim=-1) @ normalize(torch.from_numpy(texts), dim=-1).T).softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_square_matrix_is_settled_by_its_lengths(tmp_path: Path) -> None:
    texts = matrix(WIDTH, WIDTH)
    unit = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    rows, _ = logits(dataclasses.replace(CLIP, class_embeddings=saved(tmp_path / "rows.npy", unit)))
    columns, _ = logits(dataclasses.replace(CLIP, class_embeddings=saved(tmp_path / "columns.npy", unit.T)))
    assert torch.equal(rows, columns)
    assert float(rows.std()) > 1
    with pytest.raises(InputError, match=r"are square, \[24, 24\]: whether rows or columns are the classes cannot be told"):
        load(dataclasses.replace(CLIP, class_embeddings=saved(tmp_path / "raw.npy", texts)))


def test_feature_maps_come_after_the_logits(tmp_path: Path) -> None:
    path = saved(tmp_path / "texts.npy", matrix())
    exposed, source = load(dataclasses.replace(CLIP, class_embeddings=path, features=(0, 1)))
    with torch.inference_mode():
        several = exposed(IMAGES)
    assert [output.name for output in source.outputs] == ["logits", "feature_0", "feature_1"]
    torch.testing.assert_close(several[0], logits(dataclasses.replace(CLIP, class_embeddings=path))[0])


def test_other_classes_are_another_model(tmp_path: Path) -> None:
    one = load(dataclasses.replace(CLIP, class_embeddings=saved(tmp_path / "one.npy", matrix())))[1]
    two = load(dataclasses.replace(CLIP, class_embeddings=saved(tmp_path / "two.npy", matrix()[::-1])))[1]
    assert one.weights_sha256 != two.weights_sha256


# JetPack 5.1 has neither LayerNormalization nor opset 18.
@pytest.mark.parametrize(("target", "jetpack"), [("jetson-xavier-nx", "5.1.2"), ("jetson-orin-nano-8gb", "6.2")])
def test_a_bundle_ends_in_a_normalization_and_a_product(target: str, jetpack: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "texts.npz", matrix(), names=np.array(NAMES))
    model = dataclasses.replace(CLIP, class_embeddings=path)
    request = BuildRequest(model=model, target=target, jetpack=jetpack, precision="fp16", out=tmp_path / "bundle")
    bundle, report = run(request, silent)
    assert report.verdict == "passed"
    last = [node for node in read((bundle.root / "model.onnx").read_bytes()).graph if str(node.name).startswith("zero_shot")]
    assert [node.op_type for node in last if node.op_type != "Cast"] == ["ReduceL2", "Clip", "Div", "Gemm"]
    # The length is a statistic, which float16 would overflow or lose.
    wide = {"zero_shot/ReduceL2", "zero_shot/Clip", "zero_shot/Div"}
    if jetpack == "5.1.2":
        assert bundle.manifest.engine is not None
        assert wide <= {*bundle.manifest.engine["recipe"]["fp32_layers"]}
    else:
        assert {str(node.name) for node in last if node.outputs[0].dtype == ir.DataType.FLOAT} >= wide
    assert bundle.manifest.labels == NAMES
    assert bundle.manifest.model["zero_shot"]["logit_scale"] == 100


def test_the_exported_graph_computes_the_cosines(tmp_path: Path) -> None:
    exposed, source = load(dataclasses.replace(CLIP, class_embeddings=saved(tmp_path / "texts.npy", matrix())))
    batch = BatchRange.parse("1:2:4")
    exported = export_onnx(exposed, source, tmp_path, opset=17, layernorm_op=True, batch=batch)
    with torch.inference_mode():
        expected = 100 * normalize(tower(CLIP)(IMAGES), dim=-1) @ normalize(torch.from_numpy(matrix()), dim=-1).T
    np.testing.assert_allclose(onnx_logits(exported.path, IMAGES.numpy()), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "request_", [CLIP, SIGLIP, dataclasses.replace(CLIP, head="features")], ids=["clip", "siglip", "wide"]
)
def test_it_is_timed_with_stand_ins_of_the_same_size(
    request_: ModelRequest, embedding_bundle: Built, tmp_path: Path
) -> None:
    width = WIDTH if request_ is CLIP else 64
    path = saved(tmp_path / "texts.npy", matrix(width=width))
    _, source = load(dataclasses.replace(request_, class_embeddings=path, logit_scale=100.0, logit_bias=-10.0))
    made = embedding_bundle.bundle.manifest
    manifest = dataclasses.replace(
        made, model=source.to_json(), outputs=source.outputs, preprocess=source.preprocess, labels=None
    )
    beside = pytorch_beside(manifest, gpu=False)
    assert beside.skipped is None
    outputs: Any = beside.contenders[0].run(np.zeros((2, 3, 32, 32), np.float32))
    assert [output.shape for output in outputs] == [(2, CLASSES)]


# -- with open_clip itself ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Theirs:
    """A small model of open_clip, and its image tower for timm."""

    live: Any
    tokenize: Any
    folder: Path
    request: ModelRequest


def theirs(folder: Path, request: ModelRequest, config: dict[str, Any]) -> Theirs:
    import open_clip

    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    config = {**config, "text_cfg": {**text, **config.get("text_cfg", {})}}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(3)
    name = f"local-dir:{folder}"
    live = open_clip.create_model(name).eval()
    tensors = {key: value.contiguous() for key, value in live.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    # As timm itself reads open_clip's files.
    own = checkpoint_filter_fn(dict(tensors), tower(request))
    save_file({key: value.contiguous() for key, value in own.items()}, folder / "tower.safetensors")
    asked = dataclasses.replace(request, checkpoint=folder / "tower.safetensors", open_clip=name)
    return Theirs(live, open_clip.get_tokenizer(name), folder, asked)


@pytest.fixture(scope="module")
def open_clips(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    """A CLIP with open_clip's own ViT."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    return theirs(tmp_path_factory.mktemp("open_clip") / "clip", CLIP, {"embed_dim": WIDTH, "vision_cfg": vision})


@pytest.fixture
def siglips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Theirs:
    """A SigLIP with timm's ViT and its map pooling, which open_clip makes without keywords, made small."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **given: create(name, **{"img_size": 32, **KWARGS, **given}))
    vision = {"image_size": 32, "timm_model_name": SIGLIP.name, "timm_pool": "map", "timm_proj": "none"}
    config = {"embed_dim": 64, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision}
    text = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    return theirs(tmp_path / "siglip", SIGLIP, {**config, "text_cfg": text})


def classes_file(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    path = folder / "classes.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    return path


@needs_open_clip
@pytest.mark.parametrize("templates", [(), TEMPLATES], ids=["default", "two"])
def test_logits_are_open_clips_own(templates: tuple[str, ...], open_clips: Theirs, tmp_path: Path) -> None:
    import open_clip

    request = dataclasses.replace(open_clips.request, classes=classes_file(tmp_path), templates=templates)
    found, source = logits(request)
    with torch.inference_mode():
        texts = templates or TEMPLATES[:1]
        weights = open_clip.build_zero_shot_classifier(open_clips.live, open_clips.tokenize, NAMES, texts)
        expected = open_clips.live.logit_scale.exp() * open_clips.live.encode_image(IMAGES, normalize=True) @ weights
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float(expected.std()) > 0.1
    assert source.labels == NAMES
    assert source.zero_shot is not None
    assert source.zero_shot.templates == texts
    assert source.zero_shot.origin == "open_clip local-dir:clip"


@needs_open_clip
def test_a_siglips_logits_are_open_clips_own(siglips: Theirs, tmp_path: Path) -> None:
    request = dataclasses.replace(siglips.request, classes=classes_file(tmp_path))
    found, source = logits(request)
    with torch.inference_mode():
        texts = siglips.tokenize([TEMPLATES[0].format(name) for name in NAMES])
        expected, _ = siglips.live.get_logits(IMAGES, texts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert source.zero_shot is not None
    assert source.zero_shot.logit_bias == -10


@needs_open_clip
def test_the_file_of_the_page_is_read(open_clips: Theirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    page = (ROOT / "vitexport" / "source" / "README.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "open_clip" in block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *_, **__: (open_clips.live, None, None))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: open_clips.tokenize)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - the page's own code
    asked = dataclasses.replace(open_clips.request, open_clip=None, class_embeddings=tmp_path / "birds.npz")
    found, source = logits(asked)
    assert source.labels == ("robin", "wren", "jay")
    monkeypatch.undo()
    expected, _ = logits(dataclasses.replace(open_clips.request, classes=classes_file(tmp_path, source.labels)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@needs_open_clip
def test_a_tower_of_another_model_is_refused(open_clips: Theirs, tmp_path: Path) -> None:
    request = dataclasses.replace(open_clips.request, classes=classes_file(tmp_path), checkpoint=None, seed=4)
    with pytest.raises(InputError, match=r"is not that of open_clip's local-dir:clip: their embeddings .* have cosine"):
        load(request)
    with pytest.raises(UsageError, match="Which text tower belongs to vit_base_patch16_clip_224 cannot be told"):
        load(dataclasses.replace(request, open_clip=None))


@needs_open_clip
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ant", "bee", "ant"), "has 'ant' twice, as class 0 and 2"),
        (("ant", "a long text of words " * 5), "is longer than the 16 tokens that the text tower takes"),
        (("only",), "hold one class; a classifier needs two or more"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(
    names: tuple[str, ...], message: str, open_clips: Theirs, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load(dataclasses.replace(open_clips.request, classes=classes_file(tmp_path, names)))


@needs_open_clip
def test_a_text_of_just_the_right_length_is_taken(open_clips: Theirs, tmp_path: Path) -> None:
    # Start, nine words, end: eleven of 16 tokens; and 14 words, which fill all of them.
    for words in (9, 14):
        names = (" ".join(["cat"] * words), " ".join(["dog"] * words))
        request = dataclasses.replace(open_clips.request, classes=classes_file(tmp_path, names), templates=("{}",))
        assert load(request)[1].num_classes == 2


@needs_open_clip
def test_the_text_tower_is_told_from_the_hubs_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vitexport.source.open_clip_texts.is_cached", lambda _: True)
    expected = {
        "vit_base_patch16_clip_quickgelu_224.openai": TextModel(name="ViT-B-16-quickgelu", weights="openai"),
        "vit_large_patch14_clip_224.laion400m_e32": TextModel(name="ViT-L-14", weights="laion400m_e32"),
    }
    for name, model in expected.items():
        assert find_text_model(ModelRequest(name=name, classes=tmp_path)) == model
    with pytest.raises(UsageError, match="nothing names it"):
        find_text_model(ModelRequest(name="vit_base_patch16_clip_224.laion2b", classes=tmp_path))


@needs_open_clip
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ViT-B-17:openai", "has no model named 'ViT-B-17'"),
        ("ViT-B-16", "names no weights; give ViT-B-16:TAG, with one of openai"),
        ("ViT-B-16:opanai", "no such file, and open_clip has no such weights"),
        ("local-dir:nowhere", "has no open_clip_config.json"),
    ],
)
def test_a_text_tower_that_is_not_there_is_refused(text: str, message: str) -> None:
    with pytest.raises(VitexportError, match=message):
        find_text_model(dataclasses.replace(CLIP, open_clip=text))


@needs_open_clip
def test_a_plan_loads_no_text_tower(open_clips: Theirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("the text tower was loaded")

    monkeypatch.setattr("vitexport.source.open_clip_texts._load", refuse)
    model = dataclasses.replace(open_clips.request, classes=classes_file(tmp_path))
    found = plan(BuildRequest(model=model, target="jetson-orin-nano-8gb", out=tmp_path / "out"))
    assert found.exit_code == 0
    assert "embed 5 class names with open_clip's text tower, for a zero-shot classifier" in found.steps


def test_without_open_clip_the_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingDependencyError, match="pip install open_clip_torch"):
        load(dataclasses.replace(CLIP, classes=classes_file(tmp_path), open_clip="ViT-B-16:openai"))


# -- refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": Path("x")}, "`class_embeddings` and `classes` both"),
        ({"templates": ("a {}",)}, "`templates` is for the text tower"),
        ({"open_clip": "ViT-B-16:openai"}, "`open_clip` is for the text tower"),
        ({"class_embeddings": None, "logit_scale": 100.0}, "`logit_scale` is for zero-shot classifiers"),
        ({"class_embeddings": None, "logit_bias": 1.0}, "`logit_bias` is for zero-shot classifiers"),
        ({"class_embeddings": None, "classes": Path("x"), "templates": ("a photo",)}, "has no single {} for the class name"),
        ({"logit_scale": 4.6052}, "looks like the logarithm that checkpoints store; give its exponential, 100"),
        ({"logit_scale": -1.0}, "is not a factor of the cosine"),
        ({"logit_scale": math.nan}, "is not a factor of the cosine"),
        ({"logit_bias": math.inf}, "is not a bias of logits"),
        ({"head": "tokens"}, "`head=tokens` gives one embedding for each token"),
        ({"head": "features"}, r"are \[5, 24\], and vit_base_patch16_clip_224 embeds images in 64 channels"),
    ],
)
def test_options_that_contradict_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    request = dataclasses.replace(CLIP, class_embeddings=saved(tmp_path / "texts.npy", matrix()))
    with pytest.raises(VitexportError, match=message):
        load(dataclasses.replace(request, **changes))


def test_a_recorded_scale_that_is_contradicted_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "texts.npz", matrix(), logit_scale=math.log(100))
    assert load(dataclasses.replace(CLIP, class_embeddings=path, logit_scale=100.0))[1].zero_shot is not None
    with pytest.raises(UsageError, match=r"`logit_scale=50` contradicts texts\.npz, which says 100"):
        load(dataclasses.replace(CLIP, class_embeddings=path, logit_scale=50.0))


def test_a_classifier_of_its_own_is_no_image_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "texts.npy", matrix(CLASSES, 7))
    names = tuple(f"class {index}" for index in range(7))
    monkeypatch.setattr("vitexport.source.timm_models.class_names", lambda *_: (names, None))
    with pytest.raises(UsageError, match=r"ends in a classifier of 7 classes \(class 0, …\), not in an embedding"):
        load(dataclasses.replace(TINY, class_embeddings=path, logit_scale=100.0))


def test_weights_of_another_activation_are_refused(tmp_path: Path) -> None:
    from vitexport.source.zero_shot import check_tower

    model = timm.create_model("vit_base_patch16_clip_224.openai", pretrained=False, **KWARGS)
    request = ModelRequest(name="vit_base_patch16_clip_224.openai", class_embeddings=tmp_path)
    with pytest.raises(UsageError, match=r"trained with QuickGELU.* Use vit_base_patch16_clip_quickgelu_224\.openai"):
        check_tower(model, request, None)
    right = timm.create_model("vit_base_patch16_clip_quickgelu_224.openai", pretrained=False, **KWARGS)
    check_tower(right, dataclasses.replace(request, name="vit_base_patch16_clip_quickgelu_224.openai"), None)


def _npz(path: Path, header: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("class_embeddings.npy", header)


def _header(text: str, data: bytes = b"") -> bytes:
    body = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body + data


def changed(row: int, value: float) -> NDArray[np.float32]:
    values = matrix()
    values[row] = value
    return values


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000), }"
MALFORMED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing": ("a.npy", lambda _: None, "do not exist or are not a file"),
    "a folder": ("a.npy", Path.mkdir, "do not exist or are not a file"),
    "suffix": ("a.csv", lambda path: path.write_text("1,2"), "end in '.csv'"),
    "empty npy": ("a.npy", Path.touch, "are damaged"),
    "empty npz": ("a.npz", Path.touch, "are damaged"),
    "empty safetensors": ("a.safetensors", Path.touch, "are damaged"),
    "empty pt": ("a.pt", Path.touch, "are damaged"),
    "text": ("a.npy", lambda path: path.write_text("ant\nbee\n"), "are damaged"),
    "npz without members": ("a.npz", lambda path: zipfile.ZipFile(path, "w").close(), r"hold no matrices \(nothing\)"),
    "pickled npy": ("a.npy", lambda path: np.save(path, np.array([{}], object)), "hold more than numbers"),
    "pickled npz": ("a.npz", lambda path: np.savez(path, a=np.array([{}], object)), "hold more than numbers"),
    "pickled pt": ("a.pt", lambda path: torch.save(torch.nn.Linear(2, 2), path), "hold more than numbers"),
    "a list in pt": ("a.pt", lambda path: torch.save([1, 2], path), "hold a list; expected a tensor"),
    "NaN": ("a.npy", lambda path: np.save(path, changed(1, math.nan)), "hold NaN or infinity"),
    "infinity": ("a.npy", lambda path: np.save(path, changed(1, math.inf)), "hold NaN or infinity"),
    "zeros": ("a.npy", lambda path: np.save(path, changed(2, 0)), "class 2 is all zeros"),
    "equal rows": ("a.npy", lambda path: np.save(path, np.repeat(matrix(), 2, 0)), "classes 0 and 1 are the same"),
    "one class": ("a.npy", lambda path: np.save(path, matrix(1)), "hold one class"),
    "no class": ("a.npy", lambda path: np.save(path, np.zeros((0, WIDTH), np.float32)), r"shape \[0, 24\]"),
    "width": ("a.npy", lambda path: np.save(path, matrix(width=25)), r"are \[5, 25\], and .* in 24 channels"),
    "1-D": ("a.npy", lambda path: np.save(path, matrix()[0]), r"an array of shape \[24\]"),
    "3-D": ("a.npy", lambda path: np.save(path, matrix()[None]), r"an array of shape \[1, 5, 24\]"),
    "integers": ("a.npy", lambda path: np.save(path, (matrix() * 9).astype(np.int8)), "of type int8; expected floats"),
    "complex": ("a.npy", lambda path: np.save(path, matrix() * 1j), "of type complex64; expected floats"),
    "booleans": ("a.npy", lambda path: np.save(path, matrix() > 0), "of type bool; expected floats"),
    "strings": ("a.npy", lambda path: np.save(path, np.array([["a"] * WIDTH] * 5)), "expected floats"),
    "sparse": ("a.pt", lambda path: torch.save(torch.eye(WIDTH).to_sparse(), path), "sparse, quantized or without data"),
    "two matrices": ("a.npz", lambda path: np.savez(path, a=matrix(), b=matrix()), r"hold 2 matrices \(a, b\)"),
    "names": ("a.npz", lambda path: saved(path, matrix(), names=np.array(NAMES[:3])), "hold 5 classes and 3 names"),
    "numbers as names": ("a.npz", lambda path: saved(path, matrix(), names=np.arange(5)), "are not class names"),
    "names as one text": ("a.npz", lambda path: saved(path, matrix(), names=np.array("a")), "are not class names"),
    "names that are no JSON": (
        *("a.safetensors", lambda path: save_file({"a": torch.rand(5, WIDTH)}, path, metadata={"names": "ant, bee"})),
        "are damaged",
    ),
    "a factor for its logarithm": ("a.npz", lambda path: saved(path, matrix(), logit_scale=100.0), "expected the logarithm"),
    "two scales": ("a.npz", lambda path: saved(path, matrix(), logit_scale=np.ones(2)), "is not one finite number"),
    "bias NaN": ("a.npz", lambda path: saved(path, matrix(), logit_bias=math.nan), "is not one finite number"),
    "cut npy": ("a.npy", lambda path: path.write_bytes(_header(HUGE.replace("1000000", "10"), b"1234")), "are damaged"),
    "huge npy": ("a.npy", lambda path: path.write_bytes(_header(HUGE)), "are damaged"),
    "huge npz": ("a.npz", lambda path: _npz(path, _header(HUGE)), "are damaged"),
    "long header": ("a.npy", lambda path: path.write_bytes(_header("{" + " " * 60000)), "are damaged"),
    "code in the header": ("a.npy", lambda path: path.write_bytes(_header("__import__('os').abort()")), "are damaged"),
    "huge safetensors": ("a.safetensors", lambda path: path.write_bytes(b"\xff" * 8 + b"{}"), "are damaged"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_file_that_cannot_be_is_refused(case: str, tmp_path: Path) -> None:
    name, make, message = MALFORMED[case]
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError, match=message):
        load(dataclasses.replace(CLIP, class_embeddings=path))


def test_a_bfloat16_matrix_is_read_as_it_is(tmp_path: Path) -> None:
    values = torch.from_numpy(matrix()).bfloat16()
    save_file({"class_embeddings": values, "other": torch.eye(3)}, tmp_path / "a.safetensors")
    assert np.array_equal(read_class_embeddings(tmp_path / "a.safetensors").values, values.double().numpy())


def test_a_picture_without_an_embedding_has_finite_logits() -> None:
    head = ZeroShotHead(np.eye(3), 100.0, 0.0)
    assert torch.equal(head(torch.zeros(1, 3)), torch.zeros(1, 3))
