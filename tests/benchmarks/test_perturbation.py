"""Splits do not leak, bootstrapped scores are those of the tool, samplers keep what they should."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from benchmarks import _perturbation_tasks as tasks
from benchmarks import gene_vectors
from benchmarks._generators import independent_genes, resampled
from benchmarks._perturbation_intervals import Bootstrap
from benchmarks._perturbation_rivals import COUNT_MODEL, METHODS, latent_shift, made
from benchmarks._perturbation_tasks import Task
from benchmarks.perturbation import differences, score

BASELINES = ("control", "mean_shift", "nearest", "linear")


@pytest.fixture
def task() -> Task:
    cells = cfm.datasets.toy_perturbation(n_cells=1500, seed=1)
    hidden = (cells.obs["cell_type"] == "T cell") & (cells.obs["perturbation"] == "IFNB1")
    cells.obs["split"] = np.where(hidden, "test", "train")
    return Task("T cell", cells, ("IFNB1",), "perturbation", "control", "cell_type", "T cell")


def test_sources_are_controls_of_the_group_and_never_test_cells(task):
    sources = task.sources()
    assert set(sources.obs["perturbation"]) == {"control"}
    assert set(sources.obs["cell_type"]) == {"T cell"}
    assert not set(task.train.obs_names) & set(
        task.adata.obs_names[(task.adata.obs["split"] == "test").to_numpy()]
    )


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_does_not_read_what_is_held_out(task, name):
    before = METHODS[name](task, 0)
    changed = task.adata.copy()
    rows = np.flatnonzero((changed.obs["split"] == "test").to_numpy())
    x = changed.X.tolil()
    x[rows] = 3
    changed.X = x.tocsr()
    other = Task("T cell", changed, task.asked, "perturbation", "control", "cell_type", "T cell")
    np.testing.assert_allclose(before.X, METHODS[name](other, 0).X)


def test_bootstrap_starts_with_the_scores_of_the_tool(task):
    cells = {name: METHODS[name](task, 0) for name in ("linear", COUNT_MODEL)}
    table = score(task, cells)
    found = Bootstrap(task, {name: [one] for name, one in cells.items()}, 20).scores("IFNB1")
    for metric, by_method in found.items():
        for name, values in by_method.items():
            rows = (table["metric"] == metric) & (table["method"] == name)
            assert values[0] == pytest.approx(table.loc[rows, "value"].item(), abs=1e-9)
            assert values[1:].std() > 0


def test_a_predicted_mean_is_judged_without_the_noise_of_draws(task):
    cells = METHODS[COUNT_MODEL](task, 0)
    other = METHODS[COUNT_MODEL](task, 1)
    assert (cells.X != other.X).any()
    scores = [
        score(task, {"ours": c}).set_index(["metric", "method"])["value"] for c in (cells, other)
    ]
    assert scores[0]["delta_pearson", "ours"] == scores[1]["delta_pearson", "ours"]
    assert scores[0]["e_distance", "ours"] != scores[1]["e_distance", "ours"]


def test_differences_find_the_better_of_two():
    rng = np.random.default_rng(0)
    rows = []
    for unit in ("a", "b", "c"):
        for method, level in ((COUNT_MODEL, 0.9), ("linear", 0.7), ("nearest", 0.2)):
            for metric, sign in (("delta_pearson", 1), ("e_distance", -1)):
                value = sign * (level + 0.01 * rng.standard_normal(101))
                rows.append({"unit": unit, "metric": metric, "method": method, "value": value})
    table = differences(pd.DataFrame(rows), COUNT_MODEL, ["linear", "nearest"], ["a", "b", "c"])
    assert set(table["best rival"]) == {"linear"}
    mean = table[(table["metric"] == "delta_pearson") & (table["held out"] == "mean")].iloc[0]
    assert 0.15 < mean["low"] < mean["difference"] < mean["high"] < 0.25


def test_latent_shift_leaves_out_the_group_that_is_asked_for(task):
    obs = task.train.obs
    latent = np.zeros((task.train.n_obs, 2))
    latent[(obs["perturbation"] == "IFNB1").to_numpy(), 0] = 2.0
    latent[(obs["cell_type"] == "T cell").to_numpy(), 1] = 50.0
    np.testing.assert_allclose(latent_shift(task, latent, "IFNB1"), [2.0, 0.0])


def test_latent_shift_of_an_unseen_perturbation_goes_by_features(task):
    names = ["IFNB1", "IFNA2", "IL6", "TNF"]
    features = pd.DataFrame({"x": [1.0, 1.0, 0.0, 0.0]}, index=names)
    train = task.adata[(task.adata.obs["perturbation"] != "IFNB1").to_numpy()].copy()
    unseen = Task("t", train, ("IFNB1",), "perturbation", "control", features=features)
    latent = np.zeros((train.n_obs, 1))
    latent[(train.obs["perturbation"] == "IFNA2").to_numpy()] = 3.0
    assert 1.0 < latent_shift(unseen, latent, "IFNB1")[0] < 3.0


def test_counts_that_are_made_are_judged_as_log_expression(task):
    sources = task.sources()
    cells = made(task, sources, {"IFNB1": sources.X.toarray()}, log=False)
    np.testing.assert_allclose(cells.X, tasks.log_expression(sources))
    assert (cells.obs["simulated_from"] == sources.obs_names).all()


def test_network_features_know_neighbours(tmp_path: Path):
    (tmp_path / "networks").mkdir()
    edges = [("A", f"x{i}") for i in range(4)] + [("B", f"x{i}") for i in range(4)]
    edges += [("C", f"y{i}") for i in range(4)] + [("x0", "y0")]
    table = pd.DataFrame(edges, columns=["gene1", "gene2"]).assign(annotation="catalyze")
    table.loc[len(table)] = ("A", "C", "predicted")
    table.to_csv(tmp_path / "networks" / "reactome_fi.csv.gz", index=False)
    found = tasks.network_features(tmp_path, ["A", "B", "C", "not there"])
    near, far = (np.linalg.norm(found.loc["A"] - found.loc[other]) for other in ("B", "C"))
    assert near < far
    assert (found.loc["not there"] == 0).all()


def test_independent_genes_keep_means_and_lose_correlation():
    rng = np.random.default_rng(0)
    program = rng.gamma(1.0, size=(3000, 1))
    x = rng.poisson(np.hstack([4 * program, 4 * program, np.full((3000, 1), 20.0)]))
    train = ad.AnnData(x.astype(np.float32))
    train.obs_names = [f"c{i}" for i in range(3000)]
    cells = independent_genes(train, 3000, seed=0)
    np.testing.assert_allclose(cells.mean(axis=0), x.mean(axis=0), rtol=0.1)
    assert np.corrcoef(x[:, 0], x[:, 1])[0, 1] > 0.7
    share = cells / cells.sum(axis=1, keepdims=True)
    assert abs(np.corrcoef(share[:, 0], share[:, 1])[0, 1]) < 0.45


def test_resampled_cells_are_training_cells():
    train = ad.AnnData(np.arange(12, dtype=np.float32).reshape(4, 3))
    cells = resampled(train, 9, seed=0)
    assert cells.shape == (9, 3)
    assert {tuple(row) for row in cells} <= {tuple(row) for row in train.X}


def test_effects_of_unseen_targets_follow_from_planted_vectors() -> None:
    rng = np.random.default_rng(0)
    vectors = pd.DataFrame(rng.normal(size=(20, 3)), index=[f"G{i}" for i in range(20)])
    effects = vectors.to_numpy() @ rng.normal(size=(3, 50))
    planted = dict(zip(vectors.index, effects, strict=True))
    found = gene_vectors.score(vectors.iloc[:15], planted, planted)
    assert len(found) == 15
    assert found["linear"].mean() > 0.9
    assert found["nearest"].mean() > 0.5
    shuffled = vectors.set_axis(rng.permutation(vectors.index))
    assert gene_vectors.score(shuffled, planted, planted)["linear"].mean() < 0.3
    # what all effects share is what the mean shift has
    common = {name: 5 + effect for name, effect in planted.items()}
    shared = gene_vectors.score(vectors, common, {name: effects.mean(0) for name in common})
    assert shared["mean_shift"].mean() > 0.9
