"""``cfm.pl.survival``: Kaplan–Meier curves, numbers at risk, log-rank."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import cfm
from tests.pl._stored import make_survival


def steps(ax) -> list:
    return [line for line in ax.get_lines() if line.get_drawstyle() == "steps-post"]


def test_curves_are_kaplan_meier():
    adata = make_survival()
    ax = cfm.pl.survival(adata, show=False)
    low, high = steps(ax)
    assert low.get_label().startswith("low risk (n = 30, ")
    assert high.get_label().startswith("high risk (n = 30, ")
    obs = adata.obs[adata.obs["probe_risk_group"] == "high"]
    at_risk, alive = len(obs), 1.0
    for moment, part in obs.groupby("days"):
        alive *= 1 - part["died"].sum() / at_risk
        at_risk -= len(part)
        x, y = high.get_data()
        assert y[np.flatnonzero(x <= moment)[-1]] == pytest.approx(alive)
    assert low.get_linestyle() != high.get_linestyle()
    assert low.get_color() != high.get_color()


def test_log_rank_and_numbers_at_risk():
    adata = make_survival(n=40, seed=5)
    ax = cfm.pl.survival(adata, show=False)
    obs = adata.obs
    groups = [obs[obs["probe_risk_group"] == name] for name in ("low", "high")]
    censored = [stats.CensoredData.right_censored(g["days"], ~g["died"]) for g in groups]
    p = stats.logrank(*censored).pvalue
    shown = [text.get_text() for text in ax.texts]
    assert ("log-rank p < 0.001" if p < 0.001 else f"log-rank p = {p:.3f}") in shown
    ticks = [t for t in ax.get_xticks() if 0 <= t <= ax.get_xlim()[1]]
    for group, name in zip(groups, ("low", "high"), strict=True):
        start = shown.index(name) + 1
        expected = [str(int((group["days"] >= t).sum())) for t in ticks]
        assert shown[start : start + len(ticks)] == expected


def test_other_groups_and_no_bands():
    adata = make_survival()
    adata.obs["stage"] = pd.Categorical([f"stage {i % 5}" for i in range(60)])
    ax = cfm.pl.survival(adata, groupby="stage", show=False)
    assert len(steps(ax)) == 5
    assert len({str(line.get_linestyle()) + line.get_color() for line in steps(ax)}) == 5
    assert len(ax.collections) == 0
    assert not [t for t in ax.texts if "log-rank" in t.get_text()]
    assert len(cfm.pl.survival(adata, show=False).collections) == 2
    assert len(cfm.pl.survival(adata, confidence=None, show=False).collections) == 0


def test_few_patients_and_a_group_without_events(tmp_path):
    adata = make_survival(n=6)
    adata.obs["died"] = [False, True, False, True, False, False]
    ax = cfm.pl.survival(adata, save=tmp_path / "a.png", show=False)
    low = steps(ax)[0]
    assert (low.get_ydata() == 1).all()
    assert (tmp_path / "a.png").stat().st_size > 5000
    alone = adata[adata.obs["probe_risk_group"] == "high"].copy()
    assert len(steps(cfm.pl.survival(alone, show=False))) == 1


def test_left_out_patients_are_not_drawn():
    adata = make_survival()
    adata.obs.loc[adata.obs_names[:10], "probe_risk_group"] = np.nan
    assert "n = 25" in steps(cfm.pl.survival(adata, show=False))[0].get_label()
