"""``cfm.tl.predict_virus``: what it writes, from contrasts and from counts."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import cfm
from cfm.models import CellPulse
from tests._same import assert_same, assert_unchanged
from tests._toy import SIZES, toy_checkpoint, toy_contrasts, toy_model

KEY = "predicted_virus"
TABLES = [f"{KEY}_proba", f"{KEY}_response_proba"]
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
    for name, answers in ((KEY, expected.call), (f"{KEY}_response", expected.response)):
        assert isinstance(obs[name].dtype, pd.CategoricalDtype)
        assert obs[name].tolist() == answers.tolist()
        assert set(obs[name].cat.categories) == set(obs[name])
    for name in ("infected", "support"):
        column = obs[f"{KEY}_{name}"]
        assert column.dtype == np.float32
        np.testing.assert_array_equal(column, getattr(expected, name))
    pd.testing.assert_frame_equal(called.obsm[f"{KEY}_proba"], expected.virus_proba)
    pd.testing.assert_frame_equal(called.obsm[f"{KEY}_response_proba"], expected.response_proba)
    assert called.uns[KEY]["classes"] == VIRUSES
    assert called.uns[KEY]["responses"] == ["none", "viral"]
    assert called.uns[KEY]["support"].to_dict("records") == model.classifier.support
    expected = {"names": "supported", "n_matches": 5, "model": "CellPulse"}
    assert called.uns[KEY]["params"].items() >= (expected | {"vocabulary_share": 1.0}).items()


def library_contrasts(n: int = 4) -> ad.AnnData:
    """Some contrasts of the library, as a user's own."""
    library = cfm.datasets.response_library()
    kang = library[library.obs["study"] == "Kang2018"][:n].to_memory()
    kang.X = np.nan_to_num(kang.X)
    kang.obs = kang.obs[["study"]].copy()
    kang.obs_names = [f"mine {i}" for i in range(n)]
    return kang


def test_matches_are_those_of_the_search() -> None:
    adata = library_contrasts()
    expected = cfm.tl.search_signatures(
        adata, cfm.datasets.response_library(), n=2, study_key="study", copy=True
    ).uns["signature_search"]["results"]
    cfm.tl.predict_virus(adata, n_matches=2)
    found = adata.uns[KEY]["matches"]
    assert found["query"].tolist() == np.repeat(adata.obs_names, 2).tolist()
    assert "Kang2018" not in set(found["study"])
    for name in ("match", "rank", "study", "stimulus", "response", "tissue"):
        assert found[name].astype(str).tolist() == expected[name].astype(str).tolist()
    for name in ("similarity", "p_value", "fdr"):
        np.testing.assert_allclose(found[name], expected[name])


def test_matches_are_as_many_as_were_asked_for_and_include_own_studies_without_names() -> None:
    adata = library_contrasts(2)
    del adata.obs["study"]
    cfm.tl.predict_virus(adata, n_matches=1)
    found = adata.uns[KEY]["matches"]
    assert found["study"].astype(str).tolist() == ["Kang2018"] * 2
    assert (found["similarity"] > 0.99).all()
    cfm.tl.predict_virus(adata, n_matches=0)
    assert len(adata.uns[KEY]["matches"]) == 0


def test_data_without_genes_of_the_library_have_no_matches() -> None:
    known = CellPulse.load("cellpulse-virus").vocabulary.genes
    genes = known.difference(cfm.datasets.response_library().var_names)[:60]
    effects = np.random.default_rng(0).normal(size=(2, 60)).astype(np.float32)
    adata = ad.AnnData(effects, var=pd.DataFrame(index=genes))
    with pytest.warns(UserWarning, match="of the model's"):
        cfm.tl.predict_virus(adata)
    assert len(adata.uns[KEY]["matches"]) == 0
    assert adata.obs[KEY].notna().all()


def test_names_are_given_as_asked(contrasts: ad.AnnData) -> None:
    model = CellPulse.load(toy_checkpoint())
    for record in model.classifier.support:
        record["share"] = 0.5
    cfm.tl.predict_virus(contrasts, model, n_matches=0)
    assert not set(contrasts.obs[KEY]) & set(VIRUSES)
    assert "unresolved" in set(contrasts.obs[KEY])
    cfm.tl.predict_virus(contrasts, model, names="always", n_matches=0)
    assert set(contrasts.obs[KEY]) >= set(VIRUSES)
    assert contrasts.uns[KEY]["params"]["names"] == "always"
    np.testing.assert_allclose(contrasts.obs[f"{KEY}_support"], 0.5)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_names_with_a_slash_survive_a_file(tmp_path: Path, suffix: str) -> None:
    model = CellPulse.load(toy_checkpoint())
    model.classifier.classes = ["HSV-1/2", *VIRUSES[1:]]
    model.classifier.responses = ["either/or"]
    model.classifier.support = [
        {"level": "response", "answer": "either/or", "n_contrasts": 9, "n_studies": 9, "share": 1.0}
    ]
    adata = toy_contrasts()
    cfm.tl.predict_virus(adata, model, n_matches=0)
    getattr(adata, f"write_{suffix}")(tmp_path / "x")
    back = getattr(ad, f"read_{suffix}")(tmp_path / "x")
    assert "either/or" in set(back.obs[f"{KEY}_response"])
    assert back.obsm[f"{KEY}_response_proba"].columns.tolist() == ["none", "either|or"]
    assert back.obsm[f"{KEY}_proba"].columns[0] == "HSV-1|2"
    assert list(back.uns[KEY]["responses"]) == ["none", "either/or"]


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
    made = cfm.tl.predict_virus(
        counts, model, groupby="virus", control="none", by="study", n_matches=0
    )
    made.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    assert list(back.uns[KEY]["params"]["by"]) == ["study"]
    made.write_zarr(tmp_path / "x.zarr")


def test_duplicated_observation_names_are_no_matter(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    contrasts.obs_names = ["same"] * contrasts.n_obs
    cfm.tl.predict_virus(contrasts, model, n_matches=0)
    assert contrasts.obs[KEY].notna().all()


def test_one_contrast_silent_and_missing_ones(model: CellPulse, contrasts: ad.AnnData) -> None:
    few = contrasts[:3].copy()
    few.X[0] = 0.0
    few.X[1] = np.nan
    with pytest.warns(UserWarning, match="1 of 3 contrasts measure fewer than 50"):
        cfm.tl.predict_virus(few, model, n_matches=0)
    one = few[:1].copy()
    cfm.tl.predict_virus(one, model, key_added="again", n_matches=0)
    assert one.obs["again"].tolist() == few.obs[KEY].tolist()[:1]
    for name in TABLES:
        assert np.isfinite(few.obsm[name]).all(axis=None)


def test_a_view_is_written_to_without_its_parent(model: CellPulse, contrasts: ad.AnnData) -> None:
    view = contrasts[4:8]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ad.ImplicitModificationWarning)
        cfm.tl.predict_virus(view, model, n_matches=0)
    assert KEY in view.obs
    assert_unchanged(contrasts, toy_contrasts())


def untaught() -> CellPulse:
    return CellPulse(vocabulary=toy_contrasts().var_names, **SIZES)


def failing(contrasts: ad.AnnData) -> dict[str, tuple[ad.AnnData, dict, type, str]]:
    """Calls that fail, by what is wrong: data, arguments, error, words of its message."""
    counts = contrasts.copy()
    counts.X[:] = np.arange(contrasts.n_vars) % 50 + 1
    whole = {"groupby": "virus", "control": "none"}
    return {
        "counts": (counts, {}, ValueError, "looks like expression or counts"),
        "contrasts as counts": (contrasts, whole | {"control": "virus_A"}, ValueError, "negative"),
        "few genes": (contrasts[:, :30].copy(), {}, ValueError, "at least 50 are needed"),
        "half a design": (contrasts, {"groupby": "virus"}, ValueError, "give both"),
        "other half": (contrasts, {"control": "none"}, ValueError, "give both"),
        "by alone": (contrasts, {"by": "study"}, TypeError, "only go with groupby="),
        "mode alone": (contrasts, {"mode": "test"}, TypeError, "only go with groupby="),
        "pairs": (counts, whole | {"mode": "pairs"}, ValueError, "mode='pairs' makes no AnnData"),
        "no classifier": (contrasts, {"model": untaught()}, ValueError, "no virus classifier"),
    }


@pytest.mark.parametrize("case", list(failing(toy_contrasts())))
def test_calls_that_fail_leave_the_data_alone(
    model: CellPulse, contrasts: ad.AnnData, case: str
) -> None:
    adata, arguments, error, words = failing(contrasts)[case]
    before = adata.copy()
    with pytest.raises(error, match=words):
        cfm.tl.predict_virus(adata, **({"model": model} | arguments))
    assert_unchanged(adata, before)


def test_the_bundled_model_on_real_counts_of_a_study_that_it_has_not_seen() -> None:
    """Influenza, RSV and SARS-CoV-2 of Blanco-Melo et al., the study of the demo."""
    model = CellPulse.load("cellpulse-virus")
    assert "GSE147507" not in model.provenance["classifier_studies"]
    assert "GSE147507" not in set(cfm.datasets.response_library().obs["study"])
    counts = cfm.datasets.blanco_melo()
    made = cfm.tl.predict_virus(counts, groupby="virus", control="none", by="series")
    params = made.uns[KEY]["params"]
    assert params["model"] == "cellpulse-virus"
    assert len(params["sha256"]) == 64
    assert params["vocabulary_share"] > 0.8
    np.testing.assert_allclose(made.obsm[f"{KEY}_response_proba"].sum(axis=1), 1.0)
    interferon = made.obs_names[made.obs["virus"].isin(["SARS-CoV-2", "RSV"])][1:]
    assert (made.obs.loc[interferon, f"{KEY}_response"] != "none").all()
    matches = made.uns[KEY]["matches"]
    first = matches[matches["rank"] == 1].set_index("query")
    # SARS-CoV-2 in A549 with interferon, and RSV, are most like interferon in other cells
    assert (first.loc[interferon, "response"] == "interferon I/III").all()
    assert (first.loc[interferon, "fdr"] < 0.01).all()


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
    cfm.tl.predict_virus(samples.copy(), toy_model(), n_matches=0)
    sc.pp.scale(samples)
    with pytest.raises(ValueError, match="mean 0 and standard deviation 1"):
        cfm.tl.predict_virus(samples, toy_model())


def test_many_contrasts_of_the_same_controls_are_read() -> None:
    counts = cfm.datasets.toy_infection()
    pairs = cfm.pp.contrasts(counts, "virus", "none", by="study", mode="pairs")
    cfm.tl.predict_virus(pairs.to_adata(n=60), toy_model(), n_matches=0)
