from __future__ import annotations

import numpy as np
import pytest

from vitexport.artifacts import OutputSpec
from vitexport.preprocess import PreprocessSpec
from vitexport.validate.probes import FEWEST_GOLDEN, GOLDEN_BYTES, GOLDEN_COUNT, PHOTOGRAPHS, golden_count, probe_pixels

SPEC = PreprocessSpec(height=16, width=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", crop_pct=1.0)
LOGITS = OutputSpec(name="logits", kind="logits", shape=(1000,))


def maps(*shape: int) -> OutputSpec:
    return OutputSpec(name="feature_0", kind="feature_map", shape=shape)


@pytest.mark.parametrize(
    ("outputs", "count"),
    [
        ((LOGITS,), GOLDEN_COUNT),
        # 4 bytes times 2**18 values are 1 MiB an image.
        ((maps(256, 32, 32),), 32),
        ((maps(512, 32, 32),), 16),
        ((maps(512, 32, 32), maps(512, 32, 32)), 8),
        ((LOGITS, maps(512, 32, 32)), 15),
        ((maps(4096, 64, 64),), FEWEST_GOLDEN),
    ],
)
def test_large_outputs_get_fewer_golden_inputs(outputs: tuple[OutputSpec, ...], count: int) -> None:
    assert GOLDEN_BYTES == 32 << 20
    assert golden_count(outputs) == count


def test_a_few_golden_inputs_are_different_photographs() -> None:
    photographs = len(list(PHOTOGRAPHS.glob("*.jpg")))
    assert photographs >= FEWEST_GOLDEN
    few, all_of_them = probe_pixels(None, SPEC, FEWEST_GOLDEN), probe_pixels(None, SPEC)
    assert (len(few), len(all_of_them)) == (FEWEST_GOLDEN, GOLDEN_COUNT)
    np.testing.assert_array_equal(few, all_of_them[:FEWEST_GOLDEN])
    # The mirror image of a photograph has the same histogram; another photograph has not.
    histograms = {tuple(np.sort(pixels, axis=None)) for pixels in all_of_them[:photographs]}
    assert len(histograms) == photographs
    assert len({pixels.tobytes() for pixels in all_of_them}) == GOLDEN_COUNT
