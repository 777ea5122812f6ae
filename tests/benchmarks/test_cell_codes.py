"""How the benchmark of cell codes groups, merges and scores."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks import cell_codes
from benchmarks._code_clusters import (
    agreement,
    difference,
    k_means,
    k_means_from,
    leiden,
    leiden_of,
    log_cells,
    logistic,
    perplexity,
    stability,
)
from benchmarks._code_recipe import PLAIN, Cells, fold_model, sorted_blood
from benchmarks.cell_codes import (
    Run,
    against_k_means,
    beside_k_means,
    read_all,
    score_cells,
    stable,
    summary,
    use_of_codes,
)
from benchmarks.cell_integration import remove_batch
from tests._codes import TYPES, NearestCode, typed_cells


def test_agreement_leaves_out_what_is_not_known() -> None:
    truth = np.array(["a", "a", "b", "b", ""], dtype=object)
    found = agreement(np.array([0, 0, 1, 1, 1]), truth)
    assert (found["NMI"], found["AMI"], found["ARI"]) == (1.0, 1.0, 1.0)
    assert (found["groups"], found["purity"]) == (2, 1.0)
    mixed = agreement(np.array([0, 0, 0, 1, 1]), truth)
    assert mixed["purity"] == 0.75
    unread = agreement(np.array(["0", "-1", "1", "1", "1"], dtype=object), truth)
    assert unread["ARI"] == 1.0
    assert unread["groups"] == 2


def test_perplexity_and_stability() -> None:
    assert perplexity(np.array([0, 0, 1, 1])) == pytest.approx(2.0)
    assert perplexity(np.array([3])) == pytest.approx(1.0)
    same = np.array([0, 0, 1, 1, 2, 2])
    assert stability([same, (same + 1) % 3, same]) == pytest.approx({"AMI": 1.0, "ARI": 1.0})
    rng = np.random.default_rng(0)
    assert stability([rng.integers(0, 4, 2000) for _ in range(3)])["ARI"] < 0.02


def test_the_difference_to_other_groupings_has_an_interval() -> None:
    truth = np.repeat(np.array(["a", "b", "c", ""], dtype=object), 50)
    right = np.repeat([0, 1, 2, 3], 50)
    merged = np.minimum(right, 1)
    found = difference(right, [merged, merged], truth)
    assert found["NMI of codes"] == pytest.approx(1.0)
    assert found["ARI difference"] == pytest.approx(1.0 - agreement(merged, truth)["ARI"])
    assert 0 < found["ARI low"] < found["ARI difference"] < found["ARI high"]
    same = difference(right, [right], truth)
    assert same["NMI low"] == same["NMI high"] == 0.0


def test_clusterings_find_planted_types() -> None:
    cells = typed_cells(30)
    truth = cells.obs["cell_type"].astype(str).to_numpy()
    plain = log_cells(cells, counts=True)
    assert cells.X.max() > 20  # what was given is not changed
    for groups in (leiden(plain), leiden_of(plain, 4), k_means(plain.obsm["X_pca"], 4)):
        assert agreement(groups, truth)["ARI"] > 0.95
    assert len(set(leiden_of(plain, 9))) in range(7, 12)
    half = np.arange(cells.n_obs) % 2 == 0
    found = k_means_from(plain.obsm["X_pca"], np.flatnonzero(half), 4, 0)
    assert agreement(found, truth)["ARI"] > 0.95
    space = plain.obsm["X_pca"]
    called = logistic(space[half], truth[half], space[~half])
    assert (called == truth[~half]).mean() > 0.95


def test_tables_of_planted_cells(capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    training = Cells("training", typed_cells(30))
    for seed in range(2):
        model = NearestCode(seed=0)
        (read,) = read_all(training, [Run("fake", seed, model, None)], named=False)
        reference = None if seed else cell_codes.read_codes(model, training)
        runs.append(Run("fake", seed, read.run.model, reference))
    cells = Cells("query", typed_cells(25, seed=3))
    plain = log_cells(cells.adata, counts=True)
    read = read_all(cells, runs, named=True)
    scores = pd.DataFrame(score_cells(cells, plain, read, training))
    by_method = scores.set_index("method")["AMI"]
    assert by_method["codes"] > 0.6
    assert by_method["codes, merged to as many as types"] > by_method["codes"]
    assert by_method["type of the code in the training donor"] > 0.9
    assert by_method.filter(like="logistic").iloc[0] > 0.9
    assert "k-means on the same embedding" not in by_method  # codes are not of the embedding
    use = use_of_codes(cells, read)
    assert len(use) == 1
    assert 4 <= use[0]["in use"] <= 64
    others = (NearestCode(seed=seed) for seed in range(2))
    parts = {"fake": [other.get_cell_codes(cells.adata).code for other in others]}
    steady = pd.DataFrame(stable(cells, plain, read, parts)).set_index("method")
    assert steady.loc["codes", "ARI"] == 1.0  # the same model twice
    assert steady.loc["codes, from 80 % of the training cells", "ARI"] < 1.0
    assert steady["seeds"].tolist() == [2, 5, 2, 2, 2]
    paired = pd.DataFrame(beside_k_means(cells, plain, read))
    assert paired["seed"].tolist() == [0, 1]
    assert "query: NMI " in against_k_means(paired)
    assert "query: " in summary(scores)
    tables = (scores, paired, pd.DataFrame(use), steady.reset_index())
    cell_codes.write(*tables, SimpleNamespace(write=False))
    assert "Groups and cell types" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:The codes have collapsed")  # after two steps
def test_fold_models_are_kept(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "ff_dim": 16, "n_bins": 4, "n_bits": 4}
    sizes |= {"decoder_dim": 8, "decoder_layers": 1, "decoder_heads": 2, "codebook_dim": 16}
    recipe = type(PLAIN)("with labels", labels=True, sizes=sizes, training={"max_steps": 2})
    cells = Cells("toy", typed_cells(10))
    first = fold_model(recipe, cells, 0, tmp_path)
    again = fold_model(recipe, cells, 0, tmp_path)
    assert capsys.readouterr().out.count("cellvq-toy-with_labels-0") == 1
    assert list(first.properties["cell_type"]) == list(TYPES)
    np.testing.assert_array_equal(
        first.get_cell_codes(cells.adata).code, again.get_cell_codes(cells.adata).code
    )


def test_log_values_are_taken_back_to_counts() -> None:
    log, counts = sorted_blood(), sorted_blood(counts=True)
    assert (log.units, counts.units) == ("log1p_cp10k", "counts")
    assert log.adata.shape == counts.adata.shape == (700, 765)
    x = counts.adata.X
    np.testing.assert_array_equal(x.data, np.rint(x.data))
    back = np.expm1(log.adata.X.toarray()) * log.adata.obs["n_counts"].to_numpy()[:, None] / 1e4
    assert np.abs(back - x.toarray()).max() < 0.1
    assert len(set(log.truth)) == 10


def test_a_planted_batch_is_removed_within_groups() -> None:
    rng = np.random.default_rng(0)
    group, batch = rng.integers(0, 3, 300), rng.integers(0, 2, 300)
    plain = 5 * np.eye(3, 4)[group] + rng.normal(size=(300, 4))
    shifted = plain + batch[:, None] * rng.normal(size=(3, 4))[group]  # another shift in each group
    found = remove_batch(shifted, batch, group)
    for g in range(3):
        means = [found[(group == g) & (batch == b)].mean(axis=0) for b in range(2)]
        np.testing.assert_allclose(means[0], means[1])
        np.testing.assert_allclose(found[group == g].mean(axis=0), shifted[group == g].mean(axis=0))
    one_shift = remove_batch(shifted, batch, np.zeros(300))
    assert (
        np.abs(
            one_shift[(group == 0) & (batch == 0)].mean(axis=0)
            - one_shift[(group == 0) & (batch == 1)].mean(axis=0)
        ).max()
        > 0.2
    )
