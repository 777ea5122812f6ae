"""``cfm.pl.host_factor_enrichment`` finds planted lists at the right end, repeatably."""

from __future__ import annotations

import re

import gseapy
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.pl._host_factors import preranked_walk, random_places
from tests.pl._drawn import legend_texts
from tests.pl._stored import with_host_factors


@pytest.fixture
def ranked():
    return with_host_factors(400)


def genes(adata) -> list[str]:
    return adata.uns["host_factors"]["results"]["gene"].tolist()


def numbers(text: str) -> dict[str, float]:
    text = text.replace("−", "-")
    return {
        "ES": float(re.search(r"[^N]ES ([+-][\d.]+)", text)[1]),
        "NES": float(re.search(r"NES ([+-][\d.]+)", text)[1]),
        "p": float(re.search(r"p [=<] ([\d.e-]+)", text)[1]),
    }


def test_planted_lists_peak_at_their_end(ranked):
    order = genes(ranked)
    lists = {"top": order[:20], "bottom": order[-20:], "everywhere": order[::13]}
    ax = cfm.pl.host_factor_enrichment(ranked, lists, show=False)
    top, bottom, everywhere = (numbers(text) for text in legend_texts(ax))
    assert top["ES"] > 0.9
    assert top["p"] < 0.01
    assert bottom["ES"] < -0.9
    assert bottom["p"] < 0.01
    assert everywhere["p"] > 0.05
    curves = [line for line in ax.get_lines() if len(line.get_xdata()) == 401]
    assert len({line.get_linestyle() for line in curves}) == 3
    assert np.argmax(curves[0].get_ydata()) == 20


def test_curve_is_the_running_sum_of_the_definition(ranked):
    order = genes(ranked)
    members = {order[3], order[30], order[200]}
    ax = cfm.pl.host_factor_enrichment(ranked, members, weight=0, show=False)
    hit = np.array([gene in members for gene in order])
    expected = np.cumsum(np.where(hit, 1 / 3, -1 / 397))
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata()[1:], expected, atol=1e-6)


def test_ticks_stand_at_the_ranks_of_the_list(ranked):
    order = genes(ranked)
    ax = cfm.pl.host_factor_enrichment(ranked, [order[4], order[100], "ABSENT"], show=False)
    (rug,) = ax.collections
    assert [segment[0][0] for segment in rug.get_segments()] == [5, 101]
    assert legend_texts(ax)[0].startswith("reference (2 of 3): ES ")


def test_ties_are_walked_in_the_order_of_the_rank(ranked):
    table = ranked.uns["host_factors"]["results"]
    table["score"] = np.repeat([2.0, 1.0], 200)
    members = genes(ranked)[200:210]
    ax = cfm.pl.host_factor_enrichment(ranked, members, show=False)
    (rug,) = ax.collections
    assert [segment[0][0] for segment in rug.get_segments()] == list(range(201, 211))


def test_runs_repeat_and_write_nothing_to_the_terminal(ranked, capfd):
    members = genes(ranked)[::9]
    said = [
        legend_texts(cfm.pl.host_factor_enrichment(ranked, members, n_permutations=50, show=False))
        for _ in range(2)
    ]
    assert said[0] == said[1]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_a_walk_has_the_numbers_of_gseapy(weight: float) -> None:
    rng = np.random.default_rng(0)
    score = np.sort(rng.normal(size=600))[::-1]
    names = [f"g{i}" for i in range(600)]
    sets = {"top": names[:40:2], "bottom": names[-30:], "any": names[7::29], "one": names[99:100]}
    for name, genes in sets.items():
        expected = gseapy.prerank(
            rnk=pd.Series(score, index=names), gene_sets={name: genes}, min_size=1, max_size=600,
            permutation_num=2000, weight=weight, threads=1, seed=0, outdir=None, no_plot=True,
        ).results[name]  # fmt: skip
        inside = np.isin(names, genes)
        random = random_places(600, 30, 2000, seed=0)
        found = preranked_walk(score, inside, random, weight=weight)
        np.testing.assert_allclose(found.values, expected["RES"], atol=1e-9)
        assert found.score == pytest.approx(expected["es"], abs=1e-9)
        assert found.normalized == pytest.approx(expected["nes"], rel=0.05)
        assert found.p_value == pytest.approx(expected["pval"], abs=0.04)


def test_a_walk_of_genes_without_score_counts_them_alike() -> None:
    score = np.r_[np.ones(5), np.zeros(15)]
    inside = np.arange(20) >= 10
    found = preranked_walk(score, inside, random_places(20, 10, 100, seed=0), weight=1.0)
    np.testing.assert_allclose(found.values, np.cumsum(np.where(inside, 0.1, -0.1)), atol=1e-12)
    assert found.score == pytest.approx(-1.0)
