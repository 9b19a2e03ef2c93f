"""Input: words; output: values of the library. Parsing only: nothing is judged here that a room judges."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from vitexport.artifacts import DEFAULT_THRESHOLD, Task
from vitexport.cli.grouped import complete_target
from vitexport.validate.budget import Budget

F = TypeVar("F", bound=Callable[..., Any])


class FilePath(click.Path):
    """A path; an empty word, as a shell makes of a variable that is not set, is none, and not the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = FilePath(path_type=Path)

EXPECT_TOP1 = click.option(
    "--expect-top1",
    type=float,
    metavar="PERCENT",
    help="Top-1 that the model is known to have on --data; less, by more than 1 point and the 95 % interval, fails.",
)


class KeyValue(click.ParamType[tuple[str, Any]]):
    """``KEY=VALUE``, with the value read as a Python literal where it is one (``4``, ``False``, ``(16, 16)``)."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        key, equals, text = str(value).partition("=")
        if not equals or not key.isidentifier():
            self.fail(f"{value!r} is not KEY=VALUE, for example embed_dim=192", param, ctx)
        try:
            return key, ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return key, text


class Size(click.ParamType["int | tuple[int, int]"]):
    """Pixels: one side of a square, ``224``, or height and width, ``256x128``."""

    name = "PIXELS|HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        sides = str(value).lower().replace("×", "x").split("x")
        if len(sides) > 2 or not all(side.isascii() and side.isdigit() and len(side) < 6 and int(side) for side in sides):
            self.fail(f"{value!r} is not a size in pixels, for example 224, or 256x128 (height x width)", param, ctx)
        numbers = [int(side) for side in sides]
        return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


class Numbers(click.ParamType[tuple[float, ...]]):
    """One number, or one for each channel with commas or spaces between: ``0.5`` or ``0.485,0.456,0.406``."""

    name = "R,G,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in str(value).replace(",", " ").split())
        except ValueError:
            numbers = ()
        if not numbers:
            self.fail(f"{value!r} is not one number, or one for each channel, for example 0.485,0.456,0.406", param, ctx)
        return numbers


class Indices(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between: ``2,5,8,11``."""

    name = "I,J,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
            self.fail(f"{value!r} is not a list of block numbers, for example 2,5,8,11", param, ctx)
        return tuple(int(part) for part in parts)


DATA_HELP = (
    "Labelled images: one folder per class; for multi-label and regression a CSV file with a column image and a column for "
    "each label (0 or 1) or value, or one column labels with names."
)
# Metavar and help of each limit.
_LIMITS = {
    "max_drop": ("POINTS", "Classification with --data: maximum drop of top-1; of one logit, of accuracy."),
    "min_agreement": (
        "PERCENT",
        "Classification without: minimum agreement with PyTorch on top-1; of one logit, on its sign.",
    ),
    "max_map_drop": ("POINTS", "Multi-label with --data: maximum drop of mAP, and of micro F1."),
    "min_label_agreement": ("PERCENT", "Multi-label without: minimum share of decisions (image, label) as in PyTorch."),
    "max_error_increase": ("PERCENT", "Regression with --data: maximum growth of the mean error."),
    "max_deviation": ("PERCENT", "Regression without: maximum RMS difference, of the spread of PyTorch's values."),
    "min_cosine": ("COSINE", "Minimum cosine with PyTorch, of embeddings, tokens and feature maps."),
}


def _limit(name: str) -> Callable[[Any], Any]:
    """The option of one field of `Budget`."""
    metavar, text = _LIMITS[name]
    default = getattr(Budget(), name)
    return click.option(
        f"--{name.replace('_', '-')}", type=float, default=default, show_default=True, metavar=metavar, help=text
    )


def data_options(function: F) -> F:
    """Labelled images on a device, and what may be lost on them against PyTorch."""
    options = (
        click.option("--data", type=PATH, metavar="DIR|FILE.csv", help=DATA_HELP),
        *map(_limit, ("max_drop", "max_map_drop", "max_error_increase")),
    )
    for option in reversed(options):
        function = option(function)
    return function


def build_options(function: F) -> F:
    """The arguments that ``build`` and ``plan`` share, in the order in which help shows them."""
    for option in reversed(_BUILD_OPTIONS):
        function = option(function)
    return function


_BUILD_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("model", required=False),
    click.option(
        "--target",
        required=True,
        multiple=True,
        metavar="TARGET",
        shell_complete=complete_target,
        help="A device of the catalogue, or cpu for this machine; several GPUs of TensorRT-RTX share one engine file.",
    ),
    click.option("--jetpack", metavar="VERSION", help="JetPack release of a Jetson (default: its newest)."),
    click.option("-o", "--out", type=PATH, metavar="OUT", help="Folder of the bundle (default: MODEL-TARGET)."),
    click.option("--force", is_flag=True, help="Replace an existing bundle."),
    click.option(
        "--checkpoint",
        type=PATH,
        metavar="FILE",
        help="Your weights: any file of torch.save or safetensors that holds tensors, or a folder with config.json. MODEL "
        "may be left out where the file says which model it is of.",
    ),
    click.option("--checkpoint-key", metavar="KEY", help="Entry of the file that holds the weights (default: found)."),
    click.option(
        "--ema/--no-ema",
        default=None,
        help="Take the averaged weights of the checkpoint, or the others (default: the others where both are there).",
    ),
    click.option("--pretrained/--no-pretrained", default=None, help="timm's own weights (default unless --checkpoint)."),
    click.option(
        "--model-kwarg",
        "model_kwargs",
        type=KeyValue(),
        multiple=True,
        help="Argument for timm.create_model; repeatable.",
    ),
    click.option(
        "--model-from",
        metavar="FILE.py:FUNCTION",
        help="In the place of MODEL: run this file, and take the torch.nn.Module that the function returns, with a "
        "PreprocessSpec, or alone with --img-size, --mean, --std, --crop-pct and --interpolation.",
    ),
    click.option("--num-classes", type=click.IntRange(min=1), metavar="N", help="Width of the classifier."),
    click.option("--img-size", type=Size(), help="Side of the input image, or its height and width."),
    click.option(
        "--in-chans",
        type=click.IntRange(min=1),
        metavar="N",
        help="Input channels: 1 sees pictures in grey; 2, or more than 3, takes arrays (.npy).",
    ),
    click.option(
        "--head",
        type=click.Choice(["classifier", "none", "features", "tokens"]),
        help="What the model ends in: classifier (logits), none (timm's num_classes=0), features (the embedding that the "
        "classifier reads) or tokens (all of them). Default: classifier, or none where the model has no classifier.",
    ),
    click.option(
        "--features",
        type=Indices(),
        default=(),
        help="Feature maps behind these blocks or stages, as timm's forward_intermediates counts them; the only outputs "
        "unless --head is given.",
    ),
    click.option(
        "--task",
        type=click.Choice(get_args(Task)),
        help="What the model is for: one of several classes (of two by one logit's sign), any of several labels, values, "
        "or an embedding. Default: as the checkpoint says, else classification, or embedding without a classifier. A "
        "classifier of width 1 needs it.",
    ),
    click.option("--softmax", is_flag=True, help="Probabilities instead of logits, computed in the graph."),
    click.option(
        "--class-embeddings",
        type=PATH,
        metavar="FILE",
        help="Text embeddings, one for each class, that make a zero-shot classifier of an image tower: .npy, .npz, "
        ".safetensors or .pt.",
    ),
    click.option(
        "--classes",
        type=PATH,
        metavar="FILE",
        help="Class names, one a line, for a zero-shot classifier; open_clip's text tower embeds them.",
    ),
    click.option(
        "--template",
        "templates",
        multiple=True,
        metavar="TEXT",
        help="Sentence with {} for the class name; repeatable (default: 'a photo of a {}.').",
    ),
    click.option(
        "--open-clip",
        metavar="MODEL:WEIGHTS",
        help="open_clip's model for --classes, with a pretrained tag or a file (default: told from the timm name).",
    ),
    click.option(
        "--logit-scale",
        type=float,
        metavar="FACTOR",
        help="What a zero-shot classifier multiplies the cosine with (default: as recorded; 100 for a CLIP).",
    ),
    click.option("--logit-bias", type=float, metavar="BIAS", help="What it adds (default: as recorded)."),
    click.option("--mean", type=Numbers(), help="Mean of each channel, for values of 0 to 1 (default: the model's own)."),
    click.option("--std", type=Numbers(), help="Standard deviation of each channel (default: the model's own)."),
    click.option("--crop-pct", type=float, metavar="SHARE", help="Share of the resized image that is kept."),
    click.option(
        "--crop-mode",
        type=click.Choice(["center", "squash", "border"]),
        help="center keeps the aspect ratio and crops, squash resizes each side on its own, border fits the longer side and "
        "pads with the mean (default: the model's own).",
    ),
    click.option(
        "--interpolation",
        metavar="NAME",
        help="nearest, bilinear, bicubic, lanczos, box or hamming (default: the model's own).",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "fp16", "int8"]),
        default="auto",
        show_default=True,
        help="auto: the fastest within the accuracy budget.",
    ),
    click.option("--calibration", type=PATH, metavar="DIR", help="Images for INT8, in folders of any depth."),
    click.option(
        "--calibration-size", type=int, default=256, show_default=True, metavar="N", help="How many of them are used."
    ),
    click.option(
        "--placement",
        default="A",
        show_default=True,
        metavar="A|B|C[+patch][+head]",
        help="INT8 tensors: A linear layers, B also attention, C also skips.",
    ),
    click.option(
        "--observer",
        default="percentile:99.999",
        show_default=True,
        metavar="NAME",
        help="Ranges by minmax, percentile[:P], mse, entropy or output.",
    ),
    click.option(
        "--rounding",
        type=click.Choice(["gptq", "nearest"]),
        default="gptq",
        show_default=True,
        help="Whether rounding errors of weights are compensated.",
    ),
    click.option(
        "--degraded/--no-degraded", default=True, show_default=True, help="Ranges also for noisy, turned, blurred images."
    ),
    click.option(
        "--equalize/--no-equalize", default=True, show_default=True, help="Scale and shift channels, exactly, first."
    ),
    click.option("--include", multiple=True, metavar="REGEX", help="Quantize only modules that match; repeatable."),
    click.option("--exclude", multiple=True, metavar="REGEX", help="Leave modules that match in float; repeatable."),
    click.option("--recipe", type=PATH, metavar="FILE", help="Quantize as an earlier build: its manifest.json."),
    click.option("--data", type=PATH, metavar="DIR|FILE.csv", help=DATA_HELP),
    click.option(
        "--labels",
        type=PATH,
        metavar="FILE",
        help="Names of classes, labels or values in the order of the output: text, CSV, JSON (list, id2label, "
        "class_to_idx), or a folder with a config.json.",
    ),
    click.option(
        "--class-order",
        type=click.Choice(["natural", "string"]),
        help="How class folders are sorted where no labels are known: natural (1, 2, 10) as timm trains, string (1, 10, 2) "
        "as ImageFolder does.",
    ),
    EXPECT_TOP1,
    click.option(
        "--threshold",
        type=float,
        default=DEFAULT_THRESHOLD,
        show_default=True,
        metavar="PROBABILITY",
        help="Multi-label: a label is true from here on.",
    ),
    click.option("--batch", default="1", show_default=True, metavar="N | MIN:OPT:MAX", help="Static batch, or a range."),
    click.option(
        "--opset",
        type=int,
        metavar="N",
        help="ONNX opset of the files (default: the newest that vitexport writes and the target reads).",
    ),
    click.option(
        "--embed-preprocess/--no-embed-preprocess",
        default=None,
        help="Also write model.app.onnx, which takes a picture of any size and resizes, crops and normalizes it itself "
        "(default for web and android-arm64).",
    ),
    click.option(
        "--top-indices",
        type=click.IntRange(min=0),
        metavar="K",
        help="Number of top classes or labels that it returns besides all probabilities; 0: neither (default: 5).",
    ),
    _limit("max_drop"),
    _limit("min_agreement"),
    _limit("max_map_drop"),
    _limit("min_label_agreement"),
    _limit("max_error_increase"),
    _limit("max_deviation"),
    _limit("min_cosine"),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="For untrained weights."),
)


def output_options(function: F) -> F:
    """How the result is shown."""
    for option in reversed(_OUTPUT_OPTIONS):
        function = option(function)
    return function


_OUTPUT_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else."),
    click.option("--quiet", is_flag=True, help="No progress."),
    click.option("--verbose", is_flag=True, help="Also the cost of every stage; a traceback on errors."),
)
