"""Cells made from conditions: planted structure, given counts, and independence of all else."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfm.models import LingshuCell
from cfm.models.lingshu._counts import quantise
from tests._lingshu import EFFECTS, MARKERS, N_GENES, PROGRAM, mean_log, toy_counts, toy_lingshu

ASKED = {"source": "B", "perturbation": "x", "n_steps": 4}


def same(a: ad.AnnData, b: ad.AnnData) -> bool:
    return (a.X != b.X).nnz == 0


def test_cells_are_counts_with_their_conditions() -> None:
    model = toy_lingshu()
    cells = model.generate(6, perturbation=["y", "x"], source="T", n_steps=2)
    assert cells.shape == (6, N_GENES)
    assert cells.var_names.tolist() == model.vocabulary.genes.tolist()
    assert sparse.issparse(cells.X)
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.int32
    assert cells.X.min() >= 0
    assert (cells.obs["cell_type"] == "T").all()
    assert (cells.obs["drug"] == "y+x").all()
    assert (cells.obs["depth"] > 0).all()
    params = cells.uns["generation"]["params"]
    assert params["n_steps"] == 2
    assert params["guidance"] == 2.0
    assert params["model"] == "LingshuCell"


def test_planted_effects_are_recovered() -> None:
    model, real = toy_lingshu(), toy_counts(seed=9, n=3000, held_out=False)

    def truth(source: str, drug: str) -> np.ndarray:
        return mean_log(real[(real.obs["cell_type"] == source) & (real.obs["drug"] == drug)])

    made = {
        (source, drug): mean_log(
            model.generate(120, source=source, perturbation=drug, n_steps=8, guidance=0.0)
        )
        for source in "BT"
        for drug in ("none", "x", "y", "x+y")
    }
    for (source, drug), mean in made.items():
        assert np.corrcoef(mean, truth(source, drug))[0, 1] > 0.93, (source, drug)
        own, other = MARKERS[source], MARKERS["T" if source == "B" else "B"]
        assert mean[own].mean() > mean[other].mean() + 0.8
    # Also of T cells under y, of which none was in training.
    for source in "BT":
        raised = made[source, "x"] - made[source, "none"]
        assert raised[EFFECTS["x"][0]].mean() > 0.5 * np.log(4.0)
        lowered = made[source, "y"] - made[source, "none"]
        assert lowered[EFFECTS["y"][0]].mean() < -0.4


def test_genes_go_together_as_they_do_in_cells() -> None:
    cells = toy_lingshu().generate(150, source="T", perturbation="none", n_steps=14)
    x = np.log1p(cells.X.toarray())
    on, off = (x[:, genes].mean(axis=1) for genes in PROGRAM)
    assert np.corrcoef(on, off)[0, 1] < -0.6
    together = toy_lingshu().generate(150, source="T", perturbation="none", n_steps=1)
    x = np.log1p(together.X.toarray())
    on, off = (x[:, genes].mean(axis=1) for genes in PROGRAM)
    assert abs(np.corrcoef(on, off)[0, 1]) < 0.3  # one step draws genes independently


def test_guidance_leads_further_away_from_the_control() -> None:
    model = toy_lingshu()
    plain, guided = (
        mean_log(model.generate(80, source="B", perturbation="y", n_steps=3, guidance=w))
        for w in (0.0, 2.0)
    )
    genes = EFFECTS["y"][0]
    assert guided[genes].mean() < plain[genes].mean() - 0.1
    none = [model.generate(5, **(ASKED | {"perturbation": "none"}), guidance=w) for w in (0, 3)]
    assert same(*none)  # the control is led away from itself, to itself


def test_no_guidance_is_plain_conditional_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_lingshu()
    cells = model.generate(5, guidance=0.0, **ASKED)
    # The null condition is not even looked at.
    monkeypatch.setattr("cfm.models.lingshu.Conditions.control", lambda self: None)
    assert same(model.generate(5, guidance=0.0, **ASKED), cells)
    monkeypatch.undo()
    tiny = model.generate(5, guidance=1e-12, guidance_floor=0.0, **ASKED)
    assert same(tiny, cells)


def test_results_depend_on_name_and_seed_alone() -> None:
    model = toy_lingshu()
    cells = model.generate(45, **ASKED)
    assert same(model.generate(45, batch_size=1, **ASKED), cells)
    assert same(model.generate(45, batch_size=7, **ASKED), cells)
    assert same(model.generate(7, **ASKED), cells[:7])
    table = pd.DataFrame(
        {"cell_type": "B", "drug": "x", "depth": cells.obs["depth"]}, index=cells.obs_names
    )
    turned = table.iloc[np.random.default_rng(0).permutation(45)[:30]].copy()
    turned.loc[turned.index[::3], "drug"] = "y"  # neighbours under other conditions
    found = model.generate(turned, n_steps=4)
    mine = (turned["drug"] == "x").to_numpy()
    assert same(found[mine], cells[turned.index[mine]])
    assert not same(model.generate(45, seed=1, **ASKED), cells)


@pytest.mark.parametrize("kind", ["mapping", "table", "array"])
def test_given_counts_stay_and_are_seen(kind: str) -> None:
    model = toy_lingshu()
    on = {f"GENE{i}": 30 for i in range(20, 25)} | {"GENE0": 123}
    if kind == "mapping":
        frozen = on
    elif kind == "table":
        frozen = pd.DataFrame(on, index=range(40))
    else:
        frozen = np.full((40, N_GENES), np.nan)
        frozen[:, 20:25], frozen[:, 0] = 30, 123
    asked = {"source": "B", "perturbation": "none", "n_steps": 4}
    cells = model.generate(40, frozen=frozen, **asked)
    x = cells.X.toarray()
    assert (x[:, 20:25] == 30).all()
    assert (x[:, 0] == 123).all()  # as given, not as quantised (120)
    assert quantise(np.array([123]))[0] == 102
    free = model.generate(40, **asked)
    assert x[:, PROGRAM[1]].mean() < 0.7 * free.X.toarray()[:, PROGRAM[1]].mean()


def test_everything_may_be_given() -> None:
    frozen = np.arange(2 * N_GENES, dtype=float).reshape(2, N_GENES)
    cells = toy_lingshu().generate(2, frozen=frozen, **ASKED)
    assert (cells.X.toarray() == frozen).all()


def test_unknown_conditions_are_a_mixture() -> None:
    cells = toy_lingshu().generate(150, n_steps=10)
    x = np.log1p(cells.X.toarray())
    types = x[:, MARKERS["B"]].mean(axis=1) > x[:, MARKERS["T"]].mean(axis=1)
    assert 0.2 < types.mean() < 0.8
    assert cells.uns["generation"]["params"]["guidance"] == 0.0
    assert "drug" not in cells.obs


def test_a_table_that_says_nothing_the_model_knows_is_refused() -> None:
    model = toy_lingshu()
    key = model.levels.source_key
    misspelt = pd.DataFrame({"type": [model.levels.sources[0]] * 2})
    with pytest.raises(ValueError, match=rf"columns \['type'\], and none .*'{key}'.*Rename"):
        model.generate(misspelt, n_steps=1)
    assert model.generate(misspelt, n_steps=1, source=model.levels.sources[0]).n_obs == 2
    assert model.generate(misspelt.iloc[:, :0], n_steps=1).n_obs == 2


def test_depth_is_that_of_training_and_can_be_asked_for() -> None:
    model, real = toy_lingshu(), toy_counts()
    depth = model.generate(200, n_steps=1).obs["depth"]
    own = np.asarray(real.X.sum(axis=1)).ravel()
    for q in (0.1, 0.5, 0.9):
        assert np.quantile(depth, q) == pytest.approx(np.quantile(own, q), rel=0.1)
    low, high = (
        model.generate(60, depth=float(np.quantile(own, q)), **ASKED).X.sum() for q in (0.02, 0.98)
    )
    assert low < high


def test_no_gene_gets_far_more_than_was_seen_of_it() -> None:
    seen = toy_counts().X.max(axis=0).toarray().ravel()
    limit = quantise(2 * seen + 5)
    found = toy_lingshu().module.largest.numpy()
    assert (found <= limit).all()  # not all cells are trained on
    assert (found == limit).mean() > 0.5
    wild = toy_lingshu().generate(50, guidance=8.0, guidance_floor=0.0, **ASKED)
    assert (quantise(wild.X.toarray()) <= limit).all()


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
def test_streaming_to_a_file_equals_memory(tmp_path: Path, suffix: str) -> None:
    model, path = toy_lingshu(), tmp_path / f"cells{suffix}"
    cells = model.generate(40, **ASKED)
    found = model.generate(40, path=path, batch_size=6, **ASKED)
    assert not isinstance(found.X, np.ndarray | sparse.csr_matrix)  # it stays on disk
    read = ad.read_h5ad(path) if suffix == ".h5ad" else ad.read_zarr(path)
    assert same(read, cells)
    pd.testing.assert_frame_equal(read.obs, cells.obs, check_names=False)
    assert read.var_names.equals(cells.var_names)
    assert read.uns["generation"]["params"]["n_steps"] == 4
    assert same(found.to_memory(), cells)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.generate(2, path=path, **ASKED)
    again = model.generate(3, path=path, overwrite=True, **ASKED)
    assert again.n_obs == 3
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_interrupted_stream_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cfm.models.lingshu._generation.CellFile.finish", stop)
    with pytest.raises(KeyboardInterrupt):
        toy_lingshu().generate(4, path=tmp_path / "cells.h5ad", **ASKED)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_conditions_makes_cells() -> None:
    model = LingshuCell(vocabulary=["A", "B", "C"], dim=16, n_layers=1, n_heads=2, group_size=2)
    cells = model.generate(3, n_steps=2)
    assert cells.shape == (3, 3)
    assert list(cells.obs) == ["depth"]
    assert cells.obs["depth"].isna().all()  # it was never trained


def test_bfloat16_gives_similar_cells() -> None:
    asked = {"source": "B", "perturbation": "x", "n_steps": 1, "guidance": 0.0}
    cells, other = (
        toy_lingshu().generate(20, precision=p, **asked) for p in ("float32", "bfloat16")
    )
    assert 0 < (cells.X != other.X).nnz < 0.2 * cells.X.nnz
    assert np.corrcoef(mean_log(cells), mean_log(other))[0, 1] > 0.99
