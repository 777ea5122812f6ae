"""Counts by gene of a vocabulary, whatever the units they are stored in."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from cfm.data import GeneVocabulary
from cfm.data._counts import CountReader, log1p_cp10k

GENES = GeneVocabulary(["A", "B", "C", "D"])


def cells() -> ad.AnnData:
    """Cells with the genes in another order, one that is not in the vocabulary, and one missing."""
    counts = np.array([[5, 0, 2, 1], [0, 0, 7, 0], [3, 4, 0, 9]], dtype=np.float32)
    adata = ad.AnnData(counts)
    adata.var_names = ["C", "A", "X", "D"]
    return adata


def test_counts_are_in_the_order_of_the_vocabulary() -> None:
    reader = CountReader(cells(), GENES, min_genes=3)
    expected = [[4, 0, 3, 9], [0, 0, 5, 1]]
    np.testing.assert_array_equal(reader.counts(np.array([2, 0])).toarray(), expected)
    assert reader.measured.tolist() == [True, False, True, True]
    assert reader.n_cells == 3


@pytest.mark.parametrize("total_counts", ["n", None])
def test_normalised_values_become_counts_again(total_counts: str | None) -> None:
    adata = cells()
    values, total = log1p_cp10k(sparse.csr_matrix(adata.X))
    adata.obs["n"] = total
    adata.X = values
    reader = CountReader(adata, GENES, units="log1p_cp10k", total_counts=total_counts, min_genes=3)
    expected = CountReader(cells(), GENES, min_genes=3).counts(np.arange(3)).toarray()
    if total_counts is None:
        expected *= 1e4 / total[:, None]
    np.testing.assert_allclose(reader.counts(np.arange(3)).toarray(), expected, rtol=1e-5)


def test_values_in_other_units_are_refused_when_they_are_read() -> None:
    adata = cells()
    adata.X[2, 0] = 0.5
    reader = CountReader(adata, GENES, min_genes=3, remedy="round them.")
    reader.counts(np.array([0, 1]))
    with pytest.raises(ValueError, match=r"not whole \(such as 0.5\).*; round them\."):
        reader.counts(np.array([2]))


def test_too_few_measured_genes_are_refused() -> None:
    other = GeneVocabulary([f"G{i}" for i in range(12)] + ["A", "C"])
    with pytest.raises(ValueError, match="Found 2 of the model's 14 genes"):
        CountReader(cells(), other)
    with pytest.warns(UserWarning, match="Only 14% of the model's 14 genes"):
        CountReader(cells(), other, min_genes=2)
