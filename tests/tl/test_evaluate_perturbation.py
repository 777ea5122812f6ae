"""Evaluation of simulated perturbations: planted effects, baselines, ceiling, invariances."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from cfm.metrics import e_distance, mean_squared_distance, mmd
from cfm.pp import split_perturbations
from cfm.tl import simulate_perturbation
from tests._same import assert_unchanged
from tests.tl._perturbed import (
    ARGUMENTS,
    BASELINES,
    FIVE,
    N_GENES,
    evaluate,
    perturbed_cells,
    simulated,
    values,
)


def _counts(adata: ad.AnnData, seed: int = 0) -> ad.AnnData:
    made = adata.copy()
    made.X = sp.csr_matrix(np.random.default_rng(seed).poisson(np.exp(made.X)).astype(np.float32))
    return made


def test_the_table_is_tidy_and_complete() -> None:
    table = evaluate(perturbed_cells(), {"mine": simulated()})
    assert table.columns.tolist() == [
        "group",
        "perturbation",
        "metric",
        "method",
        "value",
        "higher_is_better",
        "n_real",
        "n_simulated",
        "units_real",
        "units_simulated",
        "held_out",
    ]
    assert table.dtypes.astype(str).tolist()[4:8] == ["float64", "bool", "int64", "int64"]
    methods = ["mine", *BASELINES, "ceiling"]
    assert len(table) == 3 * 3 * len(FIVE) * len(methods)
    first = table.iloc[: len(FIVE) * len(methods)]
    assert set(first["group"]) == {"B"} and set(first["perturbation"]) == {"A"}
    assert first["metric"].tolist() == [m for m in FIVE for _ in methods]
    assert first["method"].tolist() == methods * len(FIVE)
    better = table.groupby("metric")["higher_is_better"].first()
    assert not better["e_distance"] and not better["mmd"] and better.sum() == 3
    numbers = table.groupby("method")[["n_real", "n_simulated"]].first()
    assert numbers.loc["mine"].tolist() == [30, 30]
    assert numbers.loc["ceiling"].tolist() == [15, 15]


def test_a_perfect_simulator_is_at_the_ceiling() -> None:
    table = evaluate(perturbed_cells(), {"perfect": simulated()})
    for metric in ("delta_pearson", "direction_accuracy"):
        found = values(table, metric)
        assert (found[["perfect", "ceiling"]] > 0.98).all(axis=None)
    for metric in ("e_distance", "mmd"):
        found = values(table, metric)
        assert (found[["perfect", "ceiling"]].abs() < 0.03 * found[["control"]].to_numpy()).all(
            axis=None
        )
    assert (values(table, "discrimination_score")[["perfect", "ceiling"]] == 1.0).all(axis=None)


def test_the_control_is_no_effect_and_the_opposite_is_wrong() -> None:
    cells = perturbed_cells()
    made = {"opposite": simulated(-1.0), "half": simulated(0.5)}
    table = evaluate(cells, made, metrics=[*FIVE, "delta_r2", "delta_cosine"])
    pearson = values(table, "delta_pearson")
    assert (pearson["control"] == 0).all()
    assert (pearson["opposite"] < -0.95).all() and (pearson["half"] > 0.95).all()
    direction = values(table, "direction_accuracy")
    assert (direction["control"] == 0.5).all() and (direction["opposite"] == 0).all()
    distance = values(table, "e_distance")
    assert (distance["half"] < distance["control"]).all()
    assert (distance["control"] < distance["opposite"]).all()
    explained = values(table, "delta_r2")
    np.testing.assert_allclose(explained["control"], 0.0, atol=1e-12)
    np.testing.assert_allclose(explained["half"], 0.75, atol=0.05)
    np.testing.assert_allclose(explained["opposite"], -3.0, atol=0.3)
    assert (values(table, "delta_cosine")["opposite"] < -0.95).all()
    top = evaluate(cells, made, metrics="delta_pearson_top", n_top=15)
    assert (values(top, "delta_pearson_top")["half"] > 0.95).all()


@pytest.mark.parametrize("baseline", BASELINES)
def test_baselines_are_what_simulate_perturbation_makes(baseline: str) -> None:
    cells = perturbed_cells()
    made = ad.concat(
        [simulate_perturbation(cells, p, model=baseline, **ARGUMENTS) for p in ("A", "A+B")],
        uns_merge="same",  # where units are recorded
    )
    table = evaluate(cells, {"theirs": made}, baselines=[baseline])
    for metric in FIVE:
        found = values(table, metric)
        np.testing.assert_allclose(found["theirs"], found[baseline], atol=1e-5)


@pytest.mark.parametrize("hold_out", ["group", "perturbation", "combination", "cells"])
def test_baselines_and_references_see_training_only(hold_out: str) -> None:
    cells = perturbed_cells()
    what = {
        "group": {"groups": ["NK"]},
        "perturbation": {"perturbations": ["A+B"]},
        "combination": {"perturbations": ["A+B"]},
        "cells": {},
    }[hold_out]
    split_perturbations(
        cells, "treatment", control="ctrl", groupby="cell_type", hold_out=hold_out, **what
    )
    asked = ("A+B",) if hold_out in ("perturbation", "combination") else ("A", "B", "A+B")
    made = simulated(treatments=asked)
    made = made[np.isin(made.obs["cell_type"], what.get("groups", ["T", "B", "NK"]))]
    table = evaluate(cells, {"mine": made}, split_key="split")
    test = (cells.obs["split"] == "test").to_numpy()
    conditions = cells.obs.loc[test & (cells.obs["treatment"] != "ctrl").to_numpy()]
    expected = set(zip(conditions["cell_type"], conditions["treatment"], strict=True))
    assert set(zip(table["group"], table["perturbation"], strict=True)) == expected
    assert (
        table.loc[table["method"] == "mine", "n_real"] == (15 if hold_out == "cells" else 30)
    ).all()
    # Baselines answer the same whatever was measured in the test: only the truth moves.
    train = cells[~test].copy()
    for place in sorted(expected)[:2]:
        theirs = simulate_perturbation(
            train, place[1], model="mean_shift", groups=[place[0]], **ARGUMENTS
        )
        again = evaluate(cells, {"theirs": theirs}, split_key="split", baselines=["mean_shift"])
        for metric in FIVE[:4]:
            found = values(again, metric).loc[[place]]
            np.testing.assert_allclose(found["theirs"], found["mean_shift"], atol=1e-5)


def test_with_held_out_cells_effects_are_against_held_out_controls() -> None:
    cells = perturbed_cells()
    split_perturbations(cells, "treatment", control="ctrl", groupby="cell_type", hold_out="cells")
    held = ((cells.obs["split"] == "test") & (cells.obs["treatment"] == "ctrl")).to_numpy()
    cells.X[held, 20] += 5.0  # the observed effects on a gene that nothing moves
    table = evaluate(cells, {"mine": simulated()}, split_key="split", metrics="delta_pearson")
    assert (values(table, "delta_pearson")["mine"] < 0.7).all()
    trained = ((cells.obs["split"] == "train") & (cells.obs["treatment"] == "ctrl")).to_numpy()
    cells.X[trained, 20] += 5.0
    cells.X[(cells.obs["treatment"] != "ctrl").to_numpy(), 20] += 5.0
    table = evaluate(cells, {"mine": simulated()}, split_key="split", metrics="delta_pearson")
    assert (values(table, "delta_pearson")["control"] == 0).all()
    # what was measured in training judges nobody
    learned = ((cells.obs["split"] == "train") & (cells.obs["treatment"] != "ctrl")).to_numpy()
    cells.X[learned, 21] += 5.0
    again = evaluate(cells, {"mine": simulated()}, split_key="split", metrics="delta_pearson")
    found, expected = values(again, "delta_pearson"), values(table, "delta_pearson")
    np.testing.assert_array_equal(found["mine"], expected["mine"])


def test_a_baseline_without_an_answer_is_nan() -> None:
    cells = perturbed_cells()
    lone = cells[cells.obs["treatment"].isin(["ctrl", "A"]).to_numpy()].copy()
    lone = lone[(lone.obs["cell_type"] == "T").to_numpy()].copy()
    table = evaluate(lone, {"mine": simulated(treatments=("A",))[60:].copy()}, groupby=None)
    found = values(table, "delta_pearson").loc[("", "A")]
    assert found[["mean_shift", "additive", "nearest", "linear"]].isna().all()
    assert found["control"] == 0
    rows = table[table["method"] == "additive"]
    assert (rows["n_simulated"] == 0).all() and (rows["n_real"] == 30).all()
    # with one perturbation there is nothing to tell apart
    assert values(table, "discrimination_score").isna().all(axis=None)


def test_effects_are_against_observed_controls_whatever_a_method_made() -> None:
    cells = perturbed_cells()
    biased = simulated()
    biased.X[:, 30] += 3.0  # a fault of the simulator
    expected = evaluate(cells, {"mine": biased})
    assert (values(expected, "delta_pearson")["mine"] < 0.9).all()
    own = perturbed_cells(seed=8)
    own = own[(own.obs["treatment"] == "ctrl").to_numpy()].copy()
    own.X[:, 30] += 3.0  # with these as reference the fault would not be seen
    own.obs_names = own.obs_names + "-own"
    with pytest.warns(UserWarning, match=r"'mine' has controls of its own.* by up to 0\.0[789]"):
        both = evaluate(cells, {"mine": ad.concat([biased, own], uns_merge="same")})
    pd.testing.assert_frame_equal(both, expected)
    few = simulate_perturbation(cells, "A", model="control", n_cells=12, **ARGUMENTS)
    table = evaluate(cells, few, metrics="delta_r2", baselines=[])
    np.testing.assert_allclose(values(table, "delta_r2")["control"], 0.0, atol=1e-6)


def test_the_same_controls_again_are_no_reason_to_warn(recwarn: pytest.WarningsRecorder) -> None:
    cells = perturbed_cells()
    table = evaluate(cells, {"itself": cells}, metrics="delta_r2", baselines=[])
    np.testing.assert_allclose(values(table, "delta_r2")["itself"], 1.0, atol=1e-6)
    assert not [w for w in recwarn if "controls of its own" in str(w.message)]


def test_what_was_held_out_is_said_of_each_condition() -> None:
    cells = perturbed_cells()
    group, label = cells.obs["cell_type"], cells.obs["treatment"]
    # NK: B is new to the group; A+B of T cells and A of B cells are in training elsewhere
    hidden = (label == "A+B") | ((group == "NK") & (label == "B"))
    half = (np.arange(cells.n_obs) % 2 == 0) & (group == "T") & (label == "A")
    cells.obs["split"] = np.where((hidden | half).to_numpy(), "test", "train")
    with pytest.warns(UserWarning, match="no observed test cells"):
        found = evaluate(cells, {"mine": simulated()}, split_key="split", metrics="delta_pearson")
    found = found.groupby(["group", "perturbation"])["held_out"].unique().str[0].to_dict()
    combinations = {(g, "A+B"): "combination" for g in ("B", "NK", "T")}
    assert found == combinations | {("NK", "B"): "group", ("T", "A"): "cells"}
    # one of the parts is new: so is the combination
    cells.obs["split"] = np.where(((label == "A+B") | (label == "B")).to_numpy(), "test", "train")
    made = simulated(treatments=("B", "A+B"))
    found = evaluate(cells, {"mine": made}, split_key="split", metrics="delta_pearson")
    assert set(found["held_out"]) == {"perturbation"}
    plain = evaluate(cells, {"mine": simulated()}, metrics="delta_pearson")
    assert set(plain["held_out"]) == {""}


def test_noise_of_shared_controls_looks_like_agreement_unless_they_are_held_out() -> None:
    """Nothing has an effect, and the method makes cells anew as if they were controls."""
    rng, level = np.random.default_rng(0), np.random.default_rng(1).gamma(1.0, 2.0, 200)

    def draw(label: str, n: int, prefix: str) -> ad.AnnData:
        obs = pd.DataFrame({"treatment": label}, index=[f"{prefix}{label}{i}" for i in range(n)])
        var = pd.DataFrame(index=[f"GENE{i}" for i in range(200)])
        return ad.AnnData(rng.poisson(level, size=(n, 200)).astype(np.float32), obs=obs, var=var)

    asked = [f"P{i}" for i in range(4)]
    real = ad.concat([draw("ctrl", 300, "c"), *(draw(p, 150, "p") for p in (*asked, "Q"))])
    made = ad.concat([draw(p, 300, "s") for p in asked])
    options = {"groupby": None, "metrics": "delta_pearson", "baselines": [], "n_halves": 1}
    split_perturbations(
        real,
        "treatment",
        control="ctrl",
        hold_out="perturbation",
        perturbations=asked,
        hold_out_controls=True,
    )
    scores = {
        "shared": evaluate(real, {"x": made}, **options),
        "held out": evaluate(real, {"x": made}, split_key="split", **options),
    }
    found = {name: values(t, "delta_pearson")["x"].mean() for name, t in scores.items()}
    assert found["shared"] > 0.25
    # single draws of the controls: a correlation over 200 genes scatters by 0.07
    assert abs(found["held out"]) < 0.2


def test_methods_are_told_apart_by_who_simulated() -> None:
    cells = perturbed_cells()
    one, two = simulated(simulated_by="x"), simulated(-1.0, simulated_by="y")
    two.obs_names = two.obs_names + "2"
    together = evaluate(cells, ad.concat([one, two], uns_merge="same"))
    apart = evaluate(cells, {"x": one, "y": two})
    pd.testing.assert_frame_equal(together, apart)
    unnamed = evaluate(cells, simulated())
    assert unnamed["method"].unique()[0] == "model"
    taken = evaluate(cells, {"mean_shift": two})
    assert taken["method"].unique().tolist() == [
        "mean_shift", "control", "additive", "nearest", "linear", "ceiling"
    ]  # fmt: skip
    assert (values(taken, "delta_pearson")["mean_shift"] < -0.95).all()
    counts = _counts(cells)
    made = simulate_perturbation(counts, "A", model="linear", alpha=30.0, **ARGUMENTS)
    own = evaluate(counts, made, baselines=["linear"])
    assert set(own["method"]) == {"linear"} and set(own["units_simulated"]) == {"counts"}


@settings(max_examples=4)
@given(st.integers(0, 2**31))
def test_the_order_of_rows_and_genes_decides_nothing(seed: int) -> None:
    cells, made = perturbed_cells(n=14), simulated(n=14)
    options = {"max_cells": 9, "n_halves": 2}  # so that draws matter
    expected = evaluate(cells, {"mine": made}, **options)
    rng = np.random.default_rng(seed)
    rows, genes = rng.permutation(cells.n_obs), rng.permutation(N_GENES)
    other = made[rng.permutation(made.n_obs), rng.permutation(N_GENES)].copy()
    found = evaluate(cells[rows][:, genes].copy(), {"mine": other}, **options)
    pd.testing.assert_frame_equal(found, expected, atol=1e-4, rtol=1e-4)


def test_it_repeats_and_a_seed_changes_what_is_drawn() -> None:
    cells, made = perturbed_cells(), simulated()
    before, first = cells.copy(), evaluate(cells, {"mine": made})
    assert_unchanged(cells, before)
    pd.testing.assert_frame_equal(evaluate(cells, {"mine": made}), first)
    other = evaluate(cells, {"mine": made}, seed=1)
    changed = values(first, "e_distance") != values(other, "e_distance")
    assert changed["ceiling"].all()


@pytest.mark.parametrize("real_counts", [True, False])
@pytest.mark.parametrize("made_counts", [True, False])
def test_counts_and_logs_are_brought_to_one_scale(real_counts: bool, made_counts: bool) -> None:
    real, made = _counts(perturbed_cells(n=60)), _counts(simulated(n=60), seed=1)
    for adata, counts in ((real, real_counts), (made, made_counts)):
        if not counts:
            total = adata.X.sum(axis=1)
            adata.X = sp.csr_matrix(np.log1p(adata.X.toarray() * 1e4 / total)).astype(np.float32)
    table = evaluate(real, {"mine": made})
    mixed = values(table, "delta_pearson")
    assert (mixed["mine"] > 0.95).all()
    same = {"mine": _counts(simulated(n=60), seed=1)}
    expected = values(evaluate(_counts(perturbed_cells(n=60)), same), "delta_pearson")
    np.testing.assert_allclose(mixed, expected, atol=1e-4)


def test_distances_by_their_definition() -> None:
    cells, made = perturbed_cells(n=20), simulated(n=20)
    table = evaluate(cells, {"mine": made}, n_components=6)
    components = PCA(n_components=6, random_state=0).fit(cells.X[np.argsort(cells.obs_names)])
    real, ours = components.transform(cells.X), components.transform(made.X)
    here = (cells.obs["cell_type"] == "NK").to_numpy()
    seen = real[here & (cells.obs["treatment"] == "B").to_numpy()]
    controls = real[here & (cells.obs["treatment"] == "ctrl").to_numpy()]
    ours = ours[((made.obs["cell_type"] == "NK") & (made.obs["treatment"] == "B")).to_numpy()]
    width = mean_squared_distance(np.vstack([seen, controls]))
    found = table.query("group == 'NK' and perturbation == 'B'").set_index(["method", "metric"])
    place = found["value"]
    assert place["mine", "e_distance"] == pytest.approx(e_distance(seen, ours), abs=1e-3)
    assert place["mine", "mmd"] == pytest.approx(mmd(seen, ours, sigma=width), abs=1e-3)
    expected = mmd(seen, controls, sigma=width)
    assert place["control", "mmd"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("made_counts", [True, False])
def test_libraries_are_of_the_genes_that_are_compared_unless_a_logarithm_was_taken(
    made_counts: bool,
) -> None:
    real, made = _counts(perturbed_cells(n=20)), _counts(simulated(n=20), seed=1)
    real.X = sp.hstack([1000 * real.X[:, :1], real.X[:, 1:]]).tocsr()  # large, and not simulated
    if not made_counts:
        total = made.X.sum(axis=1)
        made.X = sp.csr_matrix(np.log1p(made.X.toarray() * 1e4 / total)).astype(np.float32)
    kept = made[:, 1:].copy()
    options = {"baselines": ["control", "mean_shift"]}
    with pytest.warns(UserWarning, match="1 of 40 genes"):
        table = evaluate(real, {"mine": kept}, **options)
    found = values(table, "delta_pearson")
    same = values(evaluate(real[:, 1:].copy(), {"mine": kept}, **options), "delta_pearson")
    # A share of all genes is what the logarithm was taken of.
    assert np.allclose(found, same, atol=1e-5) == made_counts


@pytest.mark.parametrize("kind", ["csc", "view", "backed"])
def test_storage_of_what_was_simulated_does_not_matter(kind: str, tmp_path) -> None:
    cells, made = perturbed_cells(n=12), simulated(n=12)
    expected = evaluate(cells, {"mine": made})
    if kind == "csc":
        made.X = sp.csc_matrix(made.X, dtype=np.float64)
    elif kind == "view":
        made = made[:]
    else:
        made.write_h5ad(tmp_path / "made.h5ad")
        made = ad.read_h5ad(tmp_path / "made.h5ad", backed="r")
    pd.testing.assert_frame_equal(evaluate(cells, {"mine": made}), expected, atol=1e-5)


def test_two_spellings_of_a_combination_are_one() -> None:
    cells, made = perturbed_cells(), simulated(treatments=("A+B",))
    expected = evaluate(cells, {"mine": made})
    made.obs["treatment"] = made.obs["treatment"].cat.rename_categories({"A+B": "B + A"})
    pd.testing.assert_frame_equal(evaluate(cells, {"mine": made}), expected)
    assert set(expected["perturbation"]) == {"A+B"}
    # two in the data: the order of rows does not choose
    both = cells.obs["treatment"].astype(str).to_numpy(dtype=object)
    both[np.flatnonzero(both == "A+B")[::2]] = "B + A"
    cells.obs["treatment"] = both
    for rows in (cells, cells[::-1].copy()):
        pd.testing.assert_frame_equal(evaluate(rows, {"mine": made}), expected, atol=1e-5)


def test_a_group_is_judged_by_itself() -> None:
    cells, made = perturbed_cells(n=14), simulated(n=14)
    options = {"metrics": ["delta_pearson", "delta_r2"], "baselines": ["control"]}
    together = evaluate(cells, {"mine": made}, **options)
    for group, expected in together.groupby("group"):
        own = [a[(a.obs["cell_type"] == group).to_numpy()].copy() for a in (cells, made)]
        alone = evaluate(own[0], {"mine": own[1]}, **options)
        pd.testing.assert_frame_equal(alone, expected.reset_index(drop=True), atol=1e-6)
