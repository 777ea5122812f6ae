"""Bulk samples are told from single cells by their counts, whatever the storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import cfm
from cfm.data._counts import check_single_cells
from cfm.models import CellVQ

N_GENES = 3000
GENES = [f"G{i}" for i in range(N_GENES)]


def counts(total: float, share: float, n: int = 6) -> np.ndarray:
    """Rows with so many counts on such a share of the genes."""
    rng = np.random.default_rng(0)
    expressed = rng.random((n, N_GENES)) < share
    weight = rng.gamma(1.0, size=(n, N_GENES)) * expressed
    return np.maximum(
        np.rint(total * weight / np.maximum(weight.sum(1, keepdims=True), 1e-9)), expressed
    )


@pytest.mark.parametrize(("total", "share"), [(2e7, 0.8), (2e6, 0.2), (3e5, 0.7)])
def test_bulk_samples_are_refused(total: float, share: float) -> None:
    with pytest.raises(ValueError, match=r"adata\.X holds .* counts a row .* bulk samples"):
        check_single_cells(counts(total, share), "adata.X")


@pytest.mark.parametrize(("total", "share"), [(1e3, 0.1), (2e4, 0.9), (3e5, 0.35), (1.0, 0.001)])
def test_single_cells_are_read(total: float, share: float) -> None:
    check_single_cells(counts(total, share), "adata.X")


def test_a_few_deep_cells_are_no_matter_and_panels_are_not_judged_by_their_share() -> None:
    cells = counts(5e3, 0.2, n=9)
    cells[:3] *= 5000
    check_single_cells(cells, "adata.X")
    check_single_cells(counts(3e5, 0.9)[:, :300], "adata.X")
    check_single_cells(np.empty((0, 5)), "adata.X")


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize(
    "ask",
    [
        lambda x, genes: cfm.tl.embed(x, CellVQ(vocabulary=genes[:40], n_layers=1)),
        lambda x, genes: cfm.tl.predict_properties(
            x, CellVQ(vocabulary=genes[:40], n_layers=1, properties={"a": ["b", "c"]})
        ),
        lambda x, genes: cfm.tl.cell_codes(x, CellVQ(vocabulary=genes[:40], n_layers=1)),
    ],
)
def test_models_of_single_cells_refuse_bulk(kind: Callable, ask: Callable, tmp_path: Path) -> None:
    adata = ad.AnnData(kind(counts(2e7, 0.8)))
    adata.var_names = GENES
    with pytest.raises(ValueError, match=r"bulk samples.*BulkFormer"):
        ask(adata, GENES)
    assert not adata.obsm and adata.obs.empty
    adata.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(ValueError, match="bulk samples"):
        ask(ad.read_h5ad(tmp_path / "x.h5ad", backed="r"), GENES)
