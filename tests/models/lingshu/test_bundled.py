"""The bundled model of blood cells: what a user meets first."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import cfm
from cfm.models import LingshuCell

NAME = "lingshu-pbmc-mini"
#: Known answers of blood cells to interferon-beta, and markers of the cell types.
INTERFERON = ["ISG15", "IFIT1", "IFIT3", "MX1", "IFI6", "ISG20"]
MARKERS = {"B cells": "CD79A", "CD14+ Monocytes": "S100A8", "CD8 T cells": "CCL5"}


@pytest.fixture(scope="module")
def model() -> LingshuCell:
    return LingshuCell.from_pretrained(NAME)


@pytest.fixture(scope="module")
def cells(model: LingshuCell) -> ad.AnnData:
    """Twenty control cells of each type."""
    made = [
        model.generate(20, source=source, perturbation="ctrl", n_steps=2, seed=i)
        for i, source in enumerate(model.levels.sources)
    ]
    out = ad.concat(made)
    out.obs_names_make_unique()
    return out


def level(adata: ad.AnnData, genes: list[str]) -> np.ndarray:
    """Mean log1p counts per 10,000 of genes."""
    x = adata.X.toarray().astype(float)
    log = np.log1p(x * (1e4 / x.sum(axis=1, keepdims=True)))
    return log[:, adata.var_names.get_indexer(genes)].mean(axis=0)


def test_cells_are_counts_of_their_type(cells: ad.AnnData) -> None:
    assert (cells.X.data == np.rint(cells.X.data)).all()
    assert cells.X.data.min() >= 1
    for source, gene in MARKERS.items():
        assert gene in cells.var_names
        own = cells.obs["cell_type"] == source
        assert level(cells[own], [gene])[0] > level(cells[~own], [gene])[0] + 0.3, source
    shares = (cells.X.toarray() == 0).mean()
    assert 0.5 < shares < 0.9


def test_interferon_answers(cells: ad.AnnData) -> None:
    columns = {"key": "condition", "control": "ctrl", "groupby": "cell_type"}
    answer = cfm.tl.simulate_perturbation(
        cells, "stim", model=NAME, n_cells=4, n_steps=4, **columns
    )
    assert answer.n_obs == 20
    assert answer.uns["simulation"]["params"]["model"] == NAME
    rise = level(answer, INTERFERON) - level(cells, INTERFERON)
    assert (rise > 0.8).all()
    # housekeeping stays
    assert abs(level(answer, ["B2M"]) - level(cells, ["B2M"]))[0] < 0.8


def test_it_does_not_embed_and_says_what_does(cells: ad.AnnData) -> None:
    with pytest.raises(TypeError, match=r"LingshuCell .*does not embed.*scanpy\.pp\.pca"):
        cfm.tl.embed(cells, NAME)
    assert not cells.obsm


def test_it_says_where_it_comes_from(model: LingshuCell, tmp_path: Path) -> None:
    assert model.card is not None
    assert "GSE96583" in model.card
    assert model.provenance["training_command"] == "python -m training.train_lingshu"
    assert model.provenance["n_cells"] == 1556
    assert cfm.hub.list_checkpoints().loc[NAME, "size_mb"] <= 4.0
    saved = model.save(tmp_path / "copy")
    again = LingshuCell.from_pretrained(saved)
    a, b = (m.generate(3, source="B cells", perturbation="stim", n_steps=2) for m in (model, again))
    assert (a.X != b.X).nnz == 0
