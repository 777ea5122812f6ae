"""What makes cells out of nothing: references, samplers, scVI, Lingshu-Cell."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import torch

from benchmarks import _lingshu_recipe
from benchmarks._scvi_cells import scvi_counts, train_scvi

#: Makes ``n`` cells of counts, ``(n, genes)``, from training cells alone.
Generator = Callable[[ad.AnnData, int, int], np.ndarray]

SCVI = {"gene_likelihood": "nb", "n_layers": 2, "n_latent": 30}


def dense(adata: ad.AnnData) -> np.ndarray:
    """Return the counts as a dense array."""
    x = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    return x.astype(np.float32)


def resampled(train: ad.AnnData, n: int, seed: int) -> np.ndarray:
    """Draw training cells again: nothing is new, and the distribution is as good as it gets."""
    rows = np.random.default_rng(seed).integers(train.n_obs, size=n)
    return dense(train)[rows]


def independent_genes(train: ad.AnnData, n: int, seed: int) -> np.ndarray:
    """Draw each gene alone, given the library size, from a negative binomial.

    The library size is that of a training cell; the mean of a gene its share of all counts times
    the library size; the dispersion by moments. What it lacks is all that genes know of each other.
    """
    rng = np.random.default_rng(seed)
    x = dense(train).astype(np.float64)
    library = x.sum(axis=1)
    share = x.sum(axis=0) / library.sum()
    mean = library[:, None] * share
    excess = ((x - mean) ** 2 - mean).sum(axis=0)
    dispersion = np.maximum(excess / np.maximum((mean**2).sum(axis=0), 1e-12), 1e-6)
    made = rng.choice(library, size=n)[:, None] * share
    shape = 1 / dispersion
    return rng.poisson(rng.gamma(shape, made * dispersion)).astype(np.float32)


def library_of(train: ad.AnnData, n: int, seed: int) -> np.ndarray:
    """Draw library sizes of training cells."""
    library = np.asarray(train.X.sum(axis=1)).ravel()
    return np.random.default_rng(seed).choice(library, size=n)


def scvi_prior(train: ad.AnnData, n: int, seed: int) -> np.ndarray:
    """Decode draws from scVI's prior: cells out of nothing, as Lingshu-Cell makes them."""
    model = _scvi(train, seed)
    latent = np.random.default_rng(seed).standard_normal((n, model.module.n_latent))
    return scvi_counts(model, latent, library_of(train, n, seed), seed=seed)


def scvi_posterior(train: ad.AnnData, n: int, seed: int) -> np.ndarray:
    """Decode the places of training cells in scVI's latent space: it has seen each of them.

    Each of ``n`` draws starts from a training cell, its posterior (not only its mean) and its
    library size.
    """
    model = _scvi(train, seed)
    rows = np.random.default_rng(seed).integers(train.n_obs, size=n)
    torch.manual_seed(seed)
    mean, variance = model.get_latent_representation(return_dist=True)
    noise = np.random.default_rng(seed + 1).standard_normal(mean[rows].shape)
    library = np.asarray(train.X.sum(axis=1)).ravel()[rows]
    return scvi_counts(model, mean[rows] + np.sqrt(variance[rows]) * noise, library, seed=seed)


_TRAINED: dict[tuple[int, int], object] = {}


def _scvi(train: ad.AnnData, seed: int) -> object:
    """Train once for the two ways to draw from it."""
    key = (id(train), seed)
    if key not in _TRAINED:
        _TRAINED.clear()
        _TRAINED[key] = train_scvi(train, seed, **SCVI)
    return _TRAINED[key]


def lingshu(name: str) -> Generator:
    """Return Lingshu-Cell, by one of the recipes of ``benchmarks/_lingshu_recipe.py``."""

    def make(train: ad.AnnData, n: int, seed: int) -> np.ndarray:
        return _lingshu_recipe.generated(_lingshu_recipe.GENERATED[name], train, n, seed)

    return make
