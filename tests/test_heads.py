"""What a model can end in: names, kinds and shapes of the outputs, and that they are what timm itself computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, TINY
from exports import export_onnx
from graphs import read, run
from torch import nn

from vitexport.artifacts import BatchRange, OutputSpec, describe_outputs
from vitexport.errors import InputError, ToolchainError, UsageError
from vitexport.source import Exposed, ModelRequest, exportable, load
from vitexport.source.heads import expose
from vitexport.validate.reference import reference_outputs

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
LOGITS = OutputSpec(name="logits", kind="logits", shape=(7,))
EMBEDDING = OutputSpec(name="embedding", kind="embedding", shape=(32,))
TOKENS = OutputSpec(name="tokens", kind="tokens", shape=(17, 32))
MAPS = tuple(OutputSpec(name=f"feature_{index}", kind="feature_map", shape=(32, 4, 4)) for index in range(2))
SWIN = ModelRequest(
    name="swin_tiny_patch4_window7_224",
    pretrained=False,
    kwargs={"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4},
    img_size=32,
    num_classes=7,
)
# Its feature maps have the channels first, Swin's last.
PVT = ModelRequest(
    name="pvt_v2_b0",
    pretrained=False,
    kwargs={"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2), "sr_ratios": (2, 1), "mlp_ratios": (2, 2)},
    num_classes=7,
    img_size=28,
)


def asked(request: ModelRequest = TINY, **changes: Any) -> ModelRequest:
    return dataclasses.replace(request, **changes)


def own(request: ModelRequest = TINY) -> Any:
    """Timm's model, made without vitexport: the same weights come from the same seed."""
    torch.manual_seed(request.seed)
    sizes = {"img_size": request.img_size} if request.name != PVT.name else {}
    return timm.create_model(request.name, num_classes=request.num_classes, **sizes, **request.kwargs).eval()


def images_for(request: ModelRequest) -> torch.Tensor:
    return IMAGES[..., : request.img_size, : request.img_size]


def computed(exposed: Exposed, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        outputs = exposed(images)
    assert isinstance(outputs, tuple)
    return {spec.name: output for spec, output in zip(exposed.specs, outputs, strict=True)}


def assert_computes(request: ModelRequest, expected: dict[OutputSpec, torch.Tensor]) -> None:
    """The outputs are described as `expected`, in its order, and have its values."""
    exposed, source = load(request)
    assert source.outputs == exposed.specs == tuple(expected)
    seen = computed(exposed, images_for(request))
    for spec, values in expected.items():
        assert seen[spec.name].shape == values.shape == (2, *spec.shape)
        # Attention is written out, which sums in another order.
        torch.testing.assert_close(seen[spec.name], values, atol=1e-5, rtol=1e-4)
        assert float(values.std()) > 1e-3


def timms() -> dict[OutputSpec, torch.Tensor]:
    """Everything that the tiny model can give, computed by timm's own methods."""
    model = own()
    with torch.inference_mode():
        trunk = model.forward_features(IMAGES)
        maps = model.forward_intermediates(IMAGES, indices=[0, 1], output_fmt="NCHW", intermediates_only=True)
        return {
            LOGITS: model(IMAGES),
            EMBEDDING: model.forward_head(trunk, pre_logits=True),
            TOKENS: trunk,
            **dict(zip(MAPS, maps, strict=True)),
        }


@pytest.mark.parametrize(
    ("changes", "specs"),
    [
        ({}, (LOGITS,)),
        ({"head": "classifier"}, (LOGITS,)),
        ({"head": "none"}, (EMBEDDING,)),
        ({"head": "features"}, (EMBEDDING,)),
        ({"head": "tokens"}, (TOKENS,)),
        ({"features": (0, 1)}, MAPS),
        ({"features": (1,)}, MAPS[1:]),
        ({"features": (0, 1), "head": "classifier"}, (LOGITS, *MAPS)),
        ({"features": (0,), "head": "features"}, (EMBEDDING, MAPS[0])),
        ({"features": (1,), "head": "tokens"}, (TOKENS, MAPS[1])),
    ],
    ids=str,
)
def test_a_model_ends_in_what_was_asked_for(changes: dict[str, Any], specs: tuple[OutputSpec, ...]) -> None:
    expected = timms()
    assert_computes(asked(**changes), {spec: expected[spec] for spec in specs})


@pytest.mark.parametrize("features", [(), (0,)])
def test_softmax_takes_the_place_of_the_logits(features: tuple[int, ...]) -> None:
    expected = timms()
    probabilities = OutputSpec(name="probabilities", kind="probabilities", shape=(7,))
    maps = {MAPS[index]: expected[MAPS[index]] for index in features}
    request = asked(softmax=True, features=features, head="classifier")
    assert_computes(request, {probabilities: torch.softmax(expected[LOGITS], dim=-1), **maps})
    assert load(request)[1].num_classes == 7


def test_only_the_end_differs_and_not_the_weights() -> None:
    sources = {str(head): load(asked(head=head))[1] for head in (None, "classifier", "none", "features", "tokens")}
    assert len({source.weights_sha256 for source in sources.values()}) == 1
    whole = sources["classifier"].parameters
    assert sources["None"].parameters == sources["features"].parameters == whole
    # The classifier is gone with its weights and biases.
    assert sources["none"].parameters == whole - (32 * 7 + 7)


@pytest.mark.parametrize("request_", [SWIN, PVT], ids=lambda request: request.name)
def test_tokens_and_maps_of_a_hierarchical_model_are_in_one_order(request_: ModelRequest) -> None:
    model, images = own(request_), images_for(request_)
    with torch.inference_mode():
        trunk = model.forward_features(images)
        [last] = model.forward_intermediates(images, indices=[1], output_fmt="NCHW", intermediates_only=True)
    channels_last = request_ is SWIN
    rows, columns, channels = trunk.shape[1:] if channels_last else (*trunk.shape[2:], trunk.shape[1])
    assert channels == model.num_features
    flat = trunk.reshape(2, -1, channels) if channels_last else trunk.reshape(2, channels, -1).permute(0, 2, 1)
    tokens = OutputSpec(name="tokens", kind="tokens", shape=(rows * columns, channels))
    feature = OutputSpec(name="feature_1", kind="feature_map", shape=(channels, rows, columns))
    assert_computes(asked(request_, head="tokens", features=(1,)), {tokens: flat, feature: last})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"softmax": True, "head": "none"}, "`softmax` needs a classifier head"),
        ({"softmax": True, "head": "features"}, "needs a classifier head"),
        ({"softmax": True, "head": "tokens"}, "needs a classifier head"),
        ({"softmax": True, "features": (0,)}, "needs a classifier head"),
        ({"softmax": True, "num_classes": 0}, "needs a classifier head"),
        ({"features": (1, 0)}, r"`features=1,0`: give each index once, in rising order"),
        ({"features": (0, 0)}, r"`features=0,0`: give each index once"),
        ({"features": (0,), "head": "none"}, r"`features` with `head=none`: give `features` alone, or with"),
        ({"head": "classifier", "num_classes": 0}, r"has no classifier \(num_classes is 0\); give `num_classes`"),
    ],
    ids=str,
)
def test_options_that_contradict_one_another_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(asked(**changes))


def test_a_feature_beyond_the_last_block_is_refused() -> None:
    with pytest.raises(InputError, match=r"vit_tiny_patch16_224 .*has no such output: .*2"):
        load(asked(features=(0, 2)))


def test_a_model_without_intermediate_features_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`features`: timm's Linear has no forward_intermediates; choose another model"):
        expose(nn.Linear(2, 2), asked(features=(0,)))


@pytest.mark.parametrize("returned", [{"a": torch.zeros(1)}, [], None, [torch.zeros(1), None]])
def test_what_is_no_tensor_is_no_output(returned: object) -> None:
    class Odd(nn.Module):
        def forward(self, _image: torch.Tensor) -> object:
            return returned

    with pytest.raises(InputError, match=r"the model returns .* expected a tensor, or several"):
        Exposed(Odd(), "none")(IMAGES)


def test_several_tensors_of_one_model_are_numbered() -> None:
    exposed = Exposed(nn.Identity(), "none")
    specs = exposed.describe([torch.zeros(1, 4), torch.zeros(1, 9, 4)])
    assert [(spec.name, spec.kind, spec.shape) for spec in specs] == [
        ("embedding_0", "embedding", (4,)),
        ("tokens_1", "tokens", (9, 4)),
    ]


EVA = ModelRequest(
    name="eva02_tiny_patch14_224",
    pretrained=False,
    kwargs={"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    img_size=32,
)


@pytest.mark.parametrize("request_", [asked(num_classes=0), EVA], ids=["num_classes=0", "eva02"])
def test_a_model_without_classifier_gives_its_embedding(request_: ModelRequest) -> None:
    model = own(asked(request_, num_classes=0))
    assert model.num_classes == 0
    with torch.inference_mode():
        assert_computes(request_, {EMBEDDING: model(IMAGES)})
    assert load(request_)[1].num_classes is None


def test_class_names_are_only_of_a_model_that_names_classes() -> None:
    sample = ModelRequest(name=f"local-dir:{ROOT / 'scripts' / 'sample'}")
    assert load(asked(sample, softmax=True))[1].labels == tuple("0123456789")
    assert load(asked(sample, features=(0,), head="classifier"))[1].labels == tuple("0123456789")
    for changes in ({"head": "features"}, {"head": "none"}, {"features": (0,)}):
        source = load(asked(sample, **changes))[1]
        assert (source.labels, source.synsets, source.num_classes) == (None, None, None)


def test_outputs_are_described_in_a_few_words() -> None:
    assert describe_outputs((LOGITS, *MAPS)) == "7 classes, feature_0 [32, 4, 4], feature_1 [32, 4, 4]"
    assert describe_outputs((EMBEDDING,)) == "embedding [32]"


@pytest.mark.parametrize("change", [1.001, 0.0, float("nan")])
def test_a_form_that_computes_something_else_is_refused(change: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(model: Any) -> None:
        with torch.no_grad():
            model.model.head.weight.mul_(change)

    monkeypatch.setattr(exportable, "unfuse_attention", faulty)
    with pytest.raises(
        ToolchainError, match=r"The form of Exposed that exports computes something else: .*expected at most"
    ):
        load(TINY)


@pytest.mark.parametrize(
    "request_",
    [
        asked(head="classifier", features=(0, 1)),
        asked(head="tokens"),
        asked(head="features", features=(1,)),
        asked(SWIN, head="none"),
        asked(SWIN, features=(0, 1)),
        asked(PVT, features=(0, 1), head="tokens"),
    ],
    ids=lambda request: f"{request.name} {request.head} {request.features}",
)
def test_every_output_of_the_graph_agrees_with_pytorch_at_every_batch(request_: ModelRequest, tmp_path: Path) -> None:
    exposed, source = load(request_)
    limits = BatchRange.parse("1:2:4")
    path = export_onnx(exposed, source, tmp_path, opset=20, layernorm_op=True, batch=limits).path
    graph = read(path.read_bytes()).graph
    assert [str(value.name) for value in graph.outputs] == [spec.name for spec in source.outputs]
    # Modules go by timm's names, though the model is exported inside another module.
    modules = {name for name, _ in exposed.model.named_modules()}
    names = {str(node.name).partition("/")[0] for node in graph if "/" in str(node.name)}
    assert names
    assert names <= modules
    for count in (1, 3):
        images = np.random.default_rng(count).normal(0, 1, (count, *IMAGES.shape[1:])).astype(np.float32)
        images = images[..., : request_.img_size, : request_.img_size]
        for name, expected in reference_outputs(exposed, source.outputs, images).items():
            seen = run(path, images, output=name)
            assert seen.shape == expected.shape
            np.testing.assert_allclose(seen, expected, atol=1e-4 * float(np.abs(expected).max()))


def test_hiera_gives_its_head_beside_maps_of_early_stages() -> None:
    """timm's Hiera stops behind the last stage that is asked for, unless it is told not to."""
    request = ModelRequest(
        name="hiera_tiny_224",
        pretrained=False,
        kwargs={"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)},
        img_size=64,
        num_classes=7,
    )
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for head in ("classifier", "features", "tokens"):
        with torch.inference_mode():
            alone = load(dataclasses.replace(request, head=head))[0](images)[0]
            beside = load(dataclasses.replace(request, head=head, features=(0, 1)))[0](images)
        assert len(beside) == 3
        torch.testing.assert_close(beside[0], alone)


def test_features_are_counted_from_the_front() -> None:
    with pytest.raises(UsageError, match=r"`features=-1,2`: count blocks or stages from 0"):
        load(asked(features=(-1, 2)))
