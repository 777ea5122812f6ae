"""Embeddings, attention and predictions of hidden effects."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from cfm.models import CellPulse
from tests._toy import SIZES, hide_half


def embed(model: CellPulse, adata: ad.AnnData, **arguments) -> np.ndarray:
    return model.get_latent_representation(adata, **arguments)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the order of summation."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_embeddings_are_float32_and_tell_viruses_apart(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    latent = embed(model, contrasts)
    assert latent.shape == (contrasts.n_obs, SIZES["dim"])
    assert latent.dtype == np.float32
    unit = latent / np.linalg.norm(latent, axis=1, keepdims=True)
    similar = unit @ unit.T
    label = contrasts.obs["label"].to_numpy()
    same = label[:, None] == label[None, :]
    assert similar[same].mean() > similar[~same].mean() + 0.05


def test_missing_absent_and_silent_genes_give_no_token(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    """Genes that are NaN, absent or silent give the same tokens, so the same embedding."""
    keep = np.arange(contrasts.n_vars) % 5 != 0
    missing, silent = contrasts.copy(), contrasts.copy()
    missing.X[:, ~keep] = np.nan
    silent.X[:, ~keep] = 0.0
    expected = embed(model, contrasts[:, keep].copy())
    close(embed(model, missing), expected)
    close(embed(model, silent), expected)


def test_attention_maps_name_their_genes(model: CellPulse, contrasts: ad.AnnData) -> None:
    contrasts.X[1] = 0.0
    maps = list(model.get_attention(contrasts[:2]))
    genes, weights = maps[0]
    assert genes[0] == "<summary>"
    assert weights.shape == (1, SIZES["n_heads"], len(genes), len(genes))
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    strength = contrasts.to_df().iloc[0].abs().sort_values(ascending=False)
    assert set(genes[1:]) == set(strength.index[: SIZES["n_tokens"]])
    assert maps[1][0].tolist() == ["<summary>"]  # nothing moves
    assert maps[1][1].shape[-2:] == (1, 1)


def test_hidden_values_are_not_read(model: CellPulse, contrasts: ad.AnnData) -> None:
    hidden = hide_half(contrasts.X, 60)
    other = np.where(hidden, -7 * contrasts.X, contrasts.X)
    for found, expected in zip(
        model.predict_hidden(other, hidden), model.predict_hidden(contrasts.X, hidden), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(np.isfinite(found), hidden)


def test_hidden_sizes_are_log2_fold_changes(model: CellPulse, contrasts: ad.AnnData) -> None:
    hidden = hide_half(contrasts.X, 60)
    _, size = model.predict_hidden(contrasts.X, hidden)
    assert (size[hidden] >= 0).all()
    ratio = np.median(size[hidden]) / np.median(np.abs(contrasts.X[hidden]))
    assert 0.5 < ratio < 2.0


def test_asking_for_nothing_answers_nothing(model: CellPulse, contrasts: ad.AnnData) -> None:
    odds, size = model.predict_hidden(contrasts.X, np.zeros(contrasts.shape, dtype=bool))
    assert np.isnan(odds).all()
    assert np.isnan(size).all()


def test_hidden_of_another_shape_is_refused(model: CellPulse, contrasts: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="a column for each gene of the vocabulary"):
        model.predict_hidden(contrasts.X[:, :5], np.zeros((contrasts.n_obs, 5), dtype=bool))


def test_the_model_describes_itself(
    model: CellPulse, fresh: CellPulse, capsys: pytest.CaptureFixture[str]
) -> None:
    n = sum(p.numel() for p in model.module.parameters())
    for each in (model, fresh):
        repr(each)  # scvi-tools prints it
        assert capsys.readouterr().out.splitlines() == [
            f"CellPulse: 800 genes, 96 tokens, {n:,} parameters",
            "Training status: Trained",
        ]
