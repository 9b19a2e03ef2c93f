"""The scripts of a bundle for full TensorRT, run as on a device: with a trtexec that writes what NVIDIA's writes."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Built
from numpy.typing import NDArray

from vitexport import golden_check
from vitexport.bundle import open_bundle
from vitexport.preprocess import normalize
from vitexport.stacks.delivery import CHECK_SCRIPT, CHECKER, RAW_INPUT
from vitexport.targets.trtexec import check_words
from vitexport.validate.metrics import sqnr_db

# Notes the words of each call; as the real one does, it writes its outputs only where it is asked to, and talks on stdout.
TRTEXEC = """#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec"
[ ! -f "$HERE/fails" ] || { echo "[E] Error[1]: no device" >&2; exit 1; }
for word in "$@"; do
    printf '%s\\n' "$word" >>"$HERE/words"
    case "$word" in --exportOutput=*) cp "$HERE/outputs.json" "${word#*=}" ;; esac
done
"""


class Device:
    """A copy of a bundle on a machine with that trtexec, python3 and nothing of ours."""

    def __init__(self, built: Built, folder: Path) -> None:
        self.root, self.here = folder / "a bundle", folder / "bin"
        shutil.copytree(built.root, self.root)
        self.here.mkdir()
        (self.here / "trtexec").write_text(TRTEXEC, encoding="utf-8")
        (self.here / "trtexec").chmod(0o755)
        (self.here / "python3").symlink_to(sys.executable)
        self.manifest = built.bundle.manifest
        self.golden = np.fromfile(self.root / self.manifest.artifacts["raw_logits"], "<f4").reshape(-1, 10)

    def computes(self, logits: NDArray[np.float32]) -> None:
        """Write `logits` as trtexec's exportJSONOutput does: in C++'s six digits, NaN and infinity as C++ spells them."""
        shape = "x".join(map(str, logits.shape))
        values = ", ".join(f"{value:g}" for value in logits.ravel().tolist())
        text = f'[\n  {{ "name" : "logits"\n  , "dimensions" : "{shape}"\n  , "values" : [ {values} ]\n  }}\n]\n'
        (self.here / "outputs.json").write_text(text, encoding="utf-8")

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self.here}:/usr/bin:/bin", "HERE": str(self.here)}
        return subprocess.run(
            ["sh", str(self.root / script)], env=environment, cwd="/", capture_output=True, text=True, check=False
        )

    def words(self) -> list[str]:
        return (self.here / "words").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def orin(jetson_bundle: Built, tmp_path: Path) -> Device:
    return Device(jetson_bundle, tmp_path)


def test_the_raw_files_are_the_golden_ones(orin: Device) -> None:
    bundle = open_bundle(orin.root)
    pixels, outputs = bundle.golden()
    image = np.fromfile(orin.root / RAW_INPUT, "<f4").reshape(1, 3, 32, 32)
    np.testing.assert_array_equal(image, normalize(pixels[:1], bundle.manifest.preprocess))
    np.testing.assert_array_equal(orin.golden, outputs["logits"][:1])
    roles = {role: path for role, path in bundle.manifest.artifacts.items() if role.startswith("raw_")}
    assert roles == {"raw_image": "golden/image.f32", "raw_logits": "golden/logits.f32"}
    assert {CHECK_SCRIPT, CHECKER, *roles.values()} <= bundle.manifest.files.keys()


def test_what_is_near_enough_passes_and_its_figure_is_ours(orin: Device) -> None:
    noise = np.random.default_rng(0).normal(0, 1e-3, orin.golden.shape).astype(np.float32)
    seen = orin.golden * (1 + noise)
    orin.computes(seen)
    done = orin.run(CHECK_SCRIPT)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    printed = re.fullmatch(
        r"passed  logits: ([\d.]+) dB SQNR against PyTorch, at least ([\d.]+) expected; same top-1 on 100\.00 % of 1 images",
        line,
    )
    assert printed is not None, line
    assert float(printed[1]) == pytest.approx(sqnr_db(orin.golden, seen), abs=0.1)
    # Twice the error that the build measured on the same image.
    assert 30 < float(printed[2]) <= 50
    assert not list(Path("/tmp").glob("tmp.*.log"))  # noqa: S108 - where mktemp puts what the script must remove


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (lambda logits: logits[:, ::-1], r"FAILED  logits: -?[\d.]+ dB SQNR .* same top-1 on 0\.00 %"),
        (lambda logits: logits * np.float32(1.1), r"FAILED  logits: 20\.0 dB SQNR .* same top-1 on 100\.00 %"),
        (lambda logits: logits * np.float32(np.nan), r"FAILED  logits: 10 of 10 numbers are NaN or infinite"),
        (
            lambda logits: np.where(logits == logits.max(), np.float32(-np.inf), logits),
            r"1 of 10 numbers are NaN or infinite",
        ),
    ],
)
def test_what_is_wrong_fails_with_exit_code_1(damage, fragment, orin: Device) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    orin.computes(damage(orin.golden))
    done = orin.run(CHECK_SCRIPT)
    assert done.returncode == 1, done.stderr
    assert re.search(fragment, done.stdout), done.stdout


def test_outputs_that_are_not_there_are_no_success(orin: Device) -> None:
    orin.computes(orin.golden[:, :4])
    done = orin.run(CHECK_SCRIPT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "trtexec wrote 4 numbers of output logits; expected 10" in done.stderr
    (orin.here / "outputs.json").write_text("[\n", encoding="utf-8")
    assert orin.run(CHECK_SCRIPT).returncode == 2
    (orin.here / "fails").touch()
    done = orin.run(CHECK_SCRIPT)
    assert (done.returncode, done.stdout) == (5, "")
    assert "no device" in done.stderr


@pytest.mark.parametrize("which", ["jetson_bundle", "weak_bundle"])
def test_every_option_is_one_of_the_stacks_own(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    device = Device(request.getfixturevalue(which), tmp_path)
    device.computes(device.golden)
    for script in ("engine.sh", CHECK_SCRIPT):
        assert device.run(script).returncode == 0
    words = device.words()
    assert {word.partition("=")[0] for word in words} >= {"--saveEngine", "--loadEngine", "--loadInputs", "--exportOutput"}
    check_words(words, str(device.manifest.target.tensorrt))
    (load,) = [word for word in words if word.startswith("--loadInputs=")]
    assert (device.root / load.rpartition(":")[2]).stat().st_size == 4 * 3 * 32 * 32
    assert "--shapes=image:1x3x32x32" in words


def test_the_checker_is_python_that_jetpack_4_has() -> None:
    source = Path(golden_check.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 6))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    # All of them are in the standard library of 3.6; annotations are evaluated there, so they name typing's classes.
    assert imported == {"array", "json", "math", "re", "sys", "typing"}
    assert not re.search(r"\b(list|dict|tuple)\[", source)


def test_the_checker_in_a_bundle_is_the_one_that_is_tested(jetson_bundle: Built) -> None:
    assert (jetson_bundle.root / CHECKER).read_bytes() == Path(golden_check.__file__).read_bytes()


def test_several_images_are_counted_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = np.eye(4, dtype=np.float32)
    golden.astype("<f4").tofile(tmp_path / "golden.f32")
    seen = golden.copy()
    seen[0] = [0, 1, 0, 0]
    outputs = [{"name": "logits", "dimensions": "4x4", "values": seen.ravel().tolist()}]
    (tmp_path / "outputs.json").write_text(json.dumps(outputs), encoding="utf-8")
    words = shlex.split(f"{tmp_path}/outputs.json logits={tmp_path}/golden.f32=3.0=4")
    assert golden_check.main(words) == 0
    # Four ones of signal, two of error.
    assert capsys.readouterr().out.startswith(
        "passed  logits: 3.0 dB SQNR against PyTorch, at least 3.0 expected; same top-1 on 75"
    )
    words[1] = words[1].replace("3.0", "3.1")
    assert golden_check.main(words) == 1
