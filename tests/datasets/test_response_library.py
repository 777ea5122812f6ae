from importlib.resources import files
from pathlib import Path

import anndata as ad
import numpy as np

from cfm.data import map_identifiers
from cfm.datasets import response_library
from training.build_response_library import NOT_MEASURED, SCALE, pack


def test_library():
    library = response_library()
    assert library.shape == (2599, 13403)
    assert library.X.dtype == np.float32
    assert library.obs_names.is_unique
    assert library.var_names.is_unique
    assert list(library.obs) == [
        "study", "organism", "tissue", "stimulus", "response", "time_h", "source", "licence"
    ]  # fmt: skip
    assert library.obs["time_h"].dtype == np.float64
    assert map_identifiers(library.var_names.tolist()).mapped.mean() > 0.95


def test_effects_are_relative_or_sets():
    library = response_library()
    sets = (library.obs["source"] == "ImmuneSigDB").to_numpy()
    assert set(np.unique(library.X[sets])) == {-1, 0, 1}
    size = np.sort(np.abs(np.nan_to_num(library.X[~sets])), axis=1)
    measured = np.isfinite(library.X[~sets]).sum(axis=1) > 5000
    assert np.allclose(size[measured, -1000], 1, atol=0.06)
    assert np.nanmax(np.abs(library.X)) < 45


def test_known_biology_is_in_it():
    library = response_library()
    interferon = library[(library.obs["stimulus"] == "IFN-beta").to_numpy()]
    for gene in ("MX1", "ISG15", "IFIT1"):
        assert np.nanmin(interferon[:, gene].X) > 0.5
    turned = library.obs_names.str.endswith(" (turned)")
    assert 100 < turned.sum() < 300
    bacteria = library[turned & (library.obs["response"] == "bacterial").to_numpy()]
    assert np.nanmean(bacteria[:, ["TNFAIP3", "IL1B", "CXCL2"]].X) > 0.05


def test_each_experiment_is_there_once():
    obs = response_library().obs
    kinds = obs[obs["source"] != "ImmuneSigDB"].groupby("study", observed=True)["source"].nunique()
    assert (kinds == 1).all()


def test_size_and_licences():
    path = files("cfm.datasets") / "files" / "response_library.h5ad"
    assert len(path.read_bytes()) < 6_000_000
    obs = response_library().obs
    assert not obs["licence"].astype(str).str.contains("not stated|none|nan").any()
    notice = (Path(__file__).parents[2] / "NOTICE").read_text()
    assert "response_library.h5ad" in notice
    published = obs["source"].isin(["published fold changes", "CytoSig"])
    for study in obs["study"][published].astype(str).unique():
        assert study in notice


def test_packing_keeps_effects_nan_and_sets():
    x = np.array([[0.5, -2, np.nan, 0, 30], [1, -1, 0, 0, 1]], dtype=np.float32)
    packed = pack(ad.AnnData(x)).X.toarray().astype(np.float32)
    packed[packed == NOT_MEASURED] = np.nan
    back = packed / (SCALE - np.abs(packed))
    assert np.allclose(back[0], x[0], rtol=0.15, equal_nan=True)
    assert np.array_equal(back[1], x[1])
