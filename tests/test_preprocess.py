from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from timm.data import ImageDataset, create_transform
from torchvision.datasets.folder import pil_loader

from vitexport.errors import InputError, UsageError
from vitexport.preprocess import (
    IMAGE_SUFFIXES,
    RESAMPLING,
    CropMode,
    ImageLike,
    PreprocessSpec,
    load_image,
    normalize,
    preprocess,
    to_pixels,
)

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
MODES: tuple[CropMode, ...] = ("center", "squash", "border")


def make_spec(**changes: Any) -> PreprocessSpec:
    values: dict[str, Any] = {"height": 32, "width": 32, "interpolation": "bicubic", "crop_pct": 0.9, **IMAGENET}
    return PreprocessSpec(**(values | changes))


def timm_transform(spec: PreprocessSpec, *, normalized: bool) -> Callable[[Image.Image], NDArray[Any]]:
    transform = create_transform(
        input_size=(3, spec.height, spec.width),
        is_training=False,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        normalize=normalized,
    )
    return lambda picture: cast("NDArray[Any]", transform(picture).numpy())


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise on a ramp: every pixel differs, so a shift by one is seen."""
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = np.stack([rows * 3, columns * 5, rows + columns], axis=-1)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(((ramp + noise) % 256).astype(np.uint8))


def assert_like_timm(source: Image.Image, spec: PreprocessSpec) -> None:
    wanted = timm_transform(spec, normalized=False)(source)
    np.testing.assert_array_equal(to_pixels(source, spec).transpose(2, 0, 1), wanted)
    wanted = timm_transform(spec, normalized=True)(source)
    seen = preprocess(source, spec)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("crop_mode", MODES)
@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (33, 17)], ids=str)
def test_pixels_are_timms_for_every_crop_mode_and_interpolation(
    crop_mode: CropMode, interpolation: str, size: tuple[int, int]
) -> None:
    spec = make_spec(height=size[0], width=size[1], interpolation=interpolation, crop_mode=crop_mode)
    for width, height in [(61, 47), (40, 99)]:
        assert_like_timm(picture(width, height), spec)


@pytest.mark.parametrize("crop_mode", MODES)
@pytest.mark.parametrize("crop_pct", [1.0, 0.965, 0.95, 0.9, 0.875, 0.5, 1 / 3])
def test_pixels_are_timms_for_every_crop_pct(crop_mode: CropMode, crop_pct: float) -> None:
    spec = make_spec(crop_mode=crop_mode, crop_pct=crop_pct)
    for width, height in [(64, 64), (75, 50), (32, 32)]:
        assert_like_timm(picture(width, height), spec)


@pytest.mark.parametrize("crop_mode", MODES)
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 24), (24, 1), (2, 3), (5, 90), (90, 5), (31, 33), (33, 31), (7, 7), (35, 35), (36, 35), (200, 3)],
    ids=lambda shape: f"{shape[0]}x{shape[1]}",
)
def test_odd_shapes_give_timms_pixels(crop_mode: CropMode, shape: tuple[int, int]) -> None:
    assert_like_timm(picture(*shape), make_spec(crop_mode=crop_mode))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    size=st.tuples(st.integers(1, 48), st.integers(1, 48)),
    crop_pct=st.floats(0.4, 1.0),
    crop_mode=st.sampled_from(MODES),
)
def test_any_shape_gives_timms_pixels(
    shape: tuple[int, int], size: tuple[int, int], crop_pct: float, crop_mode: CropMode
) -> None:
    spec = make_spec(height=size[0], width=size[1], crop_pct=crop_pct, crop_mode=crop_mode, interpolation="bilinear")
    source = picture(*shape)
    try:
        wanted = timm_transform(spec, normalized=False)(source)
    except ValueError:
        # timm rounds the shorter side of a very thin picture to nothing; here it stays one pixel wide.
        assert crop_mode == "border"
        assert to_pixels(source, spec).shape == (*size, 3)
        return
    np.testing.assert_array_equal(to_pixels(source, spec).transpose(2, 0, 1), wanted)


def test_a_picture_too_thin_for_timm_is_a_line_on_the_mean() -> None:
    spec = make_spec(crop_mode="border", crop_pct=1.0)
    pixels = to_pixels(Image.new("RGB", (1, 1000), (255, 0, 255)), spec)
    mean = [round(255 * value) for value in spec.mean]
    assert (pixels == mean).all(axis=(0, 2)).sum() == 31


def encoded(source: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    source.save(buffer, form, **options)
    return buffer.getvalue()


def with_alpha(source: Image.Image) -> Image.Image:
    source = source.convert("RGBA")
    source.putalpha(Image.linear_gradient("L").resize(source.size))
    return source


def rotated_by_exif(source: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(source, "JPEG", exif=exif)


def deep_grey(source: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257)


SOURCE = picture(53, 37)
FILES: dict[str, tuple[str, bytes]] = {
    "L": ("png", encoded(SOURCE.convert("L"), "PNG")),
    "LA": ("png", encoded(with_alpha(SOURCE).convert("LA"), "PNG")),
    "P": ("png", encoded(SOURCE.convert("P"), "PNG")),
    "P transparent colour": ("png", encoded(SOURCE.convert("P"), "PNG", transparency=3)),
    "P transparent table": ("png", encoded(SOURCE.convert("P"), "PNG", transparency=bytes(range(256)))),
    "RGBA": ("png", encoded(with_alpha(SOURCE), "PNG")),
    "I": ("tif", encoded(SOURCE.convert("L").convert("I"), "TIFF")),
    "1": ("png", encoded(SOURCE.convert("1"), "PNG")),
    "CMYK": ("jpg", encoded(SOURCE.convert("CMYK"), "JPEG")),
    "YCbCr": ("jpg", encoded(SOURCE, "JPEG")),
    "EXIF": ("jpg", rotated_by_exif(SOURCE)),
    "GIF": ("gif", encoded(SOURCE, "GIF")),
    "WebP": ("webp", encoded(with_alpha(SOURCE), "WEBP")),
    "TIFF": ("tif", encoded(SOURCE.convert("CMYK"), "TIFF")),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_image_mode_is_loaded_as_torchvisions_loader_does(kind: str, tmp_path: Path) -> None:
    suffix, data = FILES[kind]
    path = tmp_path / f"image.{suffix}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        # torchvision lets Pillow's remark on palettes through; ours must not remark on anything.
        warnings.simplefilter("ignore")
        wanted = pil_loader(path)
    seen = load_image(path)
    assert seen.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(wanted))


GREY = np.asarray(SOURCE.convert("L"))
DEEP = {
    "16 bits": ("PNG", Image.fromarray(GREY.astype(np.uint16) * 257)),
    "16 bits, big endian": ("TIFF", Image.frombytes("I;16B", GREY.shape[::-1], (GREY.astype(">u2") * 257).tobytes())),
    # It is not the picture's content that decides.
    "16 bits, and all": ("PNG", Image.fromarray(GREY.astype(np.uint16) // 2)),
    "floating point": ("TIFF", Image.fromarray(GREY.astype(np.float32) / 255)),
    "to 62451": ("TIFF", Image.fromarray(GREY.astype(np.int32) * 257)),
    "from -": ("TIFF", Image.fromarray(GREY.astype(np.int32) - 300)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_grey_values_that_pillow_would_clip_are_refused(kind: str, tmp_path: Path) -> None:
    form, deep = DEEP[kind]
    path, said = tmp_path / "deep", kind.partition(", big")[0]
    deep.save(path, form)
    with pytest.raises(InputError, match=f"deep has grey values .*{said}.* Convert it to 8 bits"):
        load_image(path)
    with Image.open(path) as image, pytest.raises(InputError, match=said):
        load_image(image)


@pytest.mark.parametrize("kind", FILES)
def test_every_image_mode_is_made_grey_as_timms_loader_does(kind: str, tmp_path: Path) -> None:
    _, data = FILES[kind]
    path = tmp_path / "class" / "image.png"  # timm looks for few suffixes; what is in the file decides
    path.parent.mkdir()
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted, _ = ImageDataset(tmp_path, input_img_mode="L")[0]
    seen = load_image(path, "L")
    assert seen.mode == wanted.mode == "L"
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(wanted))


GREY_STATISTICS = {"mean": (0.449,), "std": (0.226,)}


@pytest.mark.parametrize("crop_mode", MODES)
@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
def test_a_grey_models_pixels_are_timms(crop_mode: CropMode, interpolation: str, size: tuple[int, int]) -> None:
    spec = make_spec(height=size[0], width=size[1], interpolation=interpolation, crop_mode=crop_mode, **GREY_STATISTICS)
    for width, height in [(61, 47), (40, 99), (20, 9)]:
        source = picture(width, height)
        wanted = timm_transform(spec, normalized=False)(source.convert("L"))
        np.testing.assert_array_equal(to_pixels(source, spec).transpose(2, 0, 1), wanted)
        wanted = timm_transform(spec, normalized=True)(source.convert("L"))
        np.testing.assert_allclose(preprocess(source, spec), wanted, rtol=0, atol=1e-6)


def test_a_grey_model_takes_files_pictures_and_arrays_of_either_kind(tmp_path: Path) -> None:
    spec, grey = make_spec(**GREY_STATISTICS), SOURCE.convert("L")
    grey.save(tmp_path / "grey.png")
    wanted = preprocess(grey, spec)
    assert wanted.shape == (1, 32, 32)
    for source in (tmp_path / "grey.png", np.asarray(grey), np.asarray(grey)[:, :, None], SOURCE, np.asarray(SOURCE)):
        np.testing.assert_array_equal(preprocess(source, spec), wanted)


FOUR = {"mean": (0.1, 0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7, 0.8)}


@pytest.mark.parametrize("crop_mode", MODES)
def test_each_channel_of_an_array_is_a_grey_picture(crop_mode: CropMode, tmp_path: Path) -> None:
    spec = make_spec(crop_mode=crop_mode, **FOUR)
    array = np.random.default_rng(0).integers(0, 256, (40, 61, 4), dtype=np.uint8)
    np.save(tmp_path / "four.npy", array)
    seen = preprocess(array, spec)
    assert seen.shape == (4, 32, 32)
    for index in range(4):
        one = make_spec(crop_mode=crop_mode, mean=spec.mean[index : index + 1], std=spec.std[index : index + 1])
        np.testing.assert_array_equal(seen[index], preprocess(array[:, :, index], one)[0])
    np.testing.assert_array_equal(preprocess(tmp_path / "four.npy", spec), seen)


def test_what_is_no_array_of_the_models_channels_is_refused(tmp_path: Path) -> None:
    spec = make_spec(**FOUR)
    np.save(tmp_path / "three.npy", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "three.npy").read_bytes()[:-1])
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "code.npy").write_bytes(
        b"\x93NUMPY\x01\x00F\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 4)}".ljust(70)
    )
    SOURCE.save(tmp_path / "picture.png")
    for source, message in (
        (np.zeros((8, 8, 4), np.float32), r"An array has shape \(8, 8, 4\) and type float32; expected uint8, .* 4\]"),
        (np.zeros((8, 8, 3), np.uint8), r"An array has shape \(8, 8, 3\)"),
        (np.zeros((8, 8), np.uint8), r"An array has shape \(8, 8\)"),
        (tmp_path / "three.npy", r"three\.npy has shape \(8, 8, 3\) and type uint8; expected uint8, \[height, width, 4\]"),
        (tmp_path / "cut.npy", r"cut\.npy is not an array that NumPy can read"),
        (tmp_path / "text.npy", r"text\.npy is not an array that NumPy can read"),
        (tmp_path / "code.npy", r"code\.npy is not an array that NumPy can read"),
        (tmp_path / "absent.npy", r"absent\.npy' does not exist"),
        (tmp_path, "is not a regular file"),
        (tmp_path / "picture.png", r"picture\.png was given; a model of 4 channels takes arrays, .*\.npy files"),
        (SOURCE, "A Pillow image of mode RGB was given; a model of 4 channels takes arrays"),
    ):
        with pytest.raises(InputError, match=message):
            preprocess(source, spec)


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    path = tmp_path / "rotated.jpg"
    path.write_bytes(rotated_by_exif(SOURCE))
    assert load_image(path).size == SOURCE.size


def test_path_text_pillow_and_array_are_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    SOURCE.save(path)
    wanted = preprocess(SOURCE, make_spec())
    for source in (path, str(path), np.asarray(SOURCE), SOURCE.convert("RGBA")):
        np.testing.assert_array_equal(preprocess(source, make_spec()), wanted)


def test_a_grey_array_is_a_grey_picture() -> None:
    grey = np.asarray(SOURCE.convert("L"))
    np.testing.assert_array_equal(to_pixels(grey, make_spec()), to_pixels(SOURCE.convert("L"), make_spec()))


def test_an_array_that_is_not_contiguous_is_read_as_it_looks() -> None:
    flipped = np.asarray(SOURCE)[:, ::-1]
    mirrored = SOURCE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    np.testing.assert_array_equal(to_pixels(flipped, make_spec()), to_pixels(mirrored, make_spec()))


def test_the_callers_picture_is_left_as_it_was() -> None:
    source, before = with_alpha(SOURCE), with_alpha(SOURCE).tobytes()
    preprocess(source, make_spec(crop_mode="border"))
    assert (source.mode, source.size, source.tobytes()) == ("RGBA", SOURCE.size, before)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8,), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8), np.bool_),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_of_another_type_or_shape_is_refused_with_both(array: NDArray[Any]) -> None:
    with pytest.raises(InputError, match="expected uint8") as caught:
        load_image(array)
    assert str(array.shape) in str(caught.value)
    assert str(array.dtype) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.png' does not exist"):
        load_image(tmp_path / "absent.png")


def test_a_text_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    with pytest.raises(InputError, match=r"notes\.png is not an image"):
        load_image(path)


def test_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a regular file"):
        load_image(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png is not a regular file"):
        load_image(tmp_path / "pipe.png")


def test_a_name_that_no_file_can_have_is_an_input_error() -> None:
    for name in ("a\0b.png", "x" * 5000 + ".png"):
        with pytest.raises(InputError):
            load_image(name)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow remarks on the directory of a TIFF before it gives up
@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_a_file_cut_short_is_a_picture_or_an_input_error(suffix: str, tmp_path: Path) -> None:
    data = encoded(SOURCE, Image.registered_extensions()[suffix])
    path = tmp_path / f"cut{suffix}"
    lengths = itertools.chain(range(0, min(64, len(data)), 3), range(64, len(data), max(len(data) // 16, 1)))
    reasons = [reason for length in lengths if (reason := _refusal(path, data[:length]))]
    assert len(reasons) > 10
    assert all(path.name in reason and "0x" not in reason for reason in reasons)


def _refusal(path: Path, data: bytes) -> str | None:
    path.write_bytes(data)
    try:
        load_image(path)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
def test_half_a_file_is_never_taken_for_a_whole_one(suffix: str, tmp_path: Path) -> None:
    data = encoded(SOURCE, Image.registered_extensions()[suffix])
    path = tmp_path / f"half{suffix}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=f"half{suffix} cannot be read"):
        load_image(path)


def test_a_pillow_image_whose_file_is_cut_short_is_an_input_error() -> None:
    data = encoded(SOURCE, "JPEG")
    with Image.open(io.BytesIO(data[: len(data) // 2])) as lazy, pytest.raises(InputError, match="truncated") as caught:
        preprocess(lazy, make_spec())
    assert "0x" not in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 1)] * 3),
    seed=st.integers(0, 99),
)
def test_normalized_values_are_the_formulas(
    mean: tuple[float, float, float], std: tuple[float, float, float], seed: int
) -> None:
    spec = make_spec(height=4, width=5, mean=mean, std=std)
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    seen = normalize(pixels, spec)
    wanted = (pixels / 255.0 - np.array(mean)) / np.array(std)
    assert seen.shape == (2, 3, 4, 5)
    assert seen.flags.c_contiguous
    np.testing.assert_allclose(seen, wanted.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


def test_a_batch_is_normalized_as_its_pictures_are() -> None:
    spec = make_spec()
    pixels = np.stack([to_pixels(picture(40, 50, seed), spec) for seed in range(3)])
    alone = np.stack([normalize(one, spec) for one in pixels])
    np.testing.assert_array_equal(normalize(pixels, spec), alone)


share = st.floats(0, 1)
specs = st.builds(
    PreprocessSpec,
    height=st.integers(1, 4096),
    width=st.integers(1, 4096),
    mean=st.tuples(share, share, share),
    std=st.tuples(*[st.floats(min_value=1 / 255, max_value=1)] * 3),
    interpolation=st.sampled_from(sorted(RESAMPLING)),
    crop_pct=st.floats(min_value=0.1, max_value=1),
    crop_mode=st.sampled_from(MODES),
)


@settings(deadline=None)
@given(specs)
def test_a_spec_survives_its_json(spec: PreprocessSpec) -> None:
    assert PreprocessSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "0 x 32"),
        ({"width": -1}, "32 x -1"),
        ({"interpolation": "bicubik"}, "'bicubik' is unknown.*bilinear"),
        ({"crop_pct": 0.0}, r"crop_pct is 0\.0"),
        ({"crop_pct": 0.0999}, r"crop_pct is 0\.0999; it must be at least 0\.1"),
        ({"crop_pct": 1.01}, r"crop_pct is 1\.01"),
        ({"crop_pct": float("nan")}, "crop_pct is nan"),
        ({"mean": (0.5,)}, "one value each for every channel"),
        ({"std": (0.5, 0.5, 0.5, 0.5)}, "one value each for every channel"),
        ({"mean": (), "std": ()}, "one value each for every channel"),
        ({"mean": (0.5, float("nan"), 0.5)}, "cannot be those"),
        ({"mean": (0.5, 1e7, 0.5)}, "cannot be those"),
        ({"std": (0.5, 0.0, 0.5)}, "cannot be those"),
        ({"std": (0.5, -1.0, 0.5)}, "cannot be those"),
        ({"std": (0.5, 1e-7, 0.5)}, "cannot be those"),
        ({"std": (0.5, float("inf"), 0.5)}, "cannot be those"),
        ({"crop_mode": "centre"}, "'centre' is unknown.*squash"),
    ],
    ids=str,
)
def test_a_spec_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_spec(**changes)


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(PreprocessSpec)])
def test_json_that_lacks_a_field_is_refused(key: str) -> None:
    data = make_spec().to_json()
    del data[key]
    with pytest.raises(KeyError, match=key):
        PreprocessSpec.from_json(data)


@pytest.mark.parametrize("source", [SOURCE, np.asarray(SOURCE)], ids=["pillow", "array"])
def test_the_result_has_the_specs_shape(source: ImageLike) -> None:
    assert preprocess(source, make_spec(height=20, width=12)).shape == (3, 20, 12)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
        ((123.675 / 255, 116.28 / 255, 103.53 / 255), (0.0039216, 0.0039216, 0.0039216)),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ],
)
def test_a_mean_and_std_that_scale_or_leave_the_values_are_taken(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    assert make_spec(mean=mean, std=std).std == std


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "mean 0.485,0.456,0.406 and std 0.229,0.224,0.225"),
        ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), "mean 0.5,0.5,0.5 and std 0.5,0.5,0.5"),
        ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), ": std 1,1,1."),
        ((0.485, 0.456, 0.406), (58.395, 57.12, 57.375), ": std 0.229,0.224,0.225."),
        ((123.675, 116.28, 103.53), (0.5, 0.5, 0.5), ": mean 0.485,0.456,0.406."),
        ((0.5, 0.5, 0.5), (0.0009, 0.0009, 0.0009), "cannot be those of pixel values of 0…1"),
        ((-0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "cannot be those of pixel values of 0…1"),
        ((300.0, 0.5, 0.5), (0.5, 0.5, 0.5), "cannot be those of pixel values of 0…1"),
        ((float("nan"), 0.5, 0.5), (0.5, 0.5, 0.5), "cannot be those of pixel values of 0…1"),
    ],
)
def test_what_cannot_be_a_mean_or_std_is_refused_with_the_right_values_where_they_can_be_told(
    mean: tuple[float, float, float], std: tuple[float, float, float], told: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        make_spec(mean=mean, std=std)
