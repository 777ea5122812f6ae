"""Embeddings, attention and predictions of hidden effects."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from cfm.data import map_identifiers
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


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_does_not_matter(
    model: CellPulse, contrasts: ad.AnnData, batch_size: int
) -> None:
    close(embed(model, contrasts, batch_size=batch_size), embed(model, contrasts))


def test_a_profile_is_the_same_alone_in_any_company_and_order(
    model: CellPulse, contrasts: ad.AnnData, rng: np.random.Generator
) -> None:
    latent = embed(model, contrasts)
    close(embed(model, contrasts[3:4].copy()), latent[3:4])
    order = rng.permutation(contrasts.n_obs)
    close(embed(model, contrasts[order].copy()), latent[order])
    company = contrasts[[3, 5]].copy()
    company.X[1] = 0.0
    company.X[1, :2] = 5.0, -5.0
    close(embed(model, company)[:1], latent[3:4])


def test_the_order_of_genes_does_not_matter(
    model: CellPulse, contrasts: ad.AnnData, rng: np.random.Generator
) -> None:
    order = rng.permutation(contrasts.n_vars)
    close(embed(model, contrasts[:, order].copy()), embed(model, contrasts))


def test_further_genes_do_not_matter(model: CellPulse, contrasts: ad.AnnData) -> None:
    more = ad.AnnData(np.full((contrasts.n_obs, 2), 9.0, dtype=np.float32), obs=contrasts.obs)
    more.var_names = ["NOT_A_GENE", "ANOTHER"]
    wide = ad.concat([more, contrasts], axis="var")
    close(embed(model, wide), embed(model, contrasts))


def test_ensembl_ids_and_previous_symbols_are_read(model: CellPulse, contrasts: ad.AnnData) -> None:
    """Names that map to a gene of the vocabulary count as that gene."""
    ensembl = {"IFI27": "ENSG00000165949", "MX1": "ENSG00000157601.14", "ISG15": "ENSG00000187608"}
    mapped = map_identifiers(list(ensembl.values())).symbol
    assert mapped.tolist() == list(ensembl)
    assert set(ensembl) <= set(contrasts.var_names)
    renamed = contrasts.copy()
    renamed.var_names = [ensembl.get(name, name) for name in contrasts.var_names]
    close(embed(model, renamed), embed(model, contrasts))


def storages(adata: ad.AnnData, folder: Path) -> dict[str, ad.AnnData]:
    import dask.array as da

    made = {"float64": adata.copy(), "csr": adata.copy(), "csc": adata.copy()}
    made["float64"].X = adata.X.astype(np.float64)
    made["csr"].X = sp.csr_matrix(adata.X)
    made["csc"].X = sp.csc_matrix(adata.X)
    for name, kind in (("backed", adata), ("backed csr", made["csr"]), ("backed csc", made["csc"])):
        path = folder / f"{name}.h5ad"
        kind.write_h5ad(path)
        made[name] = ad.read_h5ad(path, backed="r")
    made["dask"] = adata.copy()
    made["dask"].X = da.from_array(adata.X, chunks=(10, 300))
    twice = ad.concat([adata, adata], index_unique="-")
    made["view"] = twice[: adata.n_obs]
    made["layer"] = adata.copy()
    made["layer"].layers["lfc"] = made["layer"].X.copy()
    made["layer"].X[:] = np.inf
    return made


def test_the_storage_does_not_matter(
    model: CellPulse, contrasts: ad.AnnData, tmp_path: Path
) -> None:
    latent = embed(model, contrasts)
    for name, adata in storages(contrasts, tmp_path).items():
        layer = "lfc" if name == "layer" else None
        close(embed(model, adata, layer=layer, batch_size=9), latent)


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


def test_a_contrast_in_which_nothing_moves(model: CellPulse, contrasts: ad.AnnData) -> None:
    contrasts.X[:2] = 0.0
    contrasts.X[1] = np.nan
    with pytest.warns(UserWarning, match=r"1 of \d+ contrasts measure fewer than"):
        latent = embed(model, contrasts)
    assert np.isfinite(latent).all()
    close(latent[0], latent[1])


def test_its_own_data_are_the_default(model: CellPulse) -> None:
    close(embed(model, None), embed(model, model.adata))


def test_a_loaded_model_has_no_data_of_its_own(fresh: CellPulse) -> None:
    with pytest.raises(ValueError, match="no data of its own; pass adata"):
        fresh.get_latent_representation()


@pytest.mark.parametrize("batch_size", [0, -1])
def test_no_batch_is_smaller_than_one(
    model: CellPulse, contrasts: ad.AnnData, batch_size: int
) -> None:
    with pytest.raises(ValueError, match="batch_size="):
        embed(model, contrasts, batch_size=batch_size)


def test_flipping_a_profile_changes_its_embedding(model: CellPulse, contrasts: ad.AnnData) -> None:
    flipped = contrasts.copy()
    flipped.X = -flipped.X
    assert np.abs(embed(model, flipped) - embed(model, contrasts)).max() > 0.1


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


def test_a_loaded_model_shows_the_curves_it_came_with(model: CellPulse, fresh: CellPulse) -> None:
    assert fresh.history_ is None  # none of its own
    assert set(fresh.history) == set(model.history)
    for name, curve in model.history.items():
        shown = curve.dropna().astype(float)
        np.testing.assert_allclose(fresh.history[name].to_numpy(), shown.to_numpy(), rtol=1e-5)
