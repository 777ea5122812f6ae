"""Units and genes: log TPM is read from any storage, and everything else is refused by name."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfm.data import GeneVocabulary
from cfm.models.bulkformer._data import ExpressionReader, expression_blocks
from cfm.models.bulkformer._published import vocabulary_of
from tests._bulk import toy_log_tpm


def whole(adata: ad.AnnData, **arguments) -> np.ndarray:
    return np.concatenate([values for _, values in expression_blocks(adata, **arguments)])


def counts(n_genes: int = 300) -> ad.AnnData:
    rng = np.random.default_rng(0)
    mean = rng.lognormal(4.0, 2.0, n_genes)
    names = pd.DataFrame(index=[f"G{i}" for i in range(n_genes)])
    return ad.AnnData(rng.poisson(mean, (6, n_genes)).astype(np.float32), var=names)


@given(seed=st.integers(0, 1000), share=st.floats(0.05, 1.0))
def test_any_log_tpm_passes_over_all_genes_or_some(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    rate = rng.lognormal(0.0, 2.5, (3, 400)) * (rng.random((3, 400)) < 0.7)
    tpm = 1e6 * rate / rate.sum(axis=1, keepdims=True)
    some = np.log1p(tpm)[:, : max(1, int(400 * share))]
    whole(ad.AnnData(some.astype(np.float32)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: counts(), "counts, or TPM without logarithm"),
        (lambda a: ad.AnnData(np.expm1(a.X)), "counts, or TPM without logarithm"),
        (lambda a: ad.AnnData(np.minimum(counts().X, 12)), "whole numbers only"),
        (lambda a: ad.AnnData(np.log1p(counts().X * 3000)), "which no log1p of TPM reaches"),
        (lambda a: ad.AnnData(a.X - 5.0), "negative values"),
        (lambda a: ad.AnnData(np.where(a.X > 6, np.inf, a.X)), "infinite values"),
    ],
)
def test_other_units_are_refused_and_tpm_is_named(change, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        whole(change(toy_log_tpm()))
    assert "cfm.pp.tpm(adata)" in str(refused.value)


def test_other_logarithms_are_refused() -> None:
    rate = counts().X + 0.1
    tpm = 1e6 * rate / rate.sum(axis=1, keepdims=True)
    whole(ad.AnnData(np.log1p(tpm)))
    small = np.minimum(tpm, 9000)  # log2 of these is no larger than log1p of a million
    with pytest.raises(ValueError, match=r"another logarithm \(log2\?\)"):
        whole(ad.AnnData(np.log2(1 + small)))
    with pytest.raises(ValueError, match="counts per 10,000"):
        whole(ad.AnnData(np.log1p(tpm / 100)))


def test_genes_are_found_by_symbol_old_symbol_and_ensembl_id() -> None:
    vocabulary = vocabulary_of(["ENSG00000187608", "ENSG00000157601", "ENSG99999999990"])
    assert vocabulary.genes.tolist() == ["ISG15", "MX1", "ENSG99999999990"]
    for names in (
        ["ISG15", "MX1", "ENSG99999999990"],
        ["ENSG00000187608", "ENSG00000157601.14", "ENSG99999999990.3"],
        ["G1P2", "MX1", "ENSG99999999990.1"],
    ):
        found = vocabulary.align(names)
        assert dict(zip(found.columns, found.positions, strict=True)) == {0: 0, 1: 1, 2: 2}, names


def test_two_ids_of_one_symbol_keep_a_place_each() -> None:
    ids = ["ENSG00000187608", "ENSG00000187608.7"]
    assert len(set(vocabulary_of(ids).genes)) == 2


def test_few_genes_warn() -> None:
    adata = toy_log_tpm()
    wide = GeneVocabulary([*adata.var_names, *(f"OTHER{i}" for i in range(400))])
    with pytest.warns(UserWarning, match="Only 17% of the model's 480 genes"):
        ExpressionReader(adata, wide)
