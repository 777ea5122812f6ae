"""``cfm.get`` returns what the tools stored, also out of a file, and says what to run."""

from __future__ import annotations

from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from tests.pl._plots import DATA
from tests.pl._stored import make_predicted
from tests.tl.test_probe import cohort

pytestmark = pytest.mark.filterwarnings("ignore:The library has:UserWarning")

#: By getter: whose made-up data, the tool, the stored table, and the column of ``group``.
TABLES: dict[str, tuple[str, str, str, str]] = {
    "signature_search": ("signature_search", "search_signatures", "results", "query"),
    "host_factors": ("host_factors", "host_factors", "results", "group"),
    "gene_programs": ("gene_programs", "gene_programs", "programs", "program"),
    "drug_screen": ("drug_screen", "screen_drugs", "results", "group"),
    "cell_codes": ("cell_codes", "cell_codes", "markers", "code"),
    "cell_importance": ("cell_importance", "cell_importance", "groups", "group"),
}
KEYS = {"cell_codes": "cell_code"}
ARGUMENTS = {"cell_codes": {"table": "markers"}}
QUICK = {"n_folds": 3, "heads": "logistic", "groups": "patient", "use_rep": "X_emb"}


def getter(name: str):
    return partial(getattr(cfm.get, name), **ARGUMENTS.get(name, {}))


@pytest.mark.parametrize("name", TABLES)
def test_table_is_the_stored_one(name: str, tmp_path) -> None:
    plot, _, table, by = TABLES[name]
    adata = DATA[plot]()[0]
    key = KEYS.get(name, name)
    stored = adata.uns[key][table]
    found = getter(name)(adata)
    assert len(found) == len(stored) > 0
    for column in stored:
        if pd.api.types.is_numeric_dtype(stored[column]):
            np.testing.assert_array_equal(found[column], stored[column])
        else:
            assert found[column].tolist() == stored[column].astype(str).tolist()
    wanted = str(found[by].iloc[-1])
    part = getter(name)(adata, group=wanted)
    assert set(part[by]) == {wanted}
    assert len(part) == (found[by] == wanted).sum()
    found.iloc[:, 0] = "changed"
    assert not getter(name)(adata).equals(found)
    small = ad.AnnData(np.zeros((1, 1)), uns={key: {table: stored}})
    small.write_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(
        getter(name)(ad.read_h5ad(tmp_path / "a.h5ad")), getter(name)(adata), check_dtype=False
    )


@pytest.mark.parametrize("name", TABLES)
def test_what_is_missing_is_named(name: str) -> None:
    plot, tool, table, _ = TABLES[name]
    adata = DATA[plot]()[0]
    key = KEYS.get(name, name)
    with pytest.raises(KeyError, match=r"group 'nothing' is not in .*; expected one of"):
        getter(name)(adata, group="nothing")
    with pytest.raises(KeyError, match=rf"uns\['x'\]\['{table}'\] not found; run cfm\.tl\.{tool}"):
        getter(name)(adata, key="x")
    adata.uns["mine"] = adata.uns.pop(key)
    adata.uns.pop("other", None)
    with pytest.raises(KeyError, match="Found such tables with key='mine'"):
        getter(name)(adata)
    with pytest.raises(TypeError, match="expected an AnnData"):
        getter(name)({})


def test_calls_of_viruses_are_one_row_per_contrast() -> None:
    adata = make_predicted(12)
    adata.obs["n_cases"] = np.arange(12)
    calls = cfm.get.virus_calls(adata)
    assert calls["contrast"].tolist() == adata.obs_names.tolist()
    assert calls["call"].tolist() == adata.obs["predicted_virus"].astype(str).tolist()
    assert calls["cases"].tolist() == list(range(12))
    kinds = cfm.get.virus_probabilities(adata, level="response")
    assert "interferon I/III" in kinds
    most = [kinds.loc[row.contrast, row.most_probable] for row in calls.itertuples()]
    assert calls["probability"].tolist() == most
    share = adata.uns["predicted_virus"]["support"].set_index("answer")["share"]
    assert calls["support"].tolist() == share[calls["most_probable"]].tolist()
    assert calls["call_support"].isna().equals(calls["call"] == "unresolved")
    with pytest.raises(KeyError, match=r"obs\['x'\].*run cfm\.tl\.predict_virus"):
        cfm.get.virus_calls(adata, key="x")


def test_predictions_stand_beside_the_truth() -> None:
    adata = cohort()
    adata.obs.loc[adata.obs_names[:3], "disease"] = None
    with pytest.warns(UserWarning, match="left out"):
        cfm.tl.probe(adata, "disease", **QUICK)
    table = cfm.get.probe_predictions(adata)
    assert table.groupby("representation").size().to_dict() == {"X_emb": 87, "expression PCA": 87}
    first = table[table["representation"] == "X_emb"].set_index("observation")
    same = adata[first.index].copy()
    assert first["true"].tolist() == same.obs["disease"].tolist()
    assert first["predicted"].tolist() == same.obs["probe"].astype(str).tolist()
    assert first["group"].tolist() == same.obs["patient"].tolist()
    for name in ("case", "healthy"):
        np.testing.assert_array_equal(first[f"probability_{name}"], same.obsm["probe_proba"][name])
    classes = ["probability_case", "probability_healthy"]
    calls = table[classes].idxmax(axis=1).str.removeprefix("probability_")
    assert (calls == table["predicted"]).all()


@pytest.mark.parametrize("in_obsm", [False, True])
def test_targets_are_read_where_the_probe_read_them(in_obsm: bool) -> None:
    adata = cohort()
    target: str | list[str] = ["dose", "other"]
    if in_obsm:
        adata.obsm["both"] = adata.obs[target].to_numpy()
        target = "both"
    cfm.tl.probe(adata, target, "regression", **QUICK | {"heads": "ridge"})
    table = cfm.get.probe_predictions(adata)
    names = ["both_0", "both_1"] if in_obsm else ["dose", "other"]
    for name, column in zip(names, ("dose", "other"), strict=True):
        part = table[table["target"] == name]
        np.testing.assert_allclose(part["true"], adata.obs[column])
        np.testing.assert_array_equal(part["predicted"], adata.obsm["probe_predictions"][name])
    if in_obsm:
        del adata.obsm["both"]
        with pytest.raises(KeyError, match=r"obsm\['both'\], the target of the probe"):
            cfm.get.probe_predictions(adata)
