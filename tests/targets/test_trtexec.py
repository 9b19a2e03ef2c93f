from __future__ import annotations

import re

import pytest

from vitexport.errors import ToolchainError
from vitexport.targets import catalogue
from vitexport.targets.rows import packaged
from vitexport.targets.trtexec import check_words, options, reads

# What the sources read at the versions that were looked at (vitexport/targets/trtexec.toml names the commits).
SEEN = {
    "8.2.1": {"fp16", "int8"},
    "8.5.1": {"fp16", "int8", "precisionConstraints", "layerPrecisions"},
    "8.6.2": {"fp16", "int8", "precisionConstraints", "layerPrecisions"},
    "10.3.0": {"fp16", "int8", "precisionConstraints", "layerPrecisions", "stronglyTyped"},
    "11.1.0": {"stronglyTyped", "includeDataTransfers"},
    "11.4.1": {"stronglyTyped", "includeDataTransfers"},
}
ALWAYS = {
    *("onnx", "saveEngine", "loadEngine", "minShapes", "optShapes", "maxShapes", "shapes"),
    *("loadInputs", "exportOutput", "iterations", "warmUp", "duration"),
}


@pytest.mark.parametrize(("version", "some"), SEEN.items())
def test_each_generation_reads_what_its_source_reads(version: str, some: set[str]) -> None:
    read = {name for name in options() if reads(name, version)}
    # 8.2 reads --precisionConstraints already; alone it holds nothing, so the row begins where it is of use.
    assert read == ALWAYS | some


def test_the_rows_are_versions_in_order() -> None:
    for since, until in options().values():
        assert re.fullmatch(r"\d+\.\d+", since)
        assert until is None or float(until.partition(".")[0]) > float(since.partition(".")[0])


def test_what_is_not_read_is_refused_by_its_name() -> None:
    words = ["--onnx=model.onnx", "--fp16", "--precisionConstraints=obey", "--layerPrecisions=a:fp32"]
    check_words(words, "8.5.2")
    with pytest.raises(ToolchainError, match=r"TensorRT 8\.2\.1 does not read --precisionConstraints, --layerPrecisions\."):
        check_words(words, "8.2.1")
    with pytest.raises(ToolchainError, match="does not read --fp16, --precisionConstraints"):
        check_words(words, "11.4.1")
    with pytest.raises(ToolchainError, match="does not read --stronglyTyped"):
        check_words(["--stronglyTyped"], "8.6.2")
    with pytest.raises(ToolchainError, match="does not read --workspace"):
        check_words(["--workspace=1024"], "10.3.0")


def test_every_stack_of_the_catalogue_is_within_what_is_known() -> None:
    stacks = {jetpack.tensorrt for jetpack in packaged().jetpacks.values()}
    stacks |= {device.tensorrt for device in catalogue().values() if device.tensorrt}
    assert all(reads("onnx", version) for version in stacks)
