from importlib.resources import files

import numpy as np

from cfm.datasets import blanco_melo

ISGS = ["IFI27", "IFI44L", "ISG15", "MX1", "IFIT1", "RSAD2"]


def test_table():
    adata = blanco_melo()
    assert adata.shape == (20, 17607)
    assert adata.X.dtype == np.float32
    assert adata.X.format == "csr"
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert (np.asarray(adata.X.sum(axis=0)) >= 10).all()
    assert adata.var_names.is_unique
    assert {"study", "series", "virus", "sample", "tissue", "time_h"} <= set(adata.obs)
    assert adata.obs["virus"].value_counts().to_dict() == {
        "none": 10,
        "SARS-CoV-2": 6,
        "RSV": 2,
        "IAV": 2,
    }
    strata = adata.obs.groupby("series", observed=True)["virus"]
    assert strata.apply(lambda virus: "none" in set(virus)).all()
    assert adata.obs["time_h"].tolist() == [24.0] * 16 + [9.0] * 4


def test_source_is_stated():
    uns = blanco_melo().uns
    assert "Blanco-Melo" in uns["citation"]
    assert "GSE147507" in uns["source"]
    assert "no licence" in uns["licence"]
    assert uns["units"] == "counts"


def test_interferon_response_is_in_the_data():
    adata = blanco_melo()
    counts = adata.X.toarray()
    log = np.log2((counts + 1) / counts.sum(axis=1, keepdims=True) * 1e6)
    isgs = adata.var_names.get_indexer(ISGS)
    change = {}
    for series in adata.obs["series"].cat.categories:
        inside = (adata.obs["series"] == series).to_numpy()
        mock = (adata.obs["virus"] == "none").to_numpy()
        difference = log[inside & ~mock].mean(axis=0) - log[inside & mock].mean(axis=0)
        change[series] = difference[isgs].mean()
    assert change["Series1"] > 1
    assert change["Series2"] > 2
    assert change["Series3"] > 3.5
    assert change["Series4"] < 0  # nine hours after influenza; stated in the docstring


def test_size_of_what_ships():
    folder = files("cfm.datasets") / "files"
    sizes = {path.name: len(path.read_bytes()) for path in folder.iterdir()}
    assert sizes["blanco_melo.h5ad"] < 1.2e6
    assert sizes.pop("response_library.h5ad") < 6e6
    assert max(sizes.values()) < 1.2e6
    assert sum(sizes.values()) < 2e6


def test_copies_are_independent():
    blanco_melo().X.data[:] = 0
    assert blanco_melo().X.sum() > 0
