from __future__ import annotations

import numpy as np
import pytest

import cfm
from tests.pl._stored import make_searched

pytestmark = pytest.mark.filterwarnings("ignore:The library has:UserWarning")


@pytest.fixture
def searched():
    return make_searched()


def test_query_first_then_matches_by_rank(searched):
    ax = cfm.pl.signature_search(searched, "x", n_matches=3, n_genes=12, show=False)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[0].startswith("x")
    table = searched.uns["signature_search"]["results"]
    similarity = table[table["query"] == "x"]["similarity"][:3]
    assert [label.split("  ")[1].split(" ")[0] for label in labels[1:]] == [
        f"{s:.2f}" for s in similarity
    ]
    assert len(ax.get_xticklabels()) == 12
    shown = ax.images[0].get_array()
    assert shown.shape == (4, 12)
    assert np.nanmax(np.abs(shown)) <= 1 + 1e-6
    assert "3 most similar" in ax.get_title()


def test_signs_say_what_colours_say(searched):
    ax = cfm.pl.signature_search(searched, n_matches=2, show=False)
    values = np.ma.filled(ax.images[0].get_array(), np.nan)
    for text in ax.texts:
        column, row = text.get_position()
        assert (text.get_text() == "+") == (values[int(row), int(column)] > 0)


def test_opposite_is_said():
    adata = make_searched(direction="opposite")
    assert "opposed" in cfm.pl.signature_search(adata, show=False).get_title()


def test_volcano_marks_the_evidence(searched):
    ax = cfm.pl.volcano(searched, "x", match="public 20", show=False)
    proof = searched.uns["signature_search"]["evidence"]
    proof = proof[(proof["query"] == "x") & (proof["match"] == "public 20")]
    marked = np.vstack([points.get_offsets() for points in ax.collections[1:3]])
    assert sorted(marked[:, 0]) == pytest.approx(sorted(proof["query_effect"]), abs=1e-5)
    assert "rank" in ax.get_ylabel()
    assert {t.get_text() for t in ax.texts} <= set(proof["gene"])


def test_volcano_of_any_contrasts_names_the_strongest(searched):
    del searched.uns["signature_search"]
    searched.layers["pval"] = np.random.default_rng(0).uniform(0.001, 1, size=searched.shape)
    name = searched.obs_names[0]
    ax = cfm.pl.volcano(searched, key=None, n_genes=5, show=False)
    assert ax.get_title() == name
    size = np.abs(searched.X[0]) * -np.log10(searched.layers["pval"][0])
    first = np.sort(searched.X[0][np.argsort(-size)[:5]])
    marked = np.vstack([points.get_offsets() for points in ax.collections[1:3]])
    np.testing.assert_allclose(np.sort(marked[:, 0]), first, rtol=1e-6)
    assert "strongest, up" in ax.get_legend().get_texts()[0].get_text()
    with pytest.raises(KeyError, match="match='a' is no match"):
        cfm.pl.volcano(searched, key=None, match="a", show=False)


def test_volcano_takes_p_values_or_means_where_they_are(searched):
    searched.var["base_mean"] = np.arange(600.0)
    assert cfm.pl.volcano(searched, show=False).get_ylabel() == "mean expression"
    searched.layers["pval"] = np.full(searched.shape, 0.01)
    ax = cfm.pl.volcano(searched, show=False)
    assert ax.get_ylabel() == "−log10 pval"
    assert np.allclose(ax.collections[0].get_offsets()[:, 1], 2)
    assert cfm.pl.volcano(searched, mean_key="base_mean", show=False).get_ylabel() == (
        "mean expression"
    )
