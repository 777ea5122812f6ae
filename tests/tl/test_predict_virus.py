"""``cfm.tl.predict_virus``: what it writes, from contrasts and from counts."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import cfm
from cfm.models import CellPulse
from tests._same import assert_same, assert_unchanged
from tests._toy import SIZES, toy_contrasts, toy_model

KEY = "predicted_virus"
FIELDS = [KEY, f"{KEY}_confidence", f"{KEY}_infected", f"{KEY}_novelty", f"{KEY}_set"]
VIRUSES = ["virus_A", "virus_B", "virus_C", "virus_D"]
BY = ["study", "donor", "time_h"]


@pytest.fixture
def called(model: CellPulse, contrasts: ad.AnnData) -> ad.AnnData:
    assert cfm.tl.predict_virus(contrasts, model) is None
    return contrasts


@pytest.fixture
def counts() -> ad.AnnData:
    return cfm.datasets.toy_infection(stimulus=True)


def test_what_is_written_is_what_the_model_says(model: CellPulse, called: ad.AnnData) -> None:
    expected = model.predict(toy_contrasts())
    obs = called.obs
    assert isinstance(obs[KEY].dtype, pd.CategoricalDtype)
    assert obs[KEY].tolist() == expected.call.tolist()
    assert set(obs[KEY].cat.categories) == set(obs[KEY])
    assert set(obs[KEY]) <= {*VIRUSES, "uninfected", "unknown"}
    for name in ("confidence", "infected", "novelty"):
        column = obs[f"{KEY}_{name}"]
        assert column.dtype == np.float32
        np.testing.assert_array_equal(column, getattr(expected, name))
        assert column.between(0, 1).all()
    proba = called.obsm[f"{KEY}_proba"]
    assert proba.columns.tolist() == [*VIRUSES, "uninfected"]
    assert proba.index.equals(called.obs_names)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0)
    for names, row in zip(obs[f"{KEY}_set"], expected.prediction_set, strict=True):
        assert names.split("|") == row
    assert called.uns[KEY]["classes"] == [*VIRUSES, "uninfected"]
    expected = {"batch_size": 64, "alpha": 0.1, "model": "CellPulse"}
    assert called.uns[KEY]["params"].items() >= (expected | {"vocabulary_share": 1.0}).items()


def test_nothing_else_is_touched(called: ad.AnnData) -> None:
    for name in FIELDS:
        del called.obs[name]
    del called.obsm[f"{KEY}_proba"], called.uns[KEY]
    assert_unchanged(called, toy_contrasts())


def test_the_confidence_is_that_of_the_call(called: ad.AnnData) -> None:
    proba = called.obsm[f"{KEY}_proba"]
    for name, call in called.obs[KEY].items():
        asked = call if call != "unknown" else proba.loc[name, VIRUSES].idxmax()
        assert called.obs.loc[name, f"{KEY}_confidence"] == pytest.approx(proba.loc[name, asked])


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_the_result_survives_a_file(called: ad.AnnData, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "h5ad":
        called.write_h5ad(path)
        back = ad.read_h5ad(path)
    else:
        called.write_zarr(path)
        back = ad.read_zarr(path)
    pd.testing.assert_frame_equal(
        back.obs[FIELDS], called.obs[FIELDS], check_categorical=False, check_dtype=False
    )
    for name in FIELDS[1:4]:
        assert back.obs[name].dtype == np.float32
    pd.testing.assert_frame_equal(back.obsm[f"{KEY}_proba"], called.obsm[f"{KEY}_proba"])
    assert back.uns[KEY]["params"] == called.uns[KEY]["params"]
    assert list(back.uns[KEY]["classes"]) == called.uns[KEY]["classes"]


def test_a_copy_leaves_the_original_alone(model: CellPulse, contrasts: ad.AnnData) -> None:
    made = cfm.tl.predict_virus(contrasts, model, copy=True)
    assert_unchanged(contrasts, toy_contrasts())
    assert set(FIELDS) <= set(made.obs)


def test_another_key_and_alpha(model: CellPulse, contrasts: ad.AnnData) -> None:
    cfm.tl.predict_virus(contrasts, model, key_added="call", alpha=0.02)
    assert "call_set" in contrasts.obs
    assert list(contrasts.obsm) == ["call_proba"]
    assert contrasts.uns["call"]["params"]["alpha"] == 0.02
    cfm.tl.predict_virus(contrasts, model)
    sizes = [contrasts.obs[c].str.count(r"\|").sum() for c in ("call_set", f"{KEY}_set")]
    assert sizes[0] >= sizes[1]


def test_its_own_result_is_replaced_quietly_and_others_with_a_warning(
    model: CellPulse, called: ad.AnnData
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cfm.tl.predict_virus(called, model)
    other = toy_contrasts()
    other.obs["virus_set"] = "mine"
    with pytest.warns(UserWarning, match=r"obs\['virus'\], obs\['virus_set'\] was not written by"):
        cfm.tl.predict_virus(other, model, key_added="virus")
    assert set(other.obs["virus"]) <= {*VIRUSES, "uninfected", "unknown"}


def test_from_counts_it_makes_the_contrasts_first(model: CellPulse, counts: ad.AnnData) -> None:
    before = counts.copy()
    made = cfm.tl.predict_virus(counts, model, groupby="virus", control="none", by=BY)
    assert_unchanged(counts, before)
    contrasts = cfm.pp.contrasts(counts, "virus", "none", by=BY)
    cfm.tl.predict_virus(contrasts, model)
    assert_same(made.X, contrasts.X)
    pd.testing.assert_frame_equal(made.obs, contrasts.obs)
    pd.testing.assert_frame_equal(made.obsm[f"{KEY}_proba"], contrasts.obsm[f"{KEY}_proba"])
    assert "contrasts" in made.uns
    params = made.uns[KEY]["params"]
    assert params["groupby"] == "virus"
    assert params["control"] == "none"
    assert params["by"] == BY
    assert params["mode"] == "replicates"


def test_from_counts_the_result_survives_a_file(
    model: CellPulse, counts: ad.AnnData, tmp_path: Path
) -> None:
    made = cfm.tl.predict_virus(counts, model, groupby="virus", control="none", by="study")
    made.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    assert list(back.uns[KEY]["params"]["by"]) == ["study"]
    made.write_zarr(tmp_path / "x.zarr")


def test_from_counts_further_arguments_reach_the_contrasts(
    model: CellPulse, counts: ad.AnnData
) -> None:
    log = counts.copy()
    log.layers["log"] = np.log2(counts.X + 1)
    log.X[:] = 1
    made = cfm.tl.predict_virus(
        log, model, groupby="virus", control="none", by=BY, layer="log", units="log"
    )
    assert made.n_obs == 48
    both = md.MuData({"rna": counts})
    made = cfm.tl.predict_virus(both, model, groupby="virus", control="none", by=BY, modality="rna")
    assert isinstance(made, ad.AnnData)
    assert made.n_obs == 48


def test_duplicated_observation_names_are_no_matter(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    contrasts.obs_names = ["same"] * contrasts.n_obs
    cfm.tl.predict_virus(contrasts, model)
    assert contrasts.obs[KEY].notna().all()


def test_one_contrast_silent_and_missing_ones(model: CellPulse, contrasts: ad.AnnData) -> None:
    few = contrasts[:3].copy()
    few.X[0] = 0.0
    few.X[1] = np.nan
    with pytest.warns(UserWarning, match="1 of 3 contrasts measure fewer than 50"):
        cfm.tl.predict_virus(few, model)
    one = few[:1].copy()
    cfm.tl.predict_virus(one, model, key_added="again")
    assert one.obs["again"].tolist() == few.obs[KEY].tolist()[:1]
    assert np.isfinite(few.obsm[f"{KEY}_proba"]).all(axis=None)


def test_a_view_is_written_to_without_its_parent(model: CellPulse, contrasts: ad.AnnData) -> None:
    view = contrasts[4:8]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ad.ImplicitModificationWarning)
        cfm.tl.predict_virus(view, model)
    assert KEY in view.obs
    assert_unchanged(contrasts, toy_contrasts())


def test_few_genes_warn(model: CellPulse, contrasts: ad.AnnData) -> None:
    few = contrasts[:, :100].copy()
    with pytest.warns(UserWarning, match="Only 12% of the model's 800 genes"):
        cfm.tl.predict_virus(few, model)
    assert few.uns[KEY]["params"]["vocabulary_share"] == 0.125


def untaught() -> CellPulse:
    return CellPulse(vocabulary=toy_contrasts().var_names, **SIZES)


def failing(contrasts: ad.AnnData) -> dict[str, tuple[ad.AnnData, dict, type, str]]:
    """Calls that fail, by what is wrong: data, arguments, error, words of its message."""
    infinite, counts, probes = contrasts.copy(), contrasts.copy(), contrasts.copy()
    infinite.X[-1, -1] = -np.inf
    counts.X[:] = np.arange(contrasts.n_vars) % 50 + 1
    probes.var_names = [f"probe{i}" for i in range(contrasts.n_vars)]
    whole = {"groupby": "virus", "control": "none"}
    return {
        "counts": (counts, {}, ValueError, "looks like expression or counts"),
        "contrasts as counts": (contrasts, whole | {"control": "virus_A"}, ValueError, "negative"),
        "log as counts": (log_values(counts), whole, ValueError, "log-transformed|control"),
        "infinite": (infinite, {}, ValueError, "infinite values"),
        "no gene": (probes, {}, ValueError, "Found 0 of the model's 800 genes"),
        "few genes": (contrasts[:, :30].copy(), {}, ValueError, "at least 50 are needed"),
        "half a design": (contrasts, {"groupby": "virus"}, ValueError, "give both"),
        "other half": (contrasts, {"control": "none"}, ValueError, "give both"),
        "by alone": (contrasts, {"by": "study"}, TypeError, "only go with groupby="),
        "mode alone": (contrasts, {"mode": "test"}, TypeError, "only go with groupby="),
        "pairs": (counts, whole | {"mode": "pairs"}, ValueError, "mode='pairs' makes no AnnData"),
        "no column": (counts, whole | {"groupby": "x"}, KeyError, "x"),
        "no level": (counts, whole | {"control": "mock"}, ValueError, "mock"),
        "no classifier": (contrasts, {"model": untaught()}, ValueError, "no virus classifier"),
        "model": (contrasts, {"model": object()}, TypeError, "model= is a object"),
        "alpha": (contrasts, {"alpha": 1.5}, ValueError, "alpha=1.5; expected a finite number"),
        "layer": (contrasts, {"layer": "lfc"}, KeyError, "no layer 'lfc'"),
        "key": (contrasts, {"key_added": "a/b"}, ValueError, "cannot be stored in a file"),
        "batch": (contrasts, {"batch_size": 0}, ValueError, "batch_size=0; expected"),
    }


def log_values(counts: ad.AnnData) -> ad.AnnData:
    counts = counts.copy()
    counts.obs["virus"] = ["none", *["virus_A"] * (counts.n_obs - 1)]
    counts.X = np.log1p(counts.X)
    return counts


@pytest.mark.parametrize("case", list(failing(toy_contrasts())))
def test_calls_that_fail_leave_the_data_alone(
    model: CellPulse, contrasts: ad.AnnData, case: str
) -> None:
    adata, arguments, error, words = failing(contrasts)[case]
    before = adata.copy()
    with pytest.raises(error, match=words):
        cfm.tl.predict_virus(adata, **({"model": model} | arguments))
    assert_unchanged(adata, before)


def test_a_modality_without_a_design_is_called_in_place(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    both = md.MuData({"rna": contrasts})
    assert cfm.tl.predict_virus(both, model) is None
    assert both["rna"].uns[KEY]["params"]["modality"] == "rna"
    assert both["rna"].obs[KEY].notna().all()
    with pytest.raises(TypeError, match="Found a NoneType; expected an AnnData"):
        cfm.tl.predict_virus(None, model)


def test_the_bundled_model_on_real_counts() -> None:
    """Influenza and SARS-CoV-2 of Blanco-Melo et al.: its own studies, so it should know them."""
    counts = cfm.datasets.blanco_melo()
    made = cfm.tl.predict_virus(counts, groupby="virus", control="none", by="series")
    params = made.uns[KEY]["params"]
    assert params["model"] == "cellpulse-virus"
    assert len(params["sha256"]) == 64
    assert params["vocabulary_share"] > 0.8
    assert made.obs[KEY].notna().all()
    np.testing.assert_allclose(made.obsm[f"{KEY}_proba"].sum(axis=1), 1.0)
    infected = made.obs[f"{KEY}_infected"]
    assert infected.mean() > 0.5


def _cells(n: int = 200) -> ad.AnnData:
    """Normalised and log-transformed cells, with the genes of the model."""
    genes = toy_model().vocabulary.genes
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.4, 1.0, len(genes))
    counts = rng.poisson(rate, (n, len(genes))).astype(np.float32)
    cells = ad.AnnData(counts, var=pd.DataFrame(index=genes))
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    return cells


@pytest.mark.parametrize("n", [12, 200])
def test_scaled_expression_is_refused(n: int) -> None:
    cells = _cells(n)
    sc.pp.scale(cells)
    before = cells.copy()
    with pytest.raises(ValueError, match=r"after scaling .* sample_key="):
        cfm.tl.predict_virus(cells, toy_model())
    assert_unchanged(cells, before)


def test_scaled_samples_are_refused() -> None:
    samples = ad.AnnData(
        np.random.default_rng(0).normal(size=(20, len(toy_model().vocabulary))).astype(np.float32),
        var=pd.DataFrame(index=toy_model().vocabulary.genes),
    )
    cfm.tl.predict_virus(samples.copy(), toy_model())
    sc.pp.scale(samples)
    with pytest.raises(ValueError, match="mean 0 and standard deviation 1"):
        cfm.tl.predict_virus(samples, toy_model())


def test_many_contrasts_of_the_same_controls_are_read() -> None:
    counts = cfm.datasets.toy_infection()
    pairs = cfm.pp.contrasts(counts, "virus", "none", by="study", mode="pairs")
    cfm.tl.predict_virus(pairs.to_adata(n=60), toy_model())
