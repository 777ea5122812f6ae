"""``cfm.pl.gene_programs`` shows programs, genes and directions as stored, and readably."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgb
from scipy import sparse

import cfm
from cfm.pl._figure import DOWN, UP, ZERO
from cfm.pl._gene_programs import _CMAP as EFFECTS
from tests.pl._drawn import boxes, legend_texts, row_names
from tests.pl._stored import with_gene_programs


def notes(ax) -> str:
    return "\n".join(text.get_text() for text in ax.texts)


def cells(ax) -> np.ndarray:
    """Drawn effects, genes by profiles."""
    return np.vstack([m.get_array() for m in ax.collections if isinstance(m, QuadMesh)])


def signs(ax, n_rows: int, n_columns: int) -> np.ndarray:
    """Signs written into the cells, for rows without a gap between them."""
    found = np.zeros((n_rows, n_columns))
    for part in ax.collections:
        if isinstance(part, PathCollection):
            vertical = np.ptp(part.get_paths()[0].vertices[:, 1]) > 0.1
            for x, y in part.get_offsets():
                found[int(y), int(x)] = 1 if vertical else -1
    return found


def nodes(ax) -> dict[str, np.ndarray]:
    """Positions of the nodes by colour."""
    drawn = [c for c in ax.collections if isinstance(c, PathCollection)]
    return {to_hex(c.get_facecolor()[0]): np.asarray(c.get_offsets()) for c in drawn}


# --- heat map -------------------------------------------------------------------------------


def test_rows_are_ordered_by_program_and_rank():
    adata = with_gene_programs((8, 6, 5))
    table = adata.uns["gene_programs"]["genes"]
    adata.uns["gene_programs"]["genes"] = table.sample(frac=1, random_state=0)
    ax = cfm.pl.gene_programs(adata, show=False)
    arrows = np.where(table["sign"] > 0, "▲", "▼")
    assert row_names(ax) == [f"{g} {a}" for g, a in zip(table["gene"], arrows, strict=True)]
    np.testing.assert_allclose(cells(ax), adata[:, table["gene"]].X.T)


def test_programs_are_named_with_what_they_are_worth():
    ax = cfm.pl.gene_programs(with_gene_programs((8, 6, 5)), show=False)
    said = notes(ax)
    assert "P1\n8 genes, coherence 0." in said
    assert said.count("FDR 0.01 *") == 1
    assert said.count("FDR 0.2\n") == 2


def test_the_best_significant_gene_set_is_named():
    adata = with_gene_programs((8, 6, 5))
    adata.uns["gene_programs"]["enrichment"] = pd.DataFrame(
        {
            "program": ["P1", "P1", "P2"],
            "term": ["SECOND", "FIRST", "NOT SIGNIFICANT"],
            "p_value": [0.01, 0.001, 0.2],
            "fdr": [0.02, 0.01, 0.4],
        },
        index=["0", "1", "2"],
    )
    said = notes(cfm.pl.gene_programs(adata, show=False))
    assert "FDR 0.01 *\nFIRST\n" in said
    assert "SECOND" not in said
    assert "NOT SIGNIFICANT" not in said


def test_colours_diverge_with_grey_at_zero_and_cells_carry_signs():
    assert [to_hex(EFFECTS(x)) for x in (0.0, 1.0)] == [DOWN.lower(), UP.lower()]
    np.testing.assert_allclose(EFFECTS(0.5)[:3], to_rgb(ZERO), atol=0.01)
    adata = with_gene_programs((9,))
    adata.X[:, :3] = [2.0, -2.0, 0.0]
    ax = cfm.pl.gene_programs(adata, show=False)
    mesh = next(m for m in ax.collections if isinstance(m, QuadMesh))
    assert mesh.norm.vmin == -mesh.norm.vmax
    written = signs(ax, 9, 6)
    assert (written[0] == 1).all()
    assert (written[1] == -1).all()
    assert (written[2] == 0).all()


def test_profiles_are_ordered_and_divided_by_group():
    adata = with_gene_programs((5,), 7)
    adata.obs["virus"] = adata.obs["virus"].where(np.arange(7) < 6)
    ax = cfm.pl.gene_programs(adata, groupby="virus", show=False)
    names = [text.get_text() for text in ax.get_xticklabels()]
    order = [0, 2, 4, 1, 3, 5, 6]
    assert names == list(adata.obs_names[order])
    assert {"IAV", "RSV"} <= {text.get_text() for text in ax.texts}
    np.testing.assert_allclose(cells(ax), adata[order, :5].X.T)


def test_layers_sparse_matrices_and_missing_values():
    adata = with_gene_programs((5, 4))
    dense = cells(cfm.pl.gene_programs(adata, show=False))
    adata.layers["stat"] = sparse.csr_matrix(adata.X)
    np.testing.assert_allclose(cells(cfm.pl.gene_programs(adata, layer="stat", show=False)), dense)
    adata.X[1, 2] = np.nan
    ax = cfm.pl.gene_programs(adata, show=False)
    assert np.isnan(np.ma.filled(cells(ax).astype(float), np.nan)[2, 1]) or ax.patches
    assert len(ax.patches) == 1
    assert "hatched: not measured" in notes(ax)


def test_what_is_left_out_is_said():
    adata = with_gene_programs((20,) * 18)
    ax = cfm.pl.gene_programs(adata, show=False)
    assert ax.get_title() == "15 of 18 gene programs, first 4 genes of each"
    assert len(row_names(ax)) == 60
    ax = cfm.pl.gene_programs(adata, programs=["P7", "P2"], n_genes=2, show=False)
    assert [name.split()[0] for name in row_names(ax)] == ["GENE120", "GENE121", "GENE20", "GENE21"]


# --- network --------------------------------------------------------------------------------


def test_nodes_differ_in_colour_and_shape_by_direction():
    adata = with_gene_programs((8, 6, 5))
    ax = cfm.pl.gene_programs(adata, kind="network", show=False)
    table = adata.uns["gene_programs"]["genes"]
    drawn = nodes(ax)
    assert len(drawn[UP.lower()]) == (table["sign"] > 0).sum()
    assert len(drawn[DOWN.lower()]) == (table["sign"] < 0).sum()
    shapes = {
        c.get_paths()[0].vertices.tobytes() for c in ax.collections if isinstance(c, PathCollection)
    }
    assert len(shapes) == 2
    assert any("up" in text for text in legend_texts(ax))


def test_edges_join_the_stored_genes():
    adata = with_gene_programs((4, 3))
    edges = adata.uns["gene_programs"]["edges"]
    ax = cfm.pl.gene_programs(adata, kind="network", show=False)
    drawn = sum(len(c.get_segments()) for c in ax.collections if isinstance(c, LineCollection))
    assert drawn == len(edges)
    only = cfm.pl.gene_programs(adata, kind="network", programs=["P2"], show=False)
    inside = ((edges["program_a"] == "P2") & (edges["program_b"] == "P2")).sum()
    drawn = sum(len(c.get_segments()) for c in only.collections if isinstance(c, LineCollection))
    assert drawn == inside


def test_programs_without_edges_are_drawn():
    adata = with_gene_programs((3, 1))
    adata.uns["gene_programs"]["edges"] = adata.uns["gene_programs"]["edges"][:0]
    ax = cfm.pl.gene_programs(adata, kind="network", show=False)
    assert sum(map(len, nodes(ax).values())) == 4


@pytest.mark.parametrize("sizes", [(120, 80, 60, 40), (20,) * 15])
def test_names_in_a_network_do_not_cover_nodes(sizes):
    adata = with_gene_programs(sizes, groups=("influenza A virus, H3N2",))
    ax = cfm.pl.gene_programs(adata, kind="network", show=False)
    assert any("GENE0" in text.get_text() for text in ax.texts)
    pixels = ax.transData.transform(np.vstack(list(nodes(ax).values())))
    for _, box in boxes(ax.texts):
        assert not any(box.contains(x, y) for x, y in pixels)
