"""``cfm.pl.host_factors`` shows rank, direction, side and significance of the right genes."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from matplotlib.colors import to_hex

import cfm
from cfm.pl._figure import DOWN, GREY, UP
from tests.pl._drawn import legend_texts, overlapping, row_names
from tests.pl._stored import with_host_factors

LOOKS = {"up": (UP.lower(), "▲"), "down": (DOWN.lower(), "▼"), "unchanged": (GREY.lower(), "●")}


def test_genes_stand_in_the_order_of_their_rank_on_the_side_of_the_call():
    adata = with_host_factors()
    table = adata.uns["host_factors"]["results"]
    adata.uns["host_factors"]["results"] = table.iloc[::-1]  # the order of the rows is no matter
    ax = cfm.pl.host_factors(adata, n_genes=12, show=False)
    first = table.head(12)
    assert row_names(ax) == list(first["gene"])
    lengths = np.array([bar.get_width() for bar in ax.patches])
    np.testing.assert_allclose(np.abs(lengths), first["score"])
    assert (np.sign(lengths) == np.sign(first["call_effect"])).all()


def test_direction_is_told_by_colour_by_arrow_and_by_number():
    adata = with_host_factors()
    ax = cfm.pl.host_factors(adata, show=False)
    table = adata.uns["host_factors"]["results"].head(15)
    tips = [text.get_text() for text in ax.texts]
    for bar, tip, (_, row) in zip(ax.patches, tips, table.iterrows(), strict=True):
        color, arrow = LOOKS[row["direction"]]
        assert to_hex(bar.get_edgecolor()) == color
        assert tip.startswith(arrow)
        if abs(row["effect"]) >= 0.1:
            assert f"{row['effect']:+.1f}".replace("-", "−") in tip
        assert "−0.0 " not in f"{tip} "
    assert any(text.startswith("up") for text in legend_texts(ax))


def test_significance_is_told_by_filling_and_by_star():
    ax = cfm.pl.host_factors(with_host_factors(), show=False)
    filled = [to_hex(bar.get_facecolor()) != "#ffffff" for bar in ax.patches]
    stars = [text.get_text().endswith(" *") for text in ax.texts]
    assert filled == stars == [True] * 3 + [False] * 12
    assert {"FDR ≤ 0.05 (*)", "FDR > 0.05"} <= set(legend_texts(ax))


def test_without_a_null_nothing_looks_significant():
    ax = cfm.pl.host_factors(with_host_factors(null=False), show=False)
    assert all(bar.get_hatch() for bar in ax.patches)
    assert "no FDR possible" in legend_texts(ax)
    assert "(1 profile)" in ax.get_title()


def test_the_title_tells_what_is_explained():
    adata = with_host_factors(groups=("IAV", "RSV"))
    table = adata.uns["host_factors"]["results"]
    table["explained"] = table["group"].replace({"RSV": "response"})
    axes = cfm.pl.host_factors(adata, show=False)
    found = {name: ax.get_title().splitlines()[1] for name, ax in axes.items()}
    assert found == {"IAV": "explained: IAV", "RSV": "explained: response"}
    one = cfm.pl.host_factors(adata, group="RSV", show=False)
    assert one.get_title() == axes["RSV"].get_title()
    del adata.uns["host_factors"]["results"]["explained"]
    with pytest.raises(KeyError, match=r"no column explained; run cfm\.tl\.host_factors"):
        cfm.pl.host_factors(adata, show=False)


def test_tied_scores_keep_the_order_of_the_rank():
    adata = with_host_factors(tied=True)
    ax = cfm.pl.host_factors(adata, show=False)
    assert row_names(ax) == list(adata.uns["host_factors"]["results"]["gene"][:15])


def test_known_genes_are_marked(tmp_path):
    adata = with_host_factors(5)
    adata.uns["host_factors"]["results"]["known"] = [False, True, False, False, False]
    adata.write_h5ad(tmp_path / "a.h5ad")
    for stored in (adata, ad.read_h5ad(tmp_path / "a.h5ad")):
        ax = cfm.pl.host_factors(stored, show=False)
        assert [name.endswith(" †") for name in row_names(ax)] == [i == 1 for i in range(5)]
        assert "† given as known" in legend_texts(ax)


def test_scores_below_zero_have_no_length():
    adata = with_host_factors(4)
    adata.uns["host_factors"]["results"]["score"] = [2.0, 1.0, 0.0, -3.0]
    ax = cfm.pl.host_factors(adata, show=False)
    assert [abs(bar.get_width()) for bar in ax.patches] == [2, 1, 0, 0]


def test_groups_become_panels():
    adata = with_host_factors(groups=("IAV", "RSV", "HIV-1", "ZIKV"))
    axes = cfm.pl.host_factors(adata, show=False)
    assert list(axes) == ["IAV", "RSV", "HIV-1", "ZIKV"]
    table = adata.uns["host_factors"]["results"]
    for name, ax in axes.items():
        assert row_names(ax) == list(table.loc[table["group"] == name, "gene"][:15])
    assert list(cfm.pl.host_factors(adata, group=["RSV"], show=False)) == ["RSV"]
    one = cfm.pl.host_factors(adata, group="RSV", show=False)
    assert row_names(one) == row_names(axes["RSV"])
    texts = [ax.title for ax in axes.values()]
    texts += [text for ax in axes.values() for text in ax.get_legend().get_texts()]
    assert overlapping(texts) == []
