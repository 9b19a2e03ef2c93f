from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitexport.errors import UsageError
from vitexport.targets import Target, catalogue, resolve, resolve_all

RTX = [row.id for row in catalogue().values() if row.kind == "gpu" and resolve(row.id).runtime == "tensorrt-rtx"]


@given(st.lists(st.sampled_from(RTX), min_size=2, max_size=5, unique=True))
def test_several_gpus_offer_what_each_of_them_offers(names: list[str]) -> None:
    alone, together = [resolve(name) for name in names], resolve_all(names)
    assert set(together.compute_capabilities) == {target.compute_capability for target in alone}
    assert list(together.compute_capabilities) == sorted(set(together.compute_capabilities), key=float)
    for target in alone:
        assert target.name in together.name
        assert set(together.precisions) <= set(target.precisions)
        assert together.memory_gb is None or target.memory_gb is None or together.memory_gb <= target.memory_gb
        assert all(together.peaks[key] <= target.peaks[key] for key in together.peaks)
    assert set(together.precisions) | set(together.unavailable) == {"fp32", "fp16", "int8"}
    assert Target.from_json(json.loads(json.dumps(together.to_json()))) == together


def test_one_name_and_the_same_name_twice_are_that_target() -> None:
    assert resolve_all(["l4"]) == resolve_all(["l4", "l4"]) == resolve("l4")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["l4", "h100-sxm"], r"h100-sxm \(NVIDIA H100 SXM5 80GB\) runs full TensorRT"),
        (["jetson-orin-nano-8gb", "l4"], "runs full TensorRT, which builds on the device itself"),
        (["l4", "cpu-x86-vnni"], "runs ONNX Runtime"),
        (["l4", "l5"], "Target 'l5' is not in the catalogue"),
    ],
)
def test_what_no_single_engine_serves_is_refused(names: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve_all(names)


def test_a_rate_that_one_of_them_lacks_is_unknown_for_all() -> None:
    slow, fast = resolve("t4"), resolve("l4")
    together = resolve_all(["l4", "t4"])
    assert together.peaks["fp16"] == min(slow.peaks["fp16"], fast.peaks["fp16"])
    assert "fp8" in fast.peaks
    assert "fp8" not in together.peaks
    assert together.precisions == ("fp16", "int8")
