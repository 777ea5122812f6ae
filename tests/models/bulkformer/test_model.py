"""Embedding, imputation and knock-down on AnnData."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from cfm.models import BulkFormer
from tests._bulk import N_GENES, toy_bulkformer, toy_log_tpm
from tests._same import assert_unchanged


@pytest.fixture
def model() -> BulkFormer:
    return toy_bulkformer()


@pytest.fixture
def adata() -> ad.AnnData:
    return toy_log_tpm(seed=3, n=20)


def whole(model: BulkFormer, adata: ad.AnnData, **arguments) -> np.ndarray:
    return np.concatenate([e for _, e in model.get_gene_embeddings(adata, **arguments)])


@pytest.mark.parametrize("pooling", ["mean", "max", "median"])
def test_samples_are_pooled_genes(model: BulkFormer, adata: ad.AnnData, pooling: str) -> None:
    found = model.get_latent_representation(adata, pooling=pooling)
    assert found.dtype == np.float32
    assert found.shape == (20, 19)
    genes = torch.from_numpy(whole(model, adata))
    pooled = {
        "mean": genes.mean(1),
        "max": genes.max(1).values,
        "median": genes.median(1).values,
    }[pooling]
    np.testing.assert_allclose(found, pooled, rtol=1e-4, atol=1e-5)


def test_all_poolings_stand_side_by_side(model: BulkFormer, adata: ad.AnnData) -> None:
    parts = [model.get_latent_representation(adata, pooling=p) for p in ("mean", "max", "median")]
    found = model.get_latent_representation(adata, pooling="all")
    np.testing.assert_array_equal(found, np.concatenate(parts, axis=1))
    with pytest.raises(ValueError, match="pooling='all and factors'; expected"):
        model.get_latent_representation(adata, pooling="all and factors")


def test_gene_features_are_appended(model: BulkFormer, adata: ad.AnnData) -> None:
    names = ["GENE7", "ELSEWHERE", "GENE2"]
    table = pd.DataFrame([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], index=names)
    found = whole(model, adata, genes=["GENE2", "GENE3", "GENE7"], gene_features=table)
    assert found.shape == (20, 3, 19 + 2)
    np.testing.assert_array_equal(
        found[..., :19], whole(model, adata, genes=["GENE2", "GENE3", "GENE7"])
    )
    expected = np.array([[5.0, 6.0], [np.nan, np.nan], [1.0, 2.0]])
    np.testing.assert_array_equal(found[..., 19:], np.broadcast_to(expected, (20, 3, 2)))
    with pytest.raises(ValueError, match="Found 0 of the model"):
        whole(model, adata, gene_features=table.loc[["ELSEWHERE"]])


def test_genes_to_pool_over(model: BulkFormer, adata: ad.AnnData) -> None:
    some = ["GENE5", "GENE70", "GENE1"]
    found = model.get_latent_representation(adata, genes=some)
    expected = whole(model, adata, genes=some)
    assert expected.shape == (20, 3, 19)
    np.testing.assert_allclose(found, expected.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(expected, whole(model, adata)[:, [5, 70, 1]], rtol=1e-6)
    part = adata[:, 20:].copy()  # by default those that are measured
    names = part.var_names.tolist()
    np.testing.assert_allclose(
        model.get_latent_representation(part),
        model.get_latent_representation(part, genes=names),
        rtol=1e-6,
    )


def test_absent_genes_are_missing_not_zero(model: BulkFormer, adata: ad.AnnData) -> None:
    part = adata[:, :60].copy()
    marked = adata.copy()
    marked.X[:, 60:70] = np.nan
    marked.X[:, 70:] = -10.0
    names = part.var_names.tolist()
    found = model.get_latent_representation(part)
    np.testing.assert_allclose(
        found, model.get_latent_representation(marked, genes=names), rtol=1e-5
    )
    np.testing.assert_allclose(found[:, -3], 0.25)
    zero = adata.copy()
    zero.X[:, 60:] = 0.0
    assert np.abs(model.get_latent_representation(zero, genes=names) - found).max() > 0.01


def test_imputing_keeps_what_is_observed(model: BulkFormer, adata: ad.AnnData) -> None:
    adata.X[0, :10] = np.nan
    adata.X[1, 5] = -10.0
    before = adata.copy()
    mask = np.zeros(adata.shape, dtype=bool)
    mask[2, 3:9] = True
    found = model.impute(adata, mask=mask)
    hidden = mask | np.isnan(adata.X) | (adata.X == -10)
    np.testing.assert_array_equal(found[~hidden], before.X[~hidden])
    assert np.isfinite(found).all() and (found >= 0).all()
    assert not np.isclose(found[mask], adata.X[mask]).all()
    assert_unchanged(adata, before)
    changed = adata.copy()
    changed.X[mask] = 1.0  # what is hidden is not read
    np.testing.assert_array_equal(model.impute(changed, mask=mask)[mask], found[mask])


def test_missing_genes_that_the_model_does_not_know_stay_missing(
    model: BulkFormer, adata: ad.AnnData
) -> None:
    adata.var_names = [*adata.var_names[:-2], "OTHER1", "OTHER2"]
    adata.X[:5, -2] = np.nan
    found = model.impute(adata)
    assert np.isnan(found[:5, -2]).all()
    np.testing.assert_array_equal(found[5:, -2:], adata.X[5:, -2:])


def test_unmeasured_genes_are_predicted(model: BulkFormer, adata: ad.AnnData) -> None:
    part = adata[:, 20:].copy()
    absent = adata.var_names[:20].tolist()
    found = model.predict_expression(part, genes=absent)
    assert found.columns.tolist() == absent
    assert found.index.equals(adata.obs_names)
    mean = toy_log_tpm().X[:, :20].mean(0)
    truth = adata.X[:, :20]
    assert np.square(found.to_numpy() - truth).mean() < 0.6 * np.square(mean - truth).mean()
    assert model.predict_expression(part).shape == (20, N_GENES)


def test_a_knock_down_shifts_genes_that_go_along(model: BulkFormer, adata: ad.AnnData) -> None:
    loadings = toy_log_tpm().varm["loadings"]
    down = np.argsort(-loadings[:, 0])[:8]  # genes that the first factor raises
    names = [f"GENE{i}" for i in down]
    shift = model.knock_down(adata, names)
    assert shift.shape == (20, N_GENES)
    assert shift.columns.equals(model.vocabulary.genes)
    others = np.setdiff1d(np.arange(N_GENES), down)
    found = shift.mean().to_numpy()[others]
    assert np.corrcoef(found, -loadings[others, 0])[0, 1] > 0.5
    nothing = model.knock_down(adata, names, remaining=1.0)
    assert np.abs(nothing.to_numpy()).max() < 1e-4
    several = model.knock_down(adata, ["GENE1", "GENE2"], remaining=0.5)
    assert not np.allclose(several, 0.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, a: m.knock_down(a, "XYZ"), KeyError, r"\['XYZ'\] are not in the model's"),
        (lambda m, a: m.knock_down(a[:, 1:].copy(), ["GENE0"]), KeyError, r"measure \['GENE0'\]"),
        (lambda m, a: m.knock_down(a, "GENE0", remaining=-0.1), ValueError, "remaining="),
        (lambda m, a: list(m.get_gene_embeddings(a, genes=["XYZ"])), KeyError, r"\['XYZ'\] are"),
        (lambda m, a: list(m.get_gene_embeddings(a, genes="GENE1")), TypeError, "a single string"),
        (lambda m, a: m.impute(a, mask=np.zeros((3, 3), dtype=bool)), ValueError, "of bool"),
        (lambda m, a: m.impute(a, mask=np.zeros(a.shape)), ValueError, r"\(20, 80\) of bool"),
    ],
)
def test_arguments_out_of_range(
    model: BulkFormer, adata: ad.AnnData, call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(model, adata)
