"""Tables and studies that ship: shapes, known biology, sizes, licences."""

from importlib.resources import files
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm import datasets
from cfm.data import map_identifiers
from cfm.datasets import (
    blanco_melo,
    cmap_signatures,
    drug_targets,
    hallmark,
    ligand_receptor,
    response_library,
)
from training.build_response_library import NOT_MEASURED, SCALE, pack

ISGS = ["IFI27", "IFI44L", "ISG15", "MX1", "IFIT1", "RSAD2"]
FOLDER = files("cfm.datasets") / "files"
NOTICE = (Path(__file__).parents[2] / "NOTICE").read_text()


@pytest.mark.parametrize(
    ("name", "file", "most", "licence"),
    [
        ("cmap_signatures", "cmap_signatures.tsv.gz", 600_000, "LGPL-3"),
        ("drug_targets", "drug_targets.tsv.gz", 200_000, "CC BY-SA 4.0"),
        ("hallmark", "hallmark.gmt.gz", 50_000, "CC BY"),
        ("ligand_receptor", "ligand_receptor.csv.gz", 100_000, "GPL-3"),
        ("response_library", "response_library.h5ad", 6_000_000, "GPL-3"),
        ("blanco_melo", "blanco_melo.h5ad", 1_200_000, "no licence"),
    ],
)
def test_sizes_licences_and_copies(name, file, most, licence):
    load = getattr(datasets, name)
    assert len((FOLDER / file).read_bytes()) < most
    assert licence in load.__doc__
    assert file in NOTICE
    first, second = load(), load()
    if isinstance(first, dict):
        first["HALLMARK_APOPTOSIS"].clear()
        assert second == load()
    elif isinstance(first, pd.DataFrame):
        first.iloc[:, 0] = first.iloc[::-1, 0].to_numpy()
        pd.testing.assert_frame_equal(second, load())
    else:
        first.obs.iloc[:, 0] = first.obs.iloc[::-1, 0].to_numpy()
        pd.testing.assert_frame_equal(second.obs, load().obs)


def test_all_that_ships_is_small():
    sizes = {path.name: len(path.read_bytes()) for path in FOLDER.iterdir()}
    assert sum(sizes.values()) - sizes["response_library.h5ad"] < 2e6


def test_names_are_symbols():
    for names, least in (
        (pd.unique(cmap_signatures()["gene"]).tolist(), 0.9),
        (sorted({g for genes in hallmark().values() for g in genes}), 0.99),
        (response_library().var_names.tolist(), 0.95),
    ):
        assert map_identifiers(names).mapped.mean() > least


def test_blanco_melo():
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


def test_blanco_melo_states_its_source():
    uns = blanco_melo().uns
    assert "Blanco-Melo" in uns["citation"]
    assert "GSE147507" in uns["source"]
    assert "no licence" in uns["licence"]
    assert uns["units"] == "counts"


def test_blanco_melo_shows_the_interferon_response():
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


def test_cmap_signatures():
    table = cmap_signatures()
    assert list(table) == ["compound", "gene", "direction"]
    assert table["compound"].nunique() == 1309
    assert set(table["direction"]) == {1, -1}
    assert table["direction"].dtype == "int64"
    assert not table.isna().any(axis=None)
    assert not table.duplicated(["compound", "gene"]).any()
    sizes = table.groupby(["compound", "direction"]).size()
    assert len(sizes) == 2 * 1309
    assert sizes.max() == 50
    assert sizes.min() >= 40


def test_cmap_signatures_show_known_biology():
    table = cmap_signatures()
    raised = table[table["direction"] == 1].groupby("compound")["gene"].agg(set)
    # Inhibitors of HSP90 raise heat-shock proteins, glucocorticoids FKBP5 or TSC22D3.
    for compound in ("geldanamycin", "tanespimycin"):
        assert {"HSPA1A", "HSPA1B", "HSPA6", "DNAJB1", "HSPA4L"} & raised[compound]
    steroids = ("dexamethasone", "betamethasone", "fluocinonide", "prednisolone")
    assert sum(bool({"FKBP5", "TSC22D3"} & raised[s]) for s in steroids) >= 2


def test_drug_targets():
    table = drug_targets()
    assert list(table) == ["compound", "gene", "moa", "action"]
    assert table["moa"].dtype == bool
    assert not table.isna().any(axis=None)
    assert not table.duplicated(["compound", "gene"]).any()
    assert (table[["compound", "gene"]] != "").all(axis=None)
    assert table["moa"].is_monotonic_decreasing  # mechanism of action first
    assert 2_000 < table["compound"].nunique() < 3_000


def test_drug_targets_by_mechanism():
    table = drug_targets(moa_only=True)
    assert table["moa"].all()
    assert table.index.tolist() == list(range(len(table)))
    genes = table.groupby("compound")["gene"].agg(set)
    assert "NR3C1" in genes["dexamethasone"]
    assert "ABL1" in genes["imatinib"]
    assert "HMGCR" in genes["simvastatin"]
    action = table.set_index(["compound", "gene"])["action"]
    assert action["dexamethasone", "NR3C1"] == "agonist"
    assert len(genes) < drug_targets()["compound"].nunique()


def test_drugs_of_both_tables_meet():
    drugs = set(drug_targets()["compound"].str.casefold())
    compounds = set(cmap_signatures()["compound"].str.casefold())
    assert len(drugs & compounds) > 500


def test_hallmark():
    sets = hallmark()
    assert len(sets) == 50
    assert all(name.startswith("HALLMARK_") for name in sets)
    assert all(len(genes) == len(set(genes)) for genes in sets.values())
    assert all(30 <= len(genes) <= 200 for genes in sets.values())
    assert {"ISG15", "IFIT3", "RSAD2"} <= set(sets["HALLMARK_INTERFERON_ALPHA_RESPONSE"])


def test_ligand_receptor():
    table = ligand_receptor()
    assert list(table) == ["ligand", "receptor"]
    assert not table.isna().any(axis=None)
    assert not table.duplicated().any()
    assert (table != "").all(axis=None)
    assert table.equals(table.sort_values(["ligand", "receptor"], ignore_index=True))
    assert 4_000 < len(table) < 6_000


def test_ligand_receptor_pairs_and_complexes():
    table = ligand_receptor()
    pairs = set(table.itertuples(index=False, name=None))
    assert ("CXCL10", "CXCR3") in pairs
    assert ("IL2", "IL2RA_IL2RB_IL2RG") in pairs
    assert table["receptor"].str.contains("_").sum() > 500
    genes = sorted({gene for name in table.to_numpy().ravel() for gene in name.split("_")})
    assert set(map_identifiers(genes).source) == {"symbol"}  # all current


def test_response_library():
    library = response_library()
    assert library.shape == (2599, 13403)
    assert library.X.dtype == np.float32
    assert library.obs_names.is_unique
    assert library.var_names.is_unique
    assert list(library.obs) == [
        "study", "organism", "tissue", "stimulus", "response", "time_h", "source", "licence"
    ]  # fmt: skip
    assert library.obs["time_h"].dtype == np.float64


def test_response_library_holds_relative_effects_or_sets():
    library = response_library()
    sets = (library.obs["source"] == "ImmuneSigDB").to_numpy()
    assert set(np.unique(library.X[sets])) == {-1, 0, 1}
    size = np.sort(np.abs(np.nan_to_num(library.X[~sets])), axis=1)
    measured = np.isfinite(library.X[~sets]).sum(axis=1) > 5000
    assert np.allclose(size[measured, -1000], 1, atol=0.06)
    assert np.nanmax(np.abs(library.X)) < 45


def test_response_library_shows_known_biology():
    library = response_library()
    interferon = library[(library.obs["stimulus"] == "IFN-beta").to_numpy()]
    for gene in ("MX1", "ISG15", "IFIT1"):
        assert np.nanmin(interferon[:, gene].X) > 0.5
    turned = library.obs_names.str.endswith(" (turned)")
    assert 100 < turned.sum() < 300
    bacteria = library[turned & (library.obs["response"] == "bacterial").to_numpy()]
    assert np.nanmean(bacteria[:, ["TNFAIP3", "IL1B", "CXCL2"]].X) > 0.05


def test_response_library_has_each_experiment_once():
    obs = response_library().obs
    kinds = obs[obs["source"] != "ImmuneSigDB"].groupby("study", observed=True)["source"].nunique()
    assert (kinds == 1).all()


def test_packing_keeps_effects_nan_and_sets():
    x = np.array([[0.5, -2, np.nan, 0, 30], [1, -1, 0, 0, 1]], dtype=np.float32)
    packed = pack(ad.AnnData(x)).X.toarray().astype(np.float32)
    packed[packed == NOT_MEASURED] = np.nan
    back = packed / (SCALE - np.abs(packed))
    assert np.allclose(back[0], x[0], rtol=0.15, equal_nan=True)
    assert np.array_equal(back[1], x[1])


def test_response_library_states_its_sources():
    obs = response_library().obs
    assert not obs["licence"].astype(str).str.contains("not stated|none|nan").any()
    published = obs["source"].isin(["published fold changes", "CytoSig"])
    for study in obs["study"][published].astype(str).unique():
        assert study in NOTICE
