"""Counts are never taken for logarithms: units are decided where values leave no doubt."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import cfm
from cfm._units import decide_units

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(RNG.gamma(0.5, 6.0, (60, 200)) * RNG.uniform(0.3, 2, (60, 1))).astype(float)
CP10K = 1e4 * COUNTS / COUNTS.sum(axis=1, keepdims=True)
LOGS = np.log1p(CP10K)
MEDIAN_LOGS = np.log1p(CP10K * 0.0731)
MEANS = np.clip(RNG.gamma(0.5, 1.0, (60, 200)), 0, 9) * RNG.uniform(0.3, 2, (60, 1))
SCANPY: dict[str, Any] = {"log1p": {"base": None}}


@pytest.mark.parametrize("form", [np.float32, sp.csr_matrix, sp.csr_array])
@pytest.mark.parametrize(
    ("values", "units"),
    [
        (COUNTS, "counts"),
        (COUNTS * 1.37, "counts"),  # expected counts: some exceed 30
        (0 * COUNTS, "counts"),
        (LOGS, "log"),
        (LOGS[:1], "log"),
        (MEDIAN_LOGS, "log"),
        (np.log1p(100 * CP10K), "log"),
    ],
)
def test_what_leaves_no_doubt_is_decided(values: np.ndarray, units: str, form: Any) -> None:
    matrix = form(values)
    blocks = matrix[:7], matrix[7:]
    assert decide_units(blocks, where="X") == units
    assert decide_units(blocks, units, where="X") == units
    # what is recorded has no say where values leave no doubt
    for uns in (
        SCANPY,
        {"simulation": {"params": {"units": "log" if units != "log" else "counts"}}},
    ):
        assert decide_units(blocks, where="X", uns=uns) == units


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (MEANS, "fractional values from 0 to 1.*expm1 of its rows sums to"),
        (np.tile(MEANS[0], (60, 1)), "expm1 of its rows sums to"),  # all rows alike
        (LOGS[:, :150], "fractional values from 0 to .*some of the genes"),
        (np.log2(1 + 100 * CP10K[:, :150]), "expm1 of its rows"),
        (CP10K, "every row sums to 10000"),
        (100 * CP10K, "every row sums to 1e\\+06"),
        (LOGS - LOGS.mean(axis=0), "negative values .* which are no counts"),
    ],
)
def test_what_may_be_both_is_asked(values: np.ndarray, found: str) -> None:
    with pytest.raises(ValueError, match=f"X holds .*{found}.*Pass units='counts' or units='log'"):
        decide_units([values], where="X")


def test_what_is_recorded_decides_what_may_be_both() -> None:
    simulated = {"simulation": {"params": {"units": "counts"}}}
    assert decide_units([LOGS[:, :150]], where="X", uns=SCANPY) == "log"
    assert decide_units([MEANS], where="X", uns=simulated) == "counts"
    simulated["simulation"]["params"]["units"] = "log1p_cp10k"
    assert decide_units([LOGS - 1], where="X", uns=simulated) == "log"
    for contradicted in (CP10K, LOGS - 1, 3 * LOGS):
        with pytest.raises(ValueError, match="Pass units="):
            decide_units([contradicted], where="X", uns=SCANPY)
    base_2 = {"log1p": {"base": 2.0}}
    assert decide_units([np.log2(1 + 100 * CP10K[:, :150])], where="X", uns=base_2) == "log"


@pytest.mark.parametrize(
    ("values", "units", "message"),
    [
        (LOGS, "counts", "logarithms: expm1 of every row sums to 10000"),
        (LOGS - 1, "counts", "negative values"),
        (COUNTS, "log", "whole numbers only"),
        (COUNTS * 1.37, "log", "which no logarithm reaches"),
        (100 * CP10K, "log", "every row sums to"),
        (np.where(COUNTS > 20, np.nan, COUNTS), "auto", "NaN or infinite"),
        (np.where(COUNTS > 20, np.nan, COUNTS), "log", "NaN or infinite"),
        (COUNTS, "tpm", "units='tpm'; expected one of"),
    ],
)
def test_what_contradicts_is_refused(values: np.ndarray, units: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decide_units([values], units, where="X")


def screen(depth: float) -> tuple[ad.AnnData, ad.AnnData]:
    """Poisson counts of controls and two perturbations, and the true mean of each cell."""
    rng = np.random.default_rng(3)
    base = rng.gamma(0.4, 1.0, 300)
    base /= base.sum()
    effects = {"none": np.ones(300)}
    for name in ("A", "B"):
        effects[name] = np.exp(rng.normal(0, 0.8, 300) * (rng.random(300) < 0.2))
    rows, labels = [], []
    for name, effect in effects.items():
        share = base * effect / (base * effect).sum()
        rows.append(share * depth * rng.lognormal(0, 0.4, (150, 1)))
        labels += [name] * 150
    means = np.concatenate(rows)
    obs = pd.DataFrame({"drug": labels}, index=[f"c{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=[f"G{i}" for i in range(300)])
    real = ad.AnnData(sp.csr_matrix(rng.poisson(means).astype(np.float32)), obs=obs, var=var)
    made = ad.AnnData(means.astype(np.float32), obs=obs, var=var)[obs["drug"] != "none"].copy()
    made.obs_names = made.obs_names + "-made"
    return real, made


ASKED: dict[str, Any] = {
    "key": "drug",
    "control": "none",
    "metrics": "delta_pearson",
    "baselines": ["control"],
}


def test_true_means_are_scored_as_the_counts_that_they_are() -> None:
    real, made = screen(depth=3000)
    assert made.X.max() > 30
    found = cfm.tl.evaluate_perturbation(real, made, **ASKED)
    told = cfm.tl.evaluate_perturbation(real, made, units="counts", **ASKED)
    pd.testing.assert_frame_equal(found, told)
    mine = found[found["method"] == "model"]
    assert mine["value"].min() > 0.6
    assert set(mine["units_real"]) == set(mine["units_simulated"]) == {"counts"}


def test_small_means_are_asked_for_in_tools_and_plots() -> None:
    real, made = screen(depth=50)
    assert made.X.max() < 9.21
    before = made.copy()
    with pytest.raises(
        ValueError, match=r"'model' simulated holds fractional values .* Pass units"
    ):
        cfm.tl.evaluate_perturbation(real, made, **ASKED)
    for units in ("counts", {"model": "counts"}, {"real": "counts", "model": "counts"}):
        found = cfm.tl.evaluate_perturbation(real, made, units=units, **ASKED)
        assert found.query("method == 'model'")["value"].min() > 0.2
    with pytest.raises(ValueError, match="'mine'"):
        cfm.tl.evaluate_perturbation(real, made, units={"mine": "counts"}, **ASKED)
    drawn = {"key": "drug", "control": "none", "perturbation": "A", "show": False}
    with pytest.raises(ValueError, match=r"simulated holds fractional values .* Pass units="):
        cfm.pl.perturbation_effect(real, made, **drawn)
    assert (
        cfm.pl.perturbation_effect(real, made, units={"simulated": "counts"}, **drawn) is not None
    )
    np.testing.assert_array_equal(made.X, before.X)
    real.X = made.X.mean() * real.X.toarray() / 3  # expected counts that are small
    with pytest.raises(ValueError, match=r"adata\.X holds fractional"):
        cfm.tl.simulate_perturbation(real, "A", model="mean_shift", key="drug", control="none")


def test_units_are_part_of_the_result() -> None:
    real, made = screen(depth=3000)
    given = {"key": "drug", "control": "none"}
    simulated = cfm.tl.simulate_perturbation(real, "A", model="mean_shift", **given)
    assert simulated.uns["simulation"]["params"]["units"] == "counts"
    library = np.asarray(real.X.sum(axis=1))
    real.X = np.log1p(1e4 * real.X.toarray() / library).astype(np.float32)
    logs = cfm.tl.simulate_perturbation(real, "A", model="mean_shift", **given)
    assert logs.uns["simulation"]["params"]["units"] == "log"
    methods = {"logs": logs, "counts": simulated, "means": made}
    found = cfm.tl.evaluate_perturbation(real, methods, **ASKED)
    units = found.groupby("method")["units_simulated"].unique().str[0].to_dict()
    assert units == {"logs": "log", "counts": "counts", "means": "counts", "control": "log"}
    assert set(found["units_real"]) == {"log"}
