"""The count model by itself: registered data, perturbed cells, effects, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import nbinom

import cfm
from cfm.metrics import delta_pearson
from cfm.models import PerturbationCountModel, load_model
from cfm.models.count_model._module import counts_at, tails_of_counts
from tests import _screen
from tests._lingshu import KEYS, toy_counts
from tests._screen import log_mean


def trained(adata: ad.AnnData | None = None, **arguments: object) -> PerturbationCountModel:
    adata = toy_counts() if adata is None else adata
    PerturbationCountModel.setup_anndata(adata, **KEYS)
    model = PerturbationCountModel(adata, **arguments)
    model.train()
    return model


@pytest.fixture(scope="module")
def model() -> PerturbationCountModel:
    return trained()


@pytest.fixture(scope="module")
def controls() -> ad.AnnData:
    adata = toy_counts(seed=3, n=200)
    return adata[(adata.obs["drug"] == "none").to_numpy()].copy()


def same(a: ad.AnnData, b: ad.AnnData) -> bool:
    return (a.X != b.X).nnz == 0


def test_counts_keep_their_quantile_and_draws_have_the_distribution() -> None:
    rng = np.random.default_rng(0)
    dispersion = np.array([0.02, 0.5, 5.0])
    mean = np.tile([300.0, 4.0, 0.3], (20_000, 1))
    draw = rng.random(mean.shape)
    counts = counts_at((draw, 1 - draw), mean, dispersion)
    for gene, phi in enumerate(dispersion):
        size = 1.0 / phi
        law = nbinom(size, size / (size + mean[0, gene]))
        found = [(counts[:, gene] <= x).mean() for x in law.ppf([0.25, 0.5, 0.9])]
        np.testing.assert_allclose(found, law.cdf(law.ppf([0.25, 0.5, 0.9])), atol=0.015)
    tails = tails_of_counts(counts, mean, dispersion, rng.random(mean.shape))
    assert (counts_at(tails, mean, dispersion) == counts).all()
    more = counts_at(tails, 2 * mean, dispersion)
    assert (more >= counts).all()


def test_counts_that_are_hardly_possible_keep_their_order() -> None:
    counts = np.array([[40, 400, 4000]])
    dispersion, mean = np.full(3, 0.02), np.full((1, 3), 1.0)
    tails = tails_of_counts(counts, mean, dispersion, np.full((1, 3), 0.5))
    found = counts_at(tails, 2 * mean, dispersion)
    assert np.isfinite(found).all()
    assert found[0, 0] >= 40


def test_a_held_out_pair_is_predicted_by_the_tool(model: PerturbationCountModel) -> None:
    seen, everything = toy_counts(), toy_counts(held_out=False)
    made = cfm.tl.simulate_perturbation(
        seen, "y", model=model, key="drug", control="none", groupby="cell_type", groups=["T"]
    )
    obs = everything.obs
    before, real = (
        log_mean(everything[((obs["cell_type"] == "T") & (obs["drug"] == d)).to_numpy()])
        for d in ("none", "y")
    )
    assert delta_pearson(log_mean(made) - before, real - before) > 0.8
    assert made.uns["simulation"]["params"]["model"] == "PerturbationCountModel"
    assert made.uns["simulation"]["params"]["units"] == "counts"


def test_each_cell_follows_from_its_name_and_the_seed(
    model: PerturbationCountModel, controls: ad.AnnData
) -> None:
    for start in ("cell", "noise"):
        made = model.simulate(controls, ["x"], start=start)
        assert made.X.dtype == np.int32
        assert same(model.simulate(controls, ["x"], start=start, batch_size=7), made)
        assert same(model.simulate(controls[::-1].copy(), ["x"], start=start)[::-1], made)
        assert not same(model.simulate(controls, ["x"], start=start, seed=1), made)


def test_what_is_not_changed_stays(model: PerturbationCountModel, controls: ad.AnnData) -> None:
    assert same(model.simulate(controls, ["none"]), controls)
    x, noise = (model.simulate(controls, ["x"], start=start) for start in ("cell", "noise"))
    assert abs(x.X - controls.X).sum() < 0.7 * abs(noise.X - controls.X).sum()
    assert x.X[:, 10:15].sum() > 2 * controls.X[:, 10:15].sum()


def test_genes_that_are_not_measured_are_drawn(
    model: PerturbationCountModel, controls: ad.AnnData
) -> None:
    fewer = controls[:, ::-2].copy()
    made = model.simulate(fewer, ["x"])
    assert made.var_names.tolist() == model.vocabulary.genes.tolist()
    assert made[:, made.var_names.difference(fewer.var_names)].X.sum() > 0


def test_effects_are_a_table_of_sources_by_genes(model: PerturbationCountModel) -> None:
    effects = model.predict_effects("x")
    assert effects.index.tolist() == ["B", "T"]
    assert effects.columns.tolist() == model.vocabulary.genes.tolist()
    assert (effects.iloc[:, 10:15] > 0.5).all(axis=None)
    pd.testing.assert_frame_equal(model.predict_effects("x+y"), model.predict_effects(["y", "x"]))
    assert model.predict_effects("none").abs().max(axis=None) == 0
    with pytest.raises(KeyError, match="does not have the perturbation 'z'"):
        model.predict_effects("z")


def test_a_model_without_sources_or_perturbations() -> None:
    adata = toy_counts()
    PerturbationCountModel.setup_anndata(adata, perturbation_key="drug", control="none")
    model = PerturbationCountModel(adata)
    model.train()
    assert model.predict_effects("x").index.tolist() == ["all"]
    PerturbationCountModel.setup_anndata(adata, source_key="cell_type")
    plain = PerturbationCountModel(adata)
    plain.train()
    with pytest.raises(ValueError, match="has no perturbations"):
        plain.simulate(adata, ["x"])


def test_unseen_targets_follow_from_features() -> None:
    screen = cfm.datasets.toy_perturbation(n_cells=2000)
    features = screen.uns["features"]
    known = screen[screen.obs["perturbation"] != "IFNA2"].copy()
    known.uns = {}
    PerturbationCountModel.setup_anndata(known, **_screen.KEYS)
    table = features.drop(index="IFNA2")
    model = PerturbationCountModel(known, perturbation_features=table)
    model.train()
    obs = screen.obs
    before, real = (
        log_mean(screen[((obs["cell_type"] == "B cell") & (obs["perturbation"] == p)).to_numpy()])
        for p in ("control", "IFNA2")
    )
    found = model.predict_effects("IFNA2", features=features.loc["IFNA2"]).loc["B cell"]
    assert delta_pearson(found.to_numpy(), real - before) > 0.5
    with pytest.raises(KeyError, match="takes others by features="):
        model.predict_effects("IFNA2")


def test_saved_models_make_the_same_cells(controls: ad.AnnData, tmp_path: Path) -> None:
    table = pd.DataFrame(np.eye(3), index=["y", "z", "x"], columns=["a", "b", "c"])
    model = trained(toy_counts(n=260), perturbation_features=table)
    loaded, compact = (
        load_model(model.save(tmp_path / str(small), compact=small)) for small in (False, True)
    )
    made = model.simulate(controls, ["z"])
    assert same(loaded.simulate(controls, ["z"]), made)
    assert loaded.provenance == {"training_studies": []}
    assert loaded.weights_record()["sha256"] == model.weights_record()["sha256"]
    assert abs(made.X - compact.simulate(controls, ["z"]).X).sum() < 0.02 * made.X.sum()


@pytest.mark.parametrize(
    ("cells", "source", "perturbation", "error", "message"),
    [
        (9, "B", "x", TypeError, "is one text"),
        (0, "B", ["x"], ValueError, "no cell to start from"),
        (9, "other", ["x"], KeyError, "does not have the source"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    model: PerturbationCountModel,
    controls: ad.AnnData,
    cells: int,
    source: str,
    perturbation: Any,
    error: type[Exception],
    message: str,
) -> None:
    given = controls[:cells].copy()
    given.obs["cell_type"] = source
    with pytest.raises(error, match=message):
        model.simulate(given, perturbation)


def test_a_model_that_was_not_trained_is_refused(controls: ad.AnnData) -> None:
    adata = toy_counts(n=50)
    PerturbationCountModel.setup_anndata(adata, **KEYS)
    with pytest.raises(ValueError, match="not trained"):
        PerturbationCountModel(adata).simulate(controls, ["x"])


def test_counts_of_any_size_are_taken() -> None:
    adata = toy_counts(n=100)
    adata.X = adata.X * 5000
    PerturbationCountModel.setup_anndata(adata, **KEYS)  # no warning: values are not binned
