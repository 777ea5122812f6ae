"""``cfm.pl.host_factor_enrichment`` finds planted lists at the right end, repeatably."""

from __future__ import annotations

import re

import numpy as np
import pytest

import cfm
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
