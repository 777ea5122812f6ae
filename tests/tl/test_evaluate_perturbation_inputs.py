"""Evaluation of simulated perturbations: what is refused or left out, and in which words."""

from __future__ import annotations

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

from cfm.tl import evaluate_perturbation, simulate_perturbation
from tests._same import assert_unchanged
from tests.tl._perturbed import (
    ARGUMENTS,
    AddsOne,
    evaluate,
    perturbed_cells,
    simulated,
    values,
    without,
)

QUICK = {"metrics": "delta_pearson", "baselines": ["control", "ceiling"], "n_halves": 1}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split_key": "cell_type"}, ValueError, "expected both 'train' and 'test'"),
        ({"units": "tpm"}, ValueError, "units='tpm'"),
        ({"metrics": "pearson"}, ValueError, "['pearson'] are not known"),
        ({"metrics": []}, ValueError, "choose among"),
        ({"metrics": "cell_eval:nonsense"}, ValueError, "['cell_eval:nonsense'] are not known"),
        ({"baselines": ["mean"]}, ValueError, "['mean'] are not known"),
        ({"baselines": "control"}, TypeError, "one text"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message) -> None:
    cells, made = perturbed_cells(n=10), simulated(n=10)
    before, as_made = cells.copy(), made.copy()
    with pytest.raises(error) as raised:
        evaluate(cells, {"mine": made}, **(QUICK | arguments))
    assert message in str(raised.value)
    assert_unchanged(cells, before)
    assert_unchanged(made, as_made)


CELLS, MADE = perturbed_cells(n=10), simulated(n=10)
MOUSE = MADE.copy()
MOUSE.var_names = [f"MOUSE{i}" for i in range(MOUSE.n_vars)]
LONE = CELLS[(CELLS.obs["treatment"] == "ctrl").to_numpy()].copy()
EMPTY = ad.AnnData(obs=MADE.obs, var=MADE.var)


@pytest.mark.parametrize(
    ("real", "made", "error", "message"),
    [
        *(
            (real, made, TypeError, "expected an AnnData")
            for real, made in (
                (CELLS.X, MADE),
                (md.MuData({"rna": CELLS}), MADE),
                (CELLS, MADE.X),
                (CELLS, {"x": MADE.X}),
                (CELLS, "x"),
            )
        ),
        (CELLS, {}, ValueError, "is empty"),
        (CELLS, {"ceiling": MADE}, ValueError, "cannot be called 'ceiling'"),
        *(
            (CELLS, {"x": ad.AnnData(MADE.X, MADE.obs.drop(columns=c), MADE.var)}, KeyError, c)
            for c in ("treatment", "cell_type")
        ),
        (CELLS, {"x": EMPTY}, ValueError, "X is None"),
        (CELLS, {"x": MOUSE}, ValueError, "'x' simulated none of the 40 genes"),
        (
            CELLS,
            {"x": MADE[:, :20].copy(), "y": MADE[:, 20:].copy()},
            ValueError,
            "No gene was simulated by all",
        ),
        (LONE, {"x": MADE}, ValueError, "nothing but the control"),
    ],
)
def test_bad_data_are_refused(real, made, error, message) -> None:
    with pytest.raises(error, match=message):
        evaluate(real, made)


def test_nothing_that_was_observed_is_refused() -> None:
    with (
        pytest.warns(UserWarning, match="3 simulated condition.* no observed test cells"),
        pytest.raises(ValueError, match="No simulated condition was observed"),
    ):
        evaluate(CELLS, {"mine": simulated(n=10, treatment="C")})


def test_genes_that_were_not_simulated_are_left_out_and_reported() -> None:
    cells, made = perturbed_cells(), simulated()
    made.var["simulated"] = True
    made.var.loc["GENE39", "simulated"] = False
    made.X[:, 39] = 9.0  # would be seen
    with pytest.warns(UserWarning, match=r"1 of 40 genes were not simulated .*'GENE39'"):
        found = evaluate(cells, {"mine": made})
    fewer = cells[:, :39].copy()
    expected = evaluate(fewer, {"mine": made})
    pd.testing.assert_frame_equal(found, expected, atol=1e-5)
    assert (values(found, "delta_pearson")["mine"] > 0.98).all()
    own = pd.DataFrame({"simulated": [True]}, index=["OWN"])
    own = ad.AnnData(np.ones((made.n_obs, 1), np.float32), obs=made.obs, var=own)
    more = ad.concat([made, own], axis=1, merge="same", uns_merge="first")
    with pytest.warns(UserWarning, match="1 of 40 genes"):
        pd.testing.assert_frame_equal(evaluate(cells, {"mine": more}), found)


def test_a_model_of_the_package_can_be_judged() -> None:
    cells = perturbed_cells(n=12)
    cells.obs["treatment"] = cells.obs["treatment"].cat.rename_categories({"A": "GENE1"})
    made = simulate_perturbation(cells, "GENE1", model=AddsOne(), **ARGUMENTS)
    with pytest.warns(UserWarning, match="1 of 40 genes"):  # it does not know the last one
        table = evaluate(cells, made, **QUICK)
    assert table["method"].unique().tolist() == ["AddsOne", "control", "ceiling"]
    assert (values(table, "delta_pearson")["AddsOne"] > 0.3).all()


def test_too_few_cells_are_left_out_or_refused() -> None:
    cells, made = perturbed_cells(n=10), simulated(n=10)
    few = made[~((made.obs["cell_type"] == "T") & (np.arange(made.n_obs) % 10 > 2)).to_numpy()]
    with pytest.warns(UserWarning, match=r"fewer than min_cells=10 .*'A in T'"):
        table = evaluate(cells, {"mine": few.copy()}, **QUICK)
    assert set(table["group"]) == {"B", "NK"}
    with (
        pytest.warns(UserWarning, match="9 simulated"),
        pytest.raises(ValueError, match="min_cells=11"),
    ):
        evaluate(cells, {"mine": made}, min_cells=11)


def test_one_cell_has_an_effect_and_no_distance() -> None:
    cells, made = perturbed_cells(n=1), simulated(n=1)
    table = evaluate(cells, {"mine": made}, min_cells=1)
    assert values(table, "e_distance").isna().all(axis=None)
    assert (values(table, "delta_pearson")["mine"] > 0.9).all()
    ceiling = table[table["method"] == "ceiling"]
    assert ceiling["value"].isna().all() and (ceiling["n_real"] == 0).all()


def test_a_group_without_controls_is_left_out() -> None:
    cells = without(perturbed_cells(n=12), "NK", "ctrl")
    with pytest.warns(UserWarning) as caught:
        table = evaluate(cells, {"mine": simulated(n=12)}, **QUICK)
    assert "3 simulated condition(s) have no controls" in " ".join(str(w.message) for w in caught)
    assert set(table["group"]) == {"B", "T"}


@pytest.mark.parametrize("index", [0, 1])
def test_values_are_finite_and_names_unique(index: int) -> None:
    for value in (np.nan, np.inf):
        pair = [CELLS.copy(), MADE.copy()]
        pair[index].X[3, 3] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            evaluate(pair[0], {"mine": pair[1]}, **QUICK)
    for axis in ("obs", "var"):
        pair = [CELLS.copy(), MADE.copy()]
        setattr(pair[index], f"{axis}_names", ["x"] * pair[index].shape[axis == "var"])
        with pytest.raises(ValueError, match=f"{axis}_names occur more than once"):
            evaluate(pair[0], {"mine": pair[1]})


def test_rows_of_zeros_and_copies_of_the_truth_have_scores() -> None:
    cells = perturbed_cells(n=12)
    zeros = simulated(n=12)
    zeros.X[:] = 0.0
    copies = cells[(cells.obs["treatment"] != "ctrl").to_numpy()].copy()
    table = evaluate(cells, {"zeros": zeros, "copies": copies})
    assert table.loc[table["method"].isin(["zeros", "copies"]), "value"].notna().all()
    np.testing.assert_allclose(values(table, "delta_pearson")["copies"], 1.0)
    found = values(table, "e_distance")
    assert (found["copies"] <= 0).all()  # unbiased: copies are nearer than another sample
    assert (found["zeros"] > found["control"]).all()


def test_missing_labels_belong_to_nothing() -> None:
    cells, made = perturbed_cells(n=12), simulated(n=12)
    expected = evaluate(cells, {"mine": made}, **QUICK)
    for adata in (cells, made):
        more = adata[:40].copy()
        more.obs_names = more.obs_names + "x"
        more.X[:] = 50.0
        more.obs.loc[more.obs_names[::2], "treatment"] = np.nan
        more.obs.loc[more.obs_names[1::2], "cell_type"] = np.nan
        adata.uns["both"] = ad.concat([adata, more], uns_merge="same")
    found = evaluate(cells.uns["both"], {"mine": made.uns["both"]}, **QUICK)
    pd.testing.assert_frame_equal(found, expected)


def test_a_control_in_a_combination_is_the_single_perturbation() -> None:
    cells, made = perturbed_cells(n=12), simulated(n=12)
    options = QUICK | {"baselines": ["control"]}
    expected = evaluate(cells, {"mine": made}, **options)
    cells.obs["treatment"] = cells.obs["treatment"].cat.rename_categories({"A": "A+ctrl"})
    found = evaluate(cells, {"mine": made}, **options)
    assert set(found["method"]) == {"mine", "control"}
    assert set(found["perturbation"]) == {"A+ctrl", "B", "A+B"}
    np.testing.assert_allclose(sorted(found["value"]), sorted(expected["value"]), atol=1e-6)


def test_the_bundled_toy_cells_work(recwarn: pytest.WarningsRecorder) -> None:
    import cfm

    cells = cfm.datasets.toy_infection_cells()
    columns = {"key": "virus", "control": "none", "groupby": "cell_type"}
    made = simulate_perturbation(cells, "virus_A", model="mean_shift", **columns)
    table = evaluate_perturbation(cells, made, **columns, baselines=["control"])
    assert table["value"].notna().any()
    assert not [w for w in recwarn if w.category is UserWarning]
