from __future__ import annotations

import numpy as np
import pytest
from exports import exported
from graphs import read, run

from vitexport.artifacts import OutputSpec
from vitexport.errors import ToolchainError
from vitexport.rewrites import apply
from vitexport.rewrites.rank_classes import PROBABILITIES, TOP_INDICES, RankClasses

LOGITS = OutputSpec(name="logits", kind="logits", shape=(7,))
IMAGES = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)


def test_probabilities_and_the_likeliest_classes_stand_beside_the_logits() -> None:
    model = read(exported())
    logits = run(model, IMAGES)
    apply(model, RankClasses(LOGITS, 3))
    assert [output.name for output in model.graph.outputs] == ["logits", PROBABILITIES, TOP_INDICES]
    np.testing.assert_array_equal(run(model, IMAGES), logits)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        run(model, IMAGES, output=PROBABILITIES), shifted / shifted.sum(axis=1, keepdims=True), rtol=1e-5
    )
    np.testing.assert_array_equal(run(model, IMAGES, output=TOP_INDICES), np.argsort(-logits, axis=1)[:, :3])


def test_no_more_classes_than_there_are() -> None:
    model = read(exported())
    apply(model, RankClasses(LOGITS, 1000))
    assert run(model, IMAGES, output=TOP_INDICES).shape == (4, 7)


def test_probabilities_that_the_model_computes_are_not_computed_again() -> None:
    model = read(exported())
    model.graph.outputs[0].name = PROBABILITIES
    apply(model, RankClasses(OutputSpec(name=PROBABILITIES, kind="probabilities", shape=(7,)), 2))
    assert [output.name for output in model.graph.outputs] == [PROBABILITIES, TOP_INDICES]


def test_a_model_without_the_output_is_refused() -> None:
    with pytest.raises(ToolchainError, match="expected embedding"):
        apply(read(exported()), RankClasses(OutputSpec(name="embedding", kind="logits", shape=(7,)), 2))
