"""What may be read as log2 fold changes, and what is refused."""

from __future__ import annotations

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cfm.data import GeneVocabulary
from cfm.models.cellpulse._data import align_effects, check_effects, effect_blocks

GENES = [f"G{i}" for i in range(300)]
VOCABULARY = GeneVocabulary(GENES)


def adata(x: np.ndarray | sp.csr_matrix, names: list[str] = GENES) -> ad.AnnData:
    return ad.AnnData(x, var=pd.DataFrame(index=names))


def test_blocks_are_float32_and_in_order(rng: np.random.Generator) -> None:
    x = rng.normal(size=(7, 300))
    blocks = list(effect_blocks(adata(sp.csr_matrix(x)), n_rows=3))
    assert [b.shape[0] for _, b in blocks] == [3, 3, 1]
    assert all(b.dtype == np.float32 for _, b in blocks)
    np.testing.assert_allclose(np.concatenate([b for _, b in blocks]), x, rtol=1e-6)


def test_infinite_values_are_refused(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 300))
    x[1, 7] = -np.inf
    with pytest.raises(ValueError, match="infinite values"):
        list(effect_blocks(adata(x)))


def test_missing_values_are_no_error(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 300))
    x[1] = np.nan
    assert np.isnan(next(effect_blocks(adata(x)))[1][1]).all()


@pytest.mark.parametrize("make", [np.round, np.log1p], ids=["counts", "log"])
def test_expression_is_refused(make, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 300))
    x[1] = make(rng.gamma(2.0, 20.0, size=300))
    with pytest.raises(ValueError, match=r"Row 1 .*looks like expression or counts"):
        check_effects(x)


def test_one_sided_contrasts_of_few_genes_pass() -> None:
    x = np.zeros((1, 300))
    x[0, :150] = 2.0
    check_effects(x)


def test_too_few_genes_is_an_error_that_shows_names(rng: np.random.Generator) -> None:
    names = [f"probe{i}" for i in range(290)] + GENES[:10]
    with pytest.raises(ValueError, match=r"Found 10 of the model's 300 genes .*probe0"):
        align_effects(adata(rng.normal(size=(1, 300)), names), VOCABULARY)


def test_few_genes_warn(rng: np.random.Generator) -> None:
    with pytest.warns(UserWarning, match="Only 20% of the model's 300 genes"):
        found = align_effects(adata(rng.normal(size=(1, 60)), GENES[:60]), VOCABULARY)
    assert found.found_share == pytest.approx(0.2)


def test_a_missing_layer_is_named(rng: np.random.Generator) -> None:
    with pytest.raises(KeyError, match="no layer 'lfc'"):
        align_effects(adata(rng.normal(size=(1, 300))), VOCABULARY, layer="lfc")


def test_other_objects_are_refused(rng: np.random.Generator) -> None:
    x = adata(rng.normal(size=(1, 300)))
    with pytest.raises(TypeError, match="ndarray"):
        align_effects(x.X, VOCABULARY)
    with pytest.raises(TypeError, match=r"MuData; expected an AnnData.*mdata\['rna'\]"):
        align_effects(md.MuData({"rna": x}), VOCABULARY)
