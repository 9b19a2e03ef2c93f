"""Input: Eight photographs from scikit-image's wheel; output: small JPEGs and the table of their licences.

Only photographs that scikit-image documents as public domain or CC0 are taken. Each keeps its aspect ratio
and its colour mode; its shorter side becomes 320 pixels, or stays as it is where it is shorter already::

    vitexport/validate/photographs/<name>.jpg
    vitexport/validate/photographs/SOURCES.md

The same versions of scikit-image and Pillow give the same bytes again.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path

import click
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
SHORTER_SIDE = 320
QUALITY = 90
LARGEST_TOTAL = 400 * 1024


@dataclass(frozen=True)
class Photograph:
    """One file of `skimage/data` and what scikit-image's own documentation says about it."""

    file: str
    shows: str
    source: str
    licence: str

    @property
    def name(self) -> str:
        """The file's name in the repository."""
        return f"{Path(self.file).stem}.jpg"


# Left out on purpose: moon.png and motorcycle_left.png (scikit-image states no licence), coins.png ("no known
# copyright restrictions" grants nothing), scikit-learn's china.jpg and flower.jpg (CC BY, author unclear).
PHOTOGRAPHS = (
    Photograph(
        "astronaut.png",
        "the astronaut Eileen Collins",
        "NASA Great Images database, https://flic.kr/p/r9qvLn",
        "Public domain (NASA)",
    ),
    Photograph("camera.png", "a photographer with a camera, greyscale", "Lav Varshney", "CC0"),
    Photograph("chelsea.png", "Chelsea the cat", "Stefan van der Walt", "CC0"),
    Photograph(
        "clock_motion.png",
        "a wall clock blurred by motion, greyscale",
        "Stefan van der Walt",
        "Public domain",
    ),
    Photograph("coffee.png", "a cup of coffee", "Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0"),
    Photograph(
        "hubble_deep_field.jpg",
        "the Hubble eXtreme Deep Field",
        "HubbleSite release 2012/37; credit: NASA, ESA, G. Illingworth, D. Magee, P. Oesch (UC Santa Cruz), "
        "R. Bouwens (Leiden University) and the HUDF09 Team",
        "Public domain (NASA)",
    ),
    Photograph(
        "retina.jpg",
        "a human retina",
        "Mikael Häggström, WikiJournal of Medicine 1 (2), 2014, doi:10.15347/wjm/2014.008; "
        "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
        "CC0 1.0",
    ),
    Photograph(
        "rocket.jpg",
        "the launch of DSCOVR on a Falcon 9",
        "SpaceX, https://www.flickr.com/photos/spacexphotos/16511594820",
        "Public domain (released by SpaceX in 2015)",
    ),
)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that no half-written file bears the real name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_photograph(photograph: Photograph) -> Image.Image:
    """The original pixels, from the installed wheel: nothing is downloaded."""
    resource = files("skimage") / "data" / photograph.file
    if not resource.is_file():
        raise click.ClickException(
            f"scikit-image {version('scikit-image')} does not ship data/{photograph.file}; "
            "the photographs were made with 0.26."
        )
    with as_file(resource) as path, Image.open(path) as image:
        if image.mode not in ("RGB", "L"):
            raise click.ClickException(f"{photograph.file} has mode {image.mode}, RGB or L was expected.")
        image.load()
        return image.copy()


def shrink(image: Image.Image) -> Image.Image:
    """The image with a shorter side of at most `SHORTER_SIDE` pixels; never enlarged."""
    ratio = min(1.0, SHORTER_SIDE / min(image.size))
    size = (round(image.width * ratio), round(image.height * ratio))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def encode(image: Image.Image) -> bytes:
    """JPEG without what came along with the original: comments, EXIF and colour profiles."""
    image.info.clear()
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def sources(sizes: dict[str, tuple[int, int]]) -> str:
    """The table of sources and licences, from the same list as the files."""
    lines = [
        "# Sources of the photographs",
        "",
        "Made by `scripts/make_photographs.py` from the files that scikit-image",
        f"{version('scikit-image')} ships in `skimage/data`: resized so that the shorter side is at most",
        f"{SHORTER_SIDE} pixels (never enlarged) and saved as JPEG of quality {QUALITY}. Sources and",
        "licences are those that `skimage.data` documents; the credit of the Hubble picture is NASA's own.",
        "",
        "The photographs exercise preprocessing and the comparison of variants on natural images of several",
        "aspect ratios. They are no calibration set and have no labels. Nobody shown or named here endorses",
        "vitexport.",
        "",
        "| File | Pixels | Original | Shows | Source | Licence |",
        "|---|---|---|---|---|---|",
    ]
    for photograph in PHOTOGRAPHS:
        width, height = sizes[photograph.name]
        cells = (photograph.shows, photograph.source, photograph.licence)
        lines.append(
            f"| `{photograph.name}` | {width}x{height} | `{photograph.file}` | {' | '.join(cells)} |",
        )
    return "\n".join(lines) + "\n"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=REPOSITORY / "vitexport" / "validate" / "photographs",
    show_default="vitexport/validate/photographs",
    help="Folder that gets the JPEGs and SOURCES.md.",
)
def main(out: Path) -> None:
    """Make the photographs that `vitexport validate` uses."""
    encoded: dict[str, bytes] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for photograph in PHOTOGRAPHS:
        small = shrink(read_photograph(photograph))
        encoded[photograph.name], sizes[photograph.name] = encode(small), small.size
    total = sum(len(content) for content in encoded.values())
    if total > LARGEST_TOTAL:
        raise click.ClickException(
            f"the photographs take {total} bytes, at most {LARGEST_TOTAL} are allowed; nothing was written."
        )
    for name, content in encoded.items():
        replace_file(out / name, content)
        print(f"{name}: {sizes[name][0]}x{sizes[name][1]}, {len(content)} bytes")
    replace_file(out / "SOURCES.md", sources(sizes).encode())
    print(f"total: {total} bytes")


if __name__ == "__main__":
    main()
