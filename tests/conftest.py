"""What every test shares: a backend without a screen, seeds, and small count tables."""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import matplotlib

matplotlib.use("Agg")

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests._toy_fixtures"]

# Timing on a shared two-core machine says nothing about an input, so no deadline.
settings.register_profile(
    "cfm",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("cfm")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    np.random.seed(0)  # noqa: NPY002 - libraries below us still read the global state
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _close_figures():
    """Figures of one test do not pile up in the next."""
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded random generator."""
    return np.random.default_rng(0)


@pytest.fixture
def counts(rng: np.random.Generator) -> ad.AnnData:
    """Bulk counts: 12 samples of two studies, three mock and three infected in each, 60 genes.

    The first ten genes rise eightfold and the next five fall eightfold with infection.
    """
    n_genes = 60
    obs = pd.DataFrame(
        {
            "study": pd.Categorical(np.repeat(["study1", "study2"], 6)),
            "virus": pd.Categorical(np.tile(np.repeat(["none", "IAV"], 3), 2)),
            "donor": pd.Categorical(np.tile(["a", "b", "c"], 4)),
        },
        index=[f"sample{i}" for i in range(12)],
    )
    mean = rng.uniform(20, 500, size=n_genes) * np.ones((12, 1))
    infected = (obs["virus"] == "IAV").to_numpy()
    mean[np.ix_(infected, np.arange(10))] *= 8
    mean[np.ix_(infected, np.arange(10, 15))] /= 8
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])
    return ad.AnnData(X=rng.poisson(mean).astype(np.float32), obs=obs, var=var)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the file that takes longest first, so that no process works on it alone at the end."""
    items.sort(key=lambda item: "test_guides.py" not in item.nodeid)
