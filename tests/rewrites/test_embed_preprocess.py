from __future__ import annotations

from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import exported
from graphs import read, run, valid_in
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitexport.artifacts import INPUT_NAME
from vitexport.errors import ToolchainError
from vitexport.preprocess import RESAMPLING, CropMode, PreprocessSpec, preprocess
from vitexport.rewrites import apply
from vitexport.rewrites.embed_preprocess import FILTERS, SUPPORT, EmbedPreprocess, preprocess_model
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.validate.pictures import compare_pictures, odd_pictures
from vitexport.validate.probes import PHOTOGRAPHS

MODES: tuple[CropMode, ...] = get_args(CropMode)
SIZES = ((451, 300), (300, 451), (100, 300), (90, 91), (1, 60), (60, 1), (5, 7), (40, 40), (1, 1), (64, 64), (200, 7))
OUTPUT = "pixels"


def spec_of(**changes: Any) -> PreprocessSpec:
    values: dict[str, Any] = {
        "height": 64,
        "width": 64,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
    }
    return PreprocessSpec(**(values | changes))


def alone(spec: PreprocessSpec, opset: int = 20) -> ir.Model:
    model = preprocess_model(spec, output=OUTPUT, opset=opset)
    apply(model, EmbedPreprocess(spec))
    return model


def computed(spec: PreprocessSpec) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(ir.to_proto(alone(spec)).SerializeToString(), threads=1)


def photograph(width: int, height: int) -> Image.Image:
    with Image.open(PHOTOGRAPHS / "chelsea.jpg") as picture:
        return picture.convert("RGB").resize((width, height))


def test_every_filter_of_pillow_is_there() -> None:
    assert set(SUPPORT) == set(RESAMPLING) == {*FILTERS, "nearest"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", sorted(RESAMPLING))
@pytest.mark.parametrize(("height", "width", "crop_pct"), [(64, 64, 0.875), (48, 80, 1.0)])
def test_pixels_are_pillow_s(interpolation: str, mode: CropMode, height: int, width: int, crop_pct: float) -> None:
    spec = spec_of(height=height, width=width, crop_pct=crop_pct, interpolation=interpolation, crop_mode=mode)
    backend = computed(spec)
    for size in SIZES:
        picture = photograph(*size)
        seen = backend.tensors(np.asarray(picture)[None])[0]
        assert seen.shape == (1, 3, height, width)
        np.testing.assert_array_equal(seen[0], preprocess(picture, spec), err_msg=str(size))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["nearest", "box", "bicubic"])
def test_a_grey_model_takes_rgb_and_sees_pillow_s_grey(interpolation: str, mode: CropMode) -> None:
    spec = spec_of(height=48, width=64, mean=(0.449,), std=(0.226,), interpolation=interpolation, crop_mode=mode)
    backend = computed(spec)
    for size in SIZES:
        picture = photograph(*size)
        seen = backend.tensors(np.asarray(picture)[None])[0]
        assert seen.shape == (1, 1, 48, 64)
        np.testing.assert_array_equal(seen[0], preprocess(picture, spec), err_msg=str(size))


def test_every_grey_of_pillow_is_computed() -> None:
    """Pillow's conversion of all 2^24 colours, by red; the graph neither resizes nor normalizes visibly here."""
    spec = spec_of(height=256, width=256, mean=(0.0,), std=(1.0,), crop_pct=1.0)
    backend = computed(spec)
    green, blue = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    for red in range(0, 256, 15):
        colours = np.stack([np.full_like(green, red), green, blue], axis=-1).astype(np.uint8)
        seen = np.rint(backend.tensors(colours[None])[0][0, 0] * 255).astype(np.uint8)
        np.testing.assert_array_equal(seen, np.asarray(Image.fromarray(colours).convert("L")))


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_each_channel_of_an_array_is_resized_as_a_grey_picture(channels: int) -> None:
    spec = spec_of(mean=(0.4,) * channels, std=(0.2,) * channels, crop_mode="border")
    backend = computed(spec)
    for width, height in SIZES:
        array = np.random.default_rng(width).integers(0, 256, (height, width, channels), dtype=np.uint8)
        np.testing.assert_array_equal(backend.tensors(array[None])[0][0], preprocess(array, spec))


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    seed=st.integers(0, 99),
    crop_pct=st.floats(0.3, 1.0),
    interpolation=st.sampled_from(sorted(RESAMPLING)),
)
def test_noise_of_any_size_is_pillow_s_too(width: int, height: int, seed: int, crop_pct: float, interpolation: str) -> None:
    spec = spec_of(height=37, width=37, crop_pct=crop_pct, interpolation=interpolation)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    seen = computed(spec).tensors(noise[None])[0][0]
    np.testing.assert_array_equal(seen, preprocess(Image.fromarray(noise), spec))


def test_the_limits_hold_on_the_package_s_pictures_and_a_wrong_filter_fails_them() -> None:
    spec = spec_of(height=96, width=96)
    pictures = {name: picture for name, picture in odd_pictures(spec).items() if "4000" not in name}
    backend, other = computed(spec), computed(spec_of(height=96, width=96, interpolation="bilinear"))
    right = compare_pictures(pictures, spec, lambda picture: backend.tensors(picture[None])[0][0])
    wrong = compare_pictures(pictures, spec, lambda picture: other.tensors(picture[None])[0][0])
    assert [check.status for check in right.checks] == ["passed", "passed"]
    assert right.mean < 0.01
    assert "failed" in {check.status for check in wrong.checks}
    lost = compare_pictures(pictures, spec, lambda picture: np.full((3, 96, 96), np.nan, np.float32))
    assert [check.status for check in lost.checks] == ["failed", "failed"]


def test_a_batch_is_computed_picture_by_picture() -> None:
    spec = spec_of()
    pictures = np.random.default_rng(0).integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)
    together = computed(spec).tensors(pictures)[0]
    for index, picture in enumerate(pictures):
        np.testing.assert_allclose(together[index], computed(spec).tensors(picture[None])[0][0], atol=1e-5)


def test_only_standard_operators_of_opset_13() -> None:
    for interpolation in RESAMPLING:
        model = alone(spec_of(interpolation=interpolation, crop_mode="border"), opset=13)
        assert {node.domain for node in model.graph} == {""}
        valid_in(model, 13)


def test_what_the_crop_cuts_off_is_not_computed() -> None:
    # Resized as a whole, this picture is 64 x 6,400,000.
    picture = np.random.default_rng(0).integers(0, 256, (1, 100_000, 3), dtype=np.uint8)
    assert computed(spec_of(crop_pct=1.0)).tensors(picture[None])[0].shape == (1, 3, 64, 64)


def test_the_model_computes_from_the_picture_what_it_computed_from_pixels() -> None:
    model, spec = read(exported()), spec_of(height=32, width=32)
    picture = photograph(90, 70)
    expected = run(model, preprocess(picture, spec)[None])
    apply(model, EmbedPreprocess(spec))
    seen = run(model, np.asarray(picture)[None])
    np.testing.assert_allclose(seen, expected, atol=0.01)
    image = onnx.load_model_from_string(ir.to_proto(model).SerializeToString()).graph.input[0]
    assert (image.name, image.type.tensor_type.elem_type) == (INPUT_NAME, onnx.TensorProto.UINT8)


def test_another_input_size_is_refused() -> None:
    with pytest.raises(ToolchainError, match=r"expected \[batch, 3, 64, 64\]"):
        apply(read(exported()), EmbedPreprocess(spec_of()))


def test_a_model_is_embedded_once() -> None:
    with pytest.raises(ToolchainError, match="expected image, float32"):
        apply(alone(spec_of()), EmbedPreprocess(spec_of()))
