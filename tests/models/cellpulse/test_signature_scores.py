"""Places of signatures in the model's space of gene factors."""

from __future__ import annotations

import numpy as np

from cfm.models import CellPulse
from cfm.models.cellpulse._attribution import signature_scores


def some_signatures(model: CellPulse, rng: np.random.Generator, n: int = 7) -> np.ndarray:
    return rng.choice([-1.0, 0.0, 1.0], size=(n, len(model.vocabulary))).astype(np.float32)


def test_places_have_unit_length_and_turn_with_the_signature(
    model: CellPulse, rng: np.random.Generator
) -> None:
    rows = some_signatures(model, rng)
    found = signature_scores(model, rows)
    assert found.dtype == np.float32
    assert found.shape == (7, model.module.gene_factors.shape[1])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(signature_scores(model, -rows), -found, atol=1e-5)


def test_batches_change_nothing(model: CellPulse, rng: np.random.Generator) -> None:
    rows = some_signatures(model, rng)
    alone = signature_scores(model, rows, batch_size=1)
    np.testing.assert_allclose(signature_scores(model, rows, batch_size=3), alone, atol=1e-5)
    # a short last batch, and one that is full at the end
    np.testing.assert_allclose(signature_scores(model, iter(rows), batch_size=7), alone, atol=1e-5)


def test_a_signature_that_says_nothing_has_no_place(
    model: CellPulse, rng: np.random.Generator
) -> None:
    rows = some_signatures(model, rng, 2)
    rows[1] = 0.0
    found = signature_scores(model, rows)
    assert found[0].any()
    assert not found[1].any()
    assert not signature_scores(model, [np.full(rows.shape[1], np.nan, dtype=np.float32)]).any()
    assert signature_scores(model, []).shape == (0, found.shape[1])
