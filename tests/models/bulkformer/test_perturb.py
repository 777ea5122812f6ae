"""BulkFormer through the public call: genes turned down, compounds, both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from cfm.tl import simulate_perturbation
from tests._bulk import toy_bulkformer, toy_log_tpm
from tests._same import assert_unchanged
from tests.models.bulkformer._compounds import taught, toy_compounds


def test_a_gene_turned_down_takes_its_partners_along() -> None:
    samples, model = toy_log_tpm(seed=5, n=8), toy_bulkformer()
    before = samples.copy()
    made = simulate_perturbation(samples, "GENE3", model=model)
    assert_unchanged(samples, before)
    place = samples.var_names.get_loc("GENE3")
    np.testing.assert_array_equal(made.X[:, place], 0.0)
    shift = model.knock_down(samples, "GENE3")
    rest = np.arange(samples.n_vars) != place
    expected = np.maximum(samples.X + shift.to_numpy(), 0.0)
    np.testing.assert_allclose(made.X[:, rest], expected[:, rest], atol=1e-6)
    assert made.var["simulated"].all()
    assert made.uns["simulation"]["params"]["vocabulary_share"] == 1.0
    half = simulate_perturbation(samples, "GENE3", model=model, remaining=0.5)
    np.testing.assert_allclose(
        np.expm1(half.X[:, place]), 0.5 * np.expm1(samples.X[:, place]), rtol=1e-4
    )
    assert half.uns["simulation"]["params"]["remaining"] == 0.5


def test_a_compound_moves_what_its_signatures_measured() -> None:
    samples, (model, _) = toy_log_tpm(seed=5, n=8), taught()
    made = simulate_perturbation(samples, "Drug55", model=model, strength=0.1)
    assert made.var["simulated"].sum() == 70
    np.testing.assert_array_equal(made.X[:, -10:], samples.X[:, -10:])
    shift = model.predict_compound(samples, "drug55").to_numpy()
    expected = np.maximum(samples.X[:, :70] + 0.1 * shift, 0.0)
    np.testing.assert_allclose(made.X[:, :70], expected, atol=1e-5)


def test_genes_and_compounds_are_combined() -> None:
    samples, (model, _) = toy_log_tpm(seed=5, n=8), taught()
    samples.X += 2.0  # far from 0, so that changes add up
    both = simulate_perturbation(samples, "GENE3+drug1+drug2", model=model, strength=0.1)
    change = both.X - samples.X
    parts = [
        simulate_perturbation(samples, name, model=model, strength=0.1).X - samples.X
        for name in ("GENE3", "drug1", "drug2")
    ]
    rest = samples.var_names != "GENE3"
    np.testing.assert_allclose(change[:, rest], sum(parts)[:, rest], atol=1e-4)
    np.testing.assert_array_equal(both[:, "GENE3"].X, 0.0)


def test_what_is_missing_stays_missing() -> None:
    samples = toy_log_tpm(seed=5, n=8)
    samples.X[0, 7] = np.nan
    samples.X[1, 7] = -10.0
    made = simulate_perturbation(samples, "GENE3", model=toy_bulkformer())
    assert np.isnan(made.X[:2, 7]).all()
    assert np.isfinite(made.X[2:]).all()


@pytest.mark.parametrize(
    ("perturbation", "arguments", "error", "message"),
    [
        ("nothing", {}, KeyError, "neither genes of the model"),
        ("drug1", {"kind": "gene"}, KeyError, "not in the model's vocabulary"),
        ("GENE1", {"kind": "compound"}, KeyError, "was not trained on 'GENE1'"),
        (
            "new+other",
            {"kind": "compound", "features": pd.Series({"f0": 1.0})},
            ValueError,
            "features= describes one compound",
        ),
    ],
)
def test_names_that_are_no_gene_and_no_compound_are_refused(
    perturbation: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        simulate_perturbation(toy_log_tpm(n=4), perturbation, model=taught()[0], **arguments)


def test_a_compound_can_be_described_in_the_call() -> None:
    samples, (model, _) = toy_log_tpm(n=4), taught()
    row = toy_compounds()[1].loc["drug55"]
    given = simulate_perturbation(samples, "new", model=model, features=row)
    named = simulate_perturbation(samples, "drug55", model=model)
    np.testing.assert_array_equal(given.X, named.X)
    assert given.uns["simulation"]["params"]["features"] == "4"
