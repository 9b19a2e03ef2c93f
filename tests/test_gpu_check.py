"""The table of `scripts/gpu-check`, and what it says where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT

from vitexport.runtime.backends.cuda import why_no_driver

sys.path.insert(0, str(ROOT / "scripts"))
import gpu_figures


def entry(runner: str, what: str, p50: float, *, graph: bool | None = None) -> dict[str, Any]:
    return {"runner": runner, "what": what, "batch": 8, "cuda_graph": graph, "p50_ms": p50}


DOCUMENT = {
    "runtime": "TensorRT-RTX 1.7.1, Some GPU",
    "rows": [
        entry("shipped", "gpu", 0.5, graph=False),
        entry("shipped", "end_to_end", 0.8, graph=False),
        entry("shipped", "gpu", 0.4, graph=True),
        entry("shipped", "end_to_end", 0.7, graph=True),
        entry("PyTorch fp16", "gpu", 1.1),
        entry("PyTorch fp16", "end_to_end", 1.6),
    ],
}


def test_a_row_tells_the_gpus_time_with_and_without_a_graph_and_pytorch_over_it() -> None:
    found = gpu_figures.row("sample", "int8", DOCUMENT, 47.26)
    assert (found.gpu_ms, found.graph_ms, found.end_to_end_ms) == (0.5, 0.4, 0.8)
    assert found.ratio == pytest.approx(2.0)
    page = gpu_figures.table([found], ["sample, int8, onnxruntime-cuda: no provider"], "Measured on Some GPU.")
    assert "| sample | int8 | TensorRT-RTX 1.7.1, Some GPU | 8 | 0.500 | 0.400 | 0.800 | 2.00 x | 47.3 |" in page
    assert "- sample, int8, onnxruntime-cuda: no provider" in page


def test_a_runtime_without_a_gpu_timer_leaves_its_cells_empty() -> None:
    rows = [{**entry("shipped", "end_to_end", 2.0), "cuda_graph": None}]
    found = gpu_figures.row("sample", "fp16", {"runtime": "ONNX Runtime", "rows": rows}, None)
    assert (found.gpu_ms, found.graph_ms, found.end_to_end_ms, found.ratio) == (None, None, 2.0, None)


@pytest.mark.skipif(why_no_driver() is None, reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_sentence_and_its_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gpu_figures.py", "--only-look"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 5
    assert done.stderr.startswith("Error: GPU tests need an NVIDIA GPU, and this machine has no NVIDIA driver")
    assert done.stderr.count("\n") == 1
