"""The command line as a user runs it: its exit codes and what it prints."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import click
import numpy as np
import pytest
from click.shell_completion import ShellComplete
from conftest import CALIBRATION, CHECKPOINT, ROOT, SAMPLE_WORDS, VALIDATION, Built
from safetensors.torch import load_file, save_file

from vitexport.bundle import open_bundle
from vitexport.cli import main, show
from vitexport.cli.commands import cli
from vitexport.cli.grouped import EXAMPLES, GROUPS
from vitexport.cli.progress import native_output_aside
from vitexport.runtime import load
from vitexport.targets import catalogue

Command: TypeAlias = "Callable[..., Result]"

DIGIT = VALIDATION / "7" / "digit_0081.png"
TINY_WORDS = (
    *("vit_tiny_patch16_224", "--no-pretrained", "--img-size", "32", "--num-classes", "10"),
    *("--model-kwarg", "patch_size=8", "--model-kwarg", "embed_dim=32", "--model-kwarg", "depth=1"),
    *("--model-kwarg", "num_heads=2"),
)


class Result(NamedTuple):
    """What a user sees of one call."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def vitexport(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line in this process: its border between errors and exit codes included, the interpreter's start not."""

    def call(*words: str | Path, cwd: Path | None = None) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["vitexport", *map(str, words)])
        if cwd is not None:
            monkeypatch.chdir(cwd)
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        output = capfd.readouterr()
        return Result(int(ended.value.code or 0), output.out, output.err)

    return call


def assert_refused(done: Result | subprocess.CompletedProcess[str], code: int, *fragments: str) -> None:
    """One clear message on stderr, nothing on stdout, no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for fragment in fragments:
        assert fragment in done.stderr
    assert done.stdout == ""


def test_build_gives_one_json_document_and_a_bundle(vitexport: Command, tmp_path: Path) -> None:
    out = tmp_path / "new" / "bundle"
    done = vitexport(
        "build", *SAMPLE_WORDS, "--target", "l4", "--precision", "int8", "--calibration", CALIBRATION, "--json",
        "--calibration-size", "32", "--data", VALIDATION, "-o", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert report["bundle"] == str(out)
    assert checks["engine"]["status"] == "passed"
    assert checks["accuracy"]["measured"] <= 1.0
    assert (out / "model.engine").stat().st_size > 100_000
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's function with a few LayerNorm channels 3000 times larger: one step per tensor loses all the others."""
    weights = load_file(CHECKPOINT)
    for block in range(3):
        for norm, linear in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
            for name, factor in ((f"{norm}.weight", 3000.0), (f"{norm}.bias", 3000.0)):
                weights[f"blocks.{block}.{name}"][:2] *= factor
            weights[f"blocks.{block}.{linear}.weight"][:, :2] /= 3000.0
    path = tmp_path_factory.mktemp("outliers") / "outliers.safetensors"
    save_file(weights, path)
    return path


INT8_WORDS = ("--target", "cpu", "--precision", "int8", "--calibration", CALIBRATION, "--data", VALIDATION, "--json")


def test_a_failed_check_has_an_exit_code_of_its_own_and_still_leaves_the_bundle(
    vitexport: Command, outliers: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "bundle"
    # One layer, and its large channels left as they are: there is nothing to fall back to but float.
    words = ("--no-equalize", "--include", r"blocks\.0\.attn\.qkv", "--max-drop", "0", "-o", out)
    done = vitexport("build", SAMPLE_WORDS[0], "--checkpoint", outliers, *SAMPLE_WORDS[3:], *INT8_WORDS, *words)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["verdict"] == "failed"
    assert {check["name"] for check in report["checks"] if check["status"] == "failed"} == {"int8"}
    assert json.loads((out / "manifest.json").read_text())["precision"] == "fp32"


def test_large_channels_are_equalized(vitexport: Command, outliers: Path, tmp_path: Path) -> None:
    done = vitexport(
        "build", SAMPLE_WORDS[0], "--checkpoint", outliers, *SAMPLE_WORDS[3:], *INT8_WORDS, "-o", tmp_path / "b"
    )
    report = json.loads(done.stdout)
    assert report["measurements"]["accuracy"]["sqnr_db"] >= 45
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["recipe"]["stay_float"] == []


def test_validate_inspect_bench_and_predict_give_json(vitexport: Command, cpu_bundle: Built) -> None:
    validated = json.loads(vitexport("validate", cpu_bundle.root, "--data", VALIDATION, "--json").stdout)
    assert validated["verdict"] == "passed"
    assert validated["measurements"]["accuracy"]["top1"] >= 97
    inspected = json.loads(vitexport("inspect", cpu_bundle.root, "--json").stdout)
    assert inspected["manifest"]["precision"] == "int8"
    words = ("--seconds", "0.1", "--no-pytorch", "--json")
    timed = json.loads(vitexport("bench", cpu_bundle.root, *words).stdout)
    assert 0 < timed["measurements"]["bench"]["rows"][0]["p50_ms"] < 10_000
    predicted = json.loads(vitexport("predict", cpu_bundle.root, DIGIT, "--top", "2", "--json").stdout)
    assert predicted[0]["top"][0]["label"] == "7"
    assert len(predicted[0]["top"]) == 2


def test_build_takes_feature_maps_beside_the_classifier(vitexport: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--model-kwarg", "depth=2", "--features", "0,1", "--head", "classifier", "--softmax", "--min-agreement", "0")
    done = vitexport("build", *TINY_WORDS, *words, "--target", "cpu", "--json", "-o", out)
    assert done.returncode == 0, done.stderr
    names = ["probabilities", "feature_0", "feature_1"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert [(output["name"], output["kind"], output["shape"]) for output in manifest["outputs"]] == [
        ("probabilities", "probabilities", [10]),
        ("feature_0", "feature_map", [32, 4, 4]),
        ("feature_1", "feature_map", [32, 4, 4]),
    ]
    for output in manifest["outputs"]:
        golden = np.load(out / "golden" / f"{output['name']}.npy")
        assert golden.shape[1:] == tuple(output["shape"])
    report = json.loads(done.stdout)
    assert list(report["measurements"]["candidates"]["fp32"]["outputs"]) == names
    assert {"agreement", "cosine_feature_0", "cosine_feature_1"} <= {check["name"] for check in report["checks"]}
    shown = vitexport("inspect", out).stdout
    assert "10 classes, feature_0 [32, 4, 4], feature_1 [32, 4, 4]" in " ".join(shown.split())
    [predicted] = json.loads(vitexport("predict", out, DIGIT, "--top", "10", "--json").stdout)
    assert sum(entry["probability"] for entry in predicted["top"]) == pytest.approx(1, abs=1e-5)


def test_predict_shows_what_a_model_without_classes_computes(vitexport: Command, embedding_bundle: Built) -> None:
    pictures = [DIGIT, VALIDATION / "3" / "digit_0045.png"]
    outputs = load(embedding_bundle.root).predict([str(picture) for picture in pictures]).outputs
    rows = json.loads(vitexport("predict", embedding_bundle.root, *pictures, "--json").stdout)
    assert [(row["image"], row["output"], row["shape"]) for row in rows] == [
        (str(picture), "embedding", [32]) for picture in pictures
    ]
    for row, values in zip(rows, outputs["embedding"], strict=True):
        assert row["norm"] == pytest.approx(float(np.linalg.norm(values)), rel=1e-5)
        assert (row["mean"], row["std"]) == pytest.approx((float(values.mean()), float(values.std())), rel=1e-4, abs=1e-6)
    shown = vitexport("predict", embedding_bundle.root, pictures[0]).stdout
    assert "embedding" in shown
    assert f"{rows[0]['norm']:.4g}" in shown
    assert "embedding [32]" in vitexport("inspect", embedding_bundle.root).stdout


def test_predict_writes_every_output_to_a_file(vitexport: Command, several_bundle: Built, tmp_path: Path) -> None:
    file = tmp_path / "out.npz"
    done = vitexport("predict", several_bundle.root, DIGIT, DIGIT, "-o", file)
    assert done.returncode == 0, done.stderr
    assert "7 " in done.stdout
    outputs = load(several_bundle.root).predict([DIGIT, DIGIT]).outputs
    with np.load(file, allow_pickle=False) as written:
        assert set(written) == set(outputs) == {"logits", "feature_0", "feature_1"}
        for name, values in outputs.items():
            assert written[name].dtype == np.float32
            np.testing.assert_array_equal(written[name], values)


def test_predict_takes_a_folder_and_a_pattern_and_writes_a_table(
    vitexport: Command, cpu_bundle: Built, tmp_path: Path
) -> None:
    pattern = VALIDATION / "7" / "*_008*.png"
    done = vitexport(
        "predict", cpu_bundle.root, VALIDATION / "3", pattern, "--top", "2", "--json", "-o", tmp_path / "out.csv"
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    threes = sorted(str(path) for path in (VALIDATION / "3").iterdir())
    assert [row["image"] for row in printed] == [*threes, str(DIGIT)]
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["image"] for row in table] == [*threes, str(DIGIT)]
    assert [float(row["probability_2"]) for row in table] == [row["top"][1]["probability"] for row in printed]
    assert [row["label_1"] for row in table][-1] == "7"
    assert_refused(vitexport("predict", cpu_bundle.root, tmp_path / "*.png"), 3, "No file matches")


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("out.npy", "ends in .npz or .csv or .jsonl"),
        ("out", "ends in .npz or .csv"),
        ("none/out.npz", "cannot be written"),
        ("dir.npz", "is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    vitexport: Command, name: str, fragment: str, tmp_path: Path
) -> None:
    (tmp_path / "dir.npz").mkdir()
    # The bundle is not looked at: it does not exist.
    assert_refused(vitexport("predict", tmp_path / "bundle", DIGIT, "-o", tmp_path / name), 2, fragment)
    assert [path.name for path in tmp_path.iterdir()] == ["dir.npz"]


def test_a_model_without_classes_has_no_accuracy(vitexport: Command, embedding_bundle: Built) -> None:
    refused = vitexport("validate", embedding_bundle.root, "--data", VALIDATION)
    assert_refused(refused, 2, "names no classes, so there is no accuracy; leave --data out")
    assert "3 passed" in vitexport("validate", embedding_bundle.root).stdout


def test_commands_print_for_people(vitexport: Command, cpu_bundle: Built, jetson_bundle: Built) -> None:
    shown = vitexport("inspect", jetson_bundle.root).stdout
    for fragment in ("Jetson Orin Nano 8GB", "JetPack 6.2", "skipped", "trtexec", "placement A", "golden_logits"):
        assert fragment in shown
    assert "7 " in vitexport("predict", cpu_bundle.root, DIGIT).stdout
    assert "p50 ms" in vitexport("bench", cpu_bundle.root, "--seconds", "0.1", "--no-pytorch").stdout
    assert "3 passed" in vitexport("validate", cpu_bundle.root).stdout


def test_a_device_build_ships_the_script_that_the_report_names(vitexport: Command, jetson_bundle: Built) -> None:
    report = json.loads(vitexport("inspect", jetson_bundle.root, "--json").stdout)
    assert "engine.sh" in report["manifest"]["files"]
    assert report["manifest"]["engine"]["recipe"]["trtexec"].startswith("trtexec --onnx=model.onnx")


def test_json_stays_one_document_when_native_code_writes_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("before ")
    with native_output_aside():
        os.write(1, b"a library speaks")
    show.print_json({"a": 1})
    sys.stdout.flush()
    os.write(1, b"after")
    output = capfd.readouterr()
    assert output.err == "a library speaks"
    assert output.out == 'before {\n "a": 1\n}\nafter'


def open_descriptors() -> set[int]:
    return {descriptor for descriptor in range(256) if os.path.exists(f"/proc/self/fd/{descriptor}")}  # noqa: PTH110


def test_stdout_comes_back_when_the_build_fails(capfd: pytest.CaptureFixture[str]) -> None:
    descriptors = open_descriptors()
    with pytest.raises(RuntimeError, match="inside"), native_output_aside():
        raise RuntimeError("inside")
    os.write(1, b"a result")
    assert capfd.readouterr().out == "a result"
    assert open_descriptors() == descriptors


def test_a_batch_outside_the_bundles_range_is_not_timed(vitexport: Command, cpu_bundle: Built) -> None:
    assert_refused(vitexport("bench", cpu_bundle.root, "--batch", "2"), 2, "Batch 2 cannot be timed", "takes 1")


def test_plan_tells_every_problem_and_runs_nothing(vitexport: Command, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    done = vitexport(
        "plan", *TINY_WORDS, "--target", "jetson-nano", "--precision", "int8", "--labels", labels,
        "--data", tmp_path / "none", "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 2
    for fragment in ("no INT8 tensor cores", "--calibration", "2 names", "problems"):
        assert fragment in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["labels.txt"]


def test_a_plan_without_problems_lists_the_steps(vitexport: Command) -> None:
    words = ("--target", "l4", "--precision", "int8", "--calibration", CALIBRATION, "--data", VALIDATION)
    done = vitexport("plan", *SAMPLE_WORDS, *words)
    assert done.returncode == 0
    assert "no problems found" in done.stdout
    for fragment in ("256 calibration images", "400 labelled images", "TensorRT-RTX engine for compute capability 8.9"):
        assert fragment in done.stdout
    assert json.loads(vitexport("plan", *SAMPLE_WORDS, *words, "--json").stdout)["exit_code"] == 0


def test_targets_lists_and_describes(vitexport: Command) -> None:
    listed = json.loads(vitexport("targets", "--json").stdout)
    assert len(listed) == 42
    assert "TensorRT 10.3.0" in vitexport("targets", "jetson-orin-nano-8gb", "--jetpack", "6.2").stdout
    assert_refused(vitexport("targets", "jetson-orin"), 2, "not in the catalogue", "jetson-orin-nano-8gb")


@pytest.mark.parametrize(
    ("words", "code", "fragments"),
    [
        (("build", "vit_nope", "--target", "cpu"), 3, ("no model named 'vit_nope'",)),
        (("build", "resnet18", "--no-pretrained", "--target", "cpu"), 3, ("not a Vision Transformer",)),
        (("build", "vit_tiny_patch16_224", "--target", "cpu"), 3, ("--checkpoint", "--no-pretrained")),
        (("build", "vit_tiny_patch16_224"), 2, ("--target",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--precision", "fp16"), 2, ("fp16 is not available",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--precision", "int8"), 2, ("give --calibration",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--batch", "8:1"), 2, ("minimum:optimum:maximum",)),
        (("build", *TINY_WORDS, "--target", "l4", "--jetpack", "6.2"), 2, ("JetPack",)),
        (
            ("build", *TINY_WORDS, "--target", "l4", "--img-size", "224", "--batch", "1:1:900000"),
            2,
            ("largest batch that fits",),
        ),
        (("build", *TINY_WORDS, "--target", "l4", "--batch", "9" * 5000), 2, ("is not valid",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--img-size", "33"), 3, ("patches of 8 x 8", "32 and 40")),
        (("build", *TINY_WORDS, "--target", "cpu", "--model-kwarg", "x"), 2, ("KEY=VALUE",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--calibration", ROOT / "tests" / "fakes"), 3, ("holds no images",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--calibration", ROOT / "nowhere"), 3, ("does not exist",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--data", ROOT / "calibration"), 3, ("2 class folders", "10 classes")),
        (("build", *TINY_WORDS, "--target", "cpu", "-o", "/proc/no/such"), 3, ("cannot be created",)),
        (("build", *TINY_WORDS, "--target", "cpu", "-o", ROOT), 3, ("is not a bundle",)),
        (("build", *SAMPLE_WORDS, "--pretrained", "--target", "cpu"), 2, ("exclude each other",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--seed", "-1"), 2, ("--seed", "0<=x<=4294967295")),
        (("build", *TINY_WORDS, "--target", "cpu", "--seed", "4294967296"), 2, ("--seed",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--crop-pct", "0.05"), 2, ("at least 0.1",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--model-kwarg", "checkpoint_path=w.pth"), 2, ("use --checkpoint",)),
        (("build", *TINY_WORDS, "--target", "cpu", "-o", "."), 3, ("the current folder",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--features", "0,x"), 2, ("is not a list of block numbers",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--features", "-1"), 2, ("is not a list of block numbers",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--features", "1,0"), 2, ("once, in rising order",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--features", "7"), 3, ("has no such output",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--features", "0", "--head", "none"), 2, ("give --features alone",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--head", "neck"), 2, ("--head", "'neck'")),
        (("build", *TINY_WORDS, "--target", "cpu", "--head", "tokens", "--softmax"), 2, ("needs a classifier head",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--min-cosine", "1.5"), 2, ("--min-cosine is 1.5; it must be 0 to 1",)),
        (("build", *TINY_WORDS, "--target", "cpu", "--head", "none", "--data", VALIDATION), 2, ("returns embedding",)),
        (("build", "torchvision:vit_b_17", "--target", "cpu"), 3, ("it has vit_b_16",)),
        (("predict", ROOT / "nowhere", DIGIT), 3, ("does not exist",)),
        (("predict", ROOT, DIGIT), 3, ("no manifest.json",)),
        (("validate", ROOT / "README.md"), 3, ("not a folder",)),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    vitexport: Command, words: tuple[str, ...], code: int, fragments: tuple[str, ...], tmp_path: Path
) -> None:
    assert_refused(vitexport(*words, cwd=tmp_path), code, *fragments)
    assert list(tmp_path.iterdir()) == []


def test_bad_images_for_predict(vitexport: Command, cpu_bundle: Built, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(DIGIT.read_bytes()[:60])
    assert_refused(vitexport("predict", cpu_bundle.root, broken), 3, "broken.png")
    assert_refused(vitexport("predict", cpu_bundle.root, tmp_path / "none.jpg"), 3, "does not exist")
    assert_refused(vitexport("predict", cpu_bundle.root, ROOT / "README.md"), 3, "not an image")


def test_an_l4_engine_is_refused_here_and_names_both_sides(vitexport: Command, l4_bundle: Built) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU; tests/gpu runs the engine")
    insisting = vitexport("predict", l4_bundle.root, DIGIT, "--backend", "tensorrt")
    assert_refused(insisting, 5, "NVIDIA L4", "8.9", "this machine has no CUDA GPU")
    instead = vitexport("predict", l4_bundle.root, DIGIT)
    assert "7 " in instead.stdout
    assert "note: running on ONNX Runtime" in instead.stderr
    assert "this machine has no CUDA GPU" in instead.stderr
    asked = vitexport("predict", l4_bundle.root, DIGIT, "--backend", "onnxruntime").stderr
    assert re.fullmatch(r"note: running on ONNX Runtime .*, graph as written\n", asked)


def test_unreadable_calibration_images_are_named_and_counted(vitexport: Command, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(CALIBRATION / "3", folder)
    (folder / "aa_broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    done = vitexport(
        "build", *TINY_WORDS, "--target", "cpu", "--precision", "int8", "--calibration", folder, "--json",
        "--min-agreement", "0", "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert any("1 unreadable images are left out: aa_broken.png" in note for note in report["notes"])
    recipe = json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]
    assert list(recipe["skipped_images"]) == ["aa_broken.png"]
    assert "aa_broken.png" not in recipe["images"]


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "exporting"), (signal.SIGTERM, "calibrating"), (signal.SIGINT, "validating")],
)
def test_an_interrupted_build_leaves_nothing(number: signal.Signals, moment: str, tmp_path: Path) -> None:
    words = ("--target", "cpu", "--precision", "int8", "--calibration", CALIBRATION, "-o", tmp_path / "parent" / "out")
    command = [sys.executable, "-m", "vitexport", "build", *SAMPLE_WORDS, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if f": {moment}" in line:
                break
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_leaves_no_bundle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vitexport", "build", *TINY_WORDS, "--target", "cpu", "-o", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if ": validating" in line:
                break
        process.kill()
    assert not out.exists()


def test_existing_bundles_are_replaced_only_by_force(vitexport: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("build", *TINY_WORDS, "--target", "cpu", "-o", out, "--quiet", "--min-agreement", "0")
    assert vitexport(*words).returncode == 0
    before = (out / "manifest.json").read_bytes()
    assert_refused(vitexport(*words), 3, "--force")
    assert (out / "manifest.json").read_bytes() == before
    assert vitexport(*words, "--force", "--seed", "1").returncode == 0
    assert (out / "manifest.json").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_help_and_version(vitexport: Command) -> None:
    assert "exit codes" in vitexport("--help").stdout.lower()
    assert vitexport("--version").stdout.startswith("vitexport ")
    assert "--min-agreement" in vitexport("build", "--help").stdout


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m vitexport targets | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr


def test_what_a_device_installs(cpu_bundle: Built, tmp_path: Path) -> None:
    """`pip install .` brings numpy, Pillow, click and rich only; with ONNX Runtime beside it every device command works."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", str(ROOT)], check=True, env=_clean_environment())
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    names = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    helpers = {"pip", "setuptools", "markdown-it-py", "mdurl", "pygments", "tomli", "colorama"}
    assert names - helpers == {"vitexport", "numpy", "pillow", "click", "rich"}

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(environment / "bin" / "vitexport"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert run("targets").returncode == 0
    assert run("inspect", cpu_bundle.root).returncode == 0
    assert_refused(run("predict", cpu_bundle.root, DIGIT), 4, "pip install 'vitexport[onnxruntime]'")
    assert_refused(run("build", "vit_tiny_patch16_224", "--target", "cpu"), 4, "pip install 'vitexport[build]'")
    # The command that the message named, as it stands: pip takes the extra from the installed package.
    subprocess.run([python, "-m", "pip", "install", "-q", "vitexport[onnxruntime]"], check=True, env=_clean_environment())
    assert "7 " in run("predict", cpu_bundle.root, DIGIT).stdout
    assert run("validate", cpu_bundle.root, "--data", VALIDATION).returncode == 0
    assert run("bench", cpu_bundle.root, "--seconds", "0.2").returncode == 0


def _clean_environment() -> dict[str, str]:
    """The environment without what would lead pip to this test run's own packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def without_labels(folder: Path) -> tuple[str, ...]:
    """The sample away from its config.json, which names its classes."""
    shutil.copy(CHECKPOINT, folder / "own.safetensors")
    own = str(folder / "own.safetensors")
    return (*(own if word == str(CHECKPOINT) else word for word in SAMPLE_WORDS), "--precision", "fp32")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--class-order", "natural"), 2, "sorts the class folders of --data"),
        (("--class-order", "natural", "--labels", "labels.txt"), 2, "no effect with --labels"),
        (("--data", "DATA"), 3, "1, 10, 2, 3, … in string order"),
        (("--data", "DATA", "--class-order", "natural", "--expect-top1", "0.99"), 2, "give 99"),
        (("--expect-top1", "99"), 2, "give --data"),
    ],
)
def test_an_order_of_classes_that_cannot_be_known_or_used_is_refused(
    words: tuple[str, ...], code: int, message: str, tmp_path: Path, vitexport: Command
) -> None:
    for digit in range(10):
        shutil.copytree(VALIDATION / str(digit), tmp_path / "data" / str(digit + 1))
    (tmp_path / "labels.txt").write_text("\n".join(str(digit + 1) for digit in range(10)), encoding="utf-8")
    given = [str(tmp_path / "data") if word == "DATA" else word for word in words]
    done = vitexport("build", *without_labels(tmp_path), "--target", "cpu", *given, "-o", tmp_path / "out", cwd=tmp_path)
    assert_refused(done, code, message)
    assert not (tmp_path / "out").exists()


def test_a_wrong_order_of_classes_fails_and_an_expectation_is_held(tmp_path: Path, vitexport: Command) -> None:
    for digit in range(10):
        shutil.copytree(VALIDATION / str(digit), tmp_path / "data" / str(digit + 1))
    out = tmp_path / "out"
    # Another CPU than this machine's: nothing is timed.
    data = ("--data", tmp_path / "data", "--expect-top1", "99.25")
    words = (*without_labels(tmp_path), "--target", "cpu-arm64-dotprod", *data, "-o", out, "--force", "--json")
    wrong = vitexport("build", *words, "--class-order", "string")
    assert wrong.returncode == 1
    report = json.loads(wrong.stdout)
    failed = {check["name"]: check["message"] for check in report["checks"] if check["status"] == "failed"}
    assert failed.keys() == {"plausibility", "class_order", "expected_top1"}
    assert "natural order of the class folders: 1, 2, 3" in failed["class_order"]
    assert report["measurements"]["reference"]["order_that_fits"] == [str(digit + 1) for digit in range(10)]
    right = vitexport("build", *words, "--class-order", "natural")
    assert right.returncode == 0, right.stdout
    assert open_bundle(out).manifest.labels == tuple(str(digit + 1) for digit in range(10))
    assert_refused(vitexport("validate", out, "--expect-top1", "99"), 2, "--expect-top1 needs labelled pictures")


def test_the_models_own_labels_leave_no_order_to_choose(tmp_path: Path, vitexport: Command) -> None:
    words = (*SAMPLE_WORDS, "--target", "cpu", "--data", VALIDATION, "--class-order", "natural", "-o", tmp_path / "out")
    assert_refused(vitexport("build", *words), 2, "the model's own labels give the order (0, 1, 2, …)")


@pytest.mark.parametrize("command", ["build", "plan"])
def test_every_option_of_a_build_stands_under_one_heading(command: str, vitexport: Command) -> None:
    names = [name for group in GROUPS.values() for name in group]
    options = {str(parameter.name) for parameter in cli.commands[command].params if isinstance(parameter, click.Option)}
    assert len(set(names)) == len(names)
    assert set(names) == options | {"help"}
    shown = vitexport(command, "--help").stdout
    assert all(f"{heading}:\n" in shown for heading in GROUPS)
    assert shown.count("--target TARGET") == 1
    for example in re.findall(rf"^  (vitexport {command} .*)$", shown, re.MULTILINE):
        assert len(example) <= 78


def test_examples_of_the_help_are_words_that_the_command_takes() -> None:
    for _, words in EXAMPLES:
        with cli.commands["plan"].make_context("plan", words.split()) as context:
            assert context.params["target"]


def test_a_shell_completes_targets() -> None:
    found = [item.value for item in ShellComplete(cli, {}, "vitexport", "_C").get_completions(["build", "--target"], "l4")]
    assert found == [name for name in catalogue() if name.startswith("l4")]
