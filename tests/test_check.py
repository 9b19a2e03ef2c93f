"""`vitexport check` as a user runs it, on graphs of ours and on those that another tool wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from exports import digits, exported, live
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from test_cli import Command, assert_refused, vitexport
from test_legality import CASES, linear

from vitexport.artifacts import INPUT_NAME
from vitexport.legality import RULES

__all__ = ["vitexport"]


class Digits(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime has no types
    """Eight images, in the form that ONNX Runtime's quantizer asks for."""

    def __init__(self) -> None:
        self.batches: Iterator[NDArray[Any]] = iter(digits(8).batches(live()[1].preprocess, 8))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def by_onnx_runtime(folder: Path, **options: Any) -> Path:
    source, result = folder / "float.onnx", folder / "qdq.onnx"
    source.write_bytes(exported("8"))
    quantize_static(source, result, Digits(), per_channel=True, **options)
    return result


def written(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_graph_of_ours_is_clean(vitexport: Command, tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    path.write_bytes(exported())
    done = vitexport("check", path, "--target", "l4")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "for NVIDIA L4, TensorRT-RTX 1.7.1: 12 MatMul in float, 1 Conv in float, 1 Gemm in float",
        "no problems found",
    ]
    assert vitexport("check", path, "--target", "l4", "--quiet").stdout == "no problems found\n"


def test_onnx_runtimes_default_quantization_is_refused_by_its_rules(vitexport: Command, tmp_path: Path) -> None:
    path = by_onnx_runtime(tmp_path)
    done = vitexport("check", path, "--target", "jetson-orin-nano-8gb", "--jetpack", "6.2")
    assert done.returncode == 1
    for fragment in (
        "TensorRT 10.3.0 (JetPack 6.2)",
        "error zero-point:",
        "error int32-bias:",
        "is not symmetric",
        "more (--verbose",
    ):
        assert fragment in done.stdout
    report = json.loads(vitexport("check", path, "--target", "l4", "--json").stdout)
    assert report["errors"] == sum(violation["level"] == "error" for violation in report["violations"]) > 20
    assert report["warnings"] > 0
    assert {"zero-point", "int32-bias", "residual", "gelu-input"} <= set(report["rules"]) <= set(RULES)
    every = vitexport("check", path, "--target", "l4", "--verbose").stdout
    assert len(every.splitlines()) == 2 + len(report["violations"]) + len(report["rules"])


def test_its_symmetric_quantization_still_holds_a_scalar_that_the_compiler_refuses(
    vitexport: Command, tmp_path: Path
) -> None:
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    path = by_onnx_runtime(tmp_path, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, extra_options=symmetric)
    report = json.loads(vitexport("check", path, "--target", "l4", "--json").stdout)
    assert {entry["rule"] for entry in report["violations"] if entry["level"] == "error"} == {"quantized-constant"}
    assert report["products"]["MatMul quantized per channel"] == 8


def test_warnings_alone_do_not_fail(vitexport: Command, tmp_path: Path) -> None:
    done = vitexport("check", written(tmp_path, CASES["residual"].make()), "--target", "l4")
    assert done.returncode == 0
    assert "warning residual:" in done.stdout
    assert done.stdout.endswith("\n1 warning\n")


def test_the_same_graph_is_judged_by_each_targets_own_rules(vitexport: Command, tmp_path: Path) -> None:
    path = written(tmp_path, linear())
    for name in ("l4", "t4", "jetson-orin-nano-8gb", "cpu-x86-vnni"):
        assert vitexport("check", path, "--target", name).returncode == 0
    for name, rule in (("jetson-xavier-nx", "opset"), ("jetson-nano", "int8-device"), ("cpu-x86-avx2", "int16-saturation")):
        done = vitexport("check", path, "--target", name)
        assert done.returncode == 1
        assert f"error {rule}:" in done.stdout


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ("holds no ONNX graph", "0 bytes")),
        (b"GIF89a and more", ("is not a whole ONNX model",)),
        (linear().SerializeToString()[:-100], ("is not a whole ONNX model", "again")),
    ],
)
def test_what_is_no_model_is_one_message(
    vitexport: Command, content: bytes, fragments: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert_refused(vitexport("check", path, "--target", "l4"), 3, "model.onnx", *fragments)


def test_bad_words_are_one_message(vitexport: Command, tmp_path: Path) -> None:
    path = written(tmp_path, linear())
    assert_refused(vitexport("check", tmp_path / "none.onnx", "--target", "l4"), 3, "does not exist")
    assert_refused(vitexport("check", tmp_path, "--target", "l4"), 3, "is not a file")
    assert_refused(vitexport("check", path, "--target", "l44"), 2, "not in the catalogue")
    assert_refused(vitexport("check", path, "--target", "l4", "--jetpack", "6.2"), 2, "not a Jetson")
    assert_refused(vitexport("check", path), 2, "--target")


def test_where_onnx_is_not_installed_the_message_installs_it(
    vitexport: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, linear())
    for name in [name for name in sys.modules if name.startswith("vitexport.legality")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("vitexport.legality", raising=False)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    assert_refused(vitexport("check", path, "--target", "l4"), 4, "pip install 'vitexport[build]'")
