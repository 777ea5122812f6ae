"""``cfm.tl.cell_codes`` beside a reference: known codes, labels taken over, one model."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import cfm
from tests._codes import NearestCode, typed_cells
from tests._same import assert_unchanged


@pytest.fixture
def model() -> NearestCode:
    return NearestCode()


@pytest.fixture
def reference(model: NearestCode) -> ad.AnnData:
    cells = typed_cells(60, types=("B", "NK", "T"))
    cfm.tl.cell_codes(cells, model, groupby=["cell_type", "donor"])
    return cells


def test_labels_of_known_codes_are_taken_over(reference: ad.AnnData, model: NearestCode) -> None:
    query, before = typed_cells(30, seed=3), reference.copy()
    cfm.tl.cell_codes(query, model, groupby="cell_type", reference=reference)
    assert_unchanged(reference, before)
    table = query.uns["cell_code"]["reference"]
    theirs, ours = (x.uns["cell_code"]["codes"] for x in (reference, query))
    assert table.index.tolist() == ours.index.tolist()
    assert table["known"].tolist() == ours.index.isin(theirs.index).tolist()
    assert table["n_cells"].tolist() == ours["n_cells"].tolist()
    for code, row in table.iterrows():
        if row["known"]:
            assert row["n_cells_reference"] == theirs.loc[code, "n_cells"]
            assert row["cell_type_majority"] == theirs.loc[code, "cell_type_majority"]
            assert (row["nearest"], row["nearest_similarity"]) == (code, 1.0)
        else:
            assert (row["n_cells_reference"], row["share_reference"]) == (0, 0.0)
            assert row["cell_type_majority"] == ""
            assert row["nearest"] in theirs.index
            assert row["nearest_similarity"] < 1.0
    called = query.obs["cell_code_cell_type"]
    truth = query.obs["cell_type"].astype(str)
    known = query.obs["cell_code"].isin(theirs.index)
    assert called.isna().tolist() == (~known).tolist()
    planted = known & (truth != "mono")
    assert planted[truth != "mono"].mean() > 0.8
    assert (called[planted].astype(str) == truth[planted]).mean() > 0.95
    assert query.obs["cell_code_cell_type_purity"].isna().tolist() == (~known).tolist()
    assert query.obs.loc[known, "cell_code_cell_type_purity"].median() > 0.9
    assert {"cell_code_donor", "cell_code_donor_purity"} <= set(query.obs)
    # monocytes are not in the reference, and are not called anything else
    assert known[truth == "mono"].mean() < 0.2


def test_nearest_is_by_the_vectors(reference: ad.AnnData, model: NearestCode) -> None:
    query = typed_cells(30, seed=3)
    cfm.tl.cell_codes(query, model, reference=reference)
    table = query.uns["cell_code"]["reference"]
    unknown = table.index[~table["known"]]
    assert len(unknown)
    book = model.get_codebook().vectors
    theirs = reference.uns["cell_code"]["codes"].index.astype(int)
    for code in unknown:
        cosine = book[theirs] @ book[int(code)]
        assert int(table.loc[code, "nearest"]) == theirs[cosine.argmax()]
        np.testing.assert_allclose(table.loc[code, "nearest_similarity"], cosine.max(), rtol=1e-5)


def test_tables_alone_are_enough(reference: ad.AnnData, model: NearestCode) -> None:
    by_cells, by_tables = typed_cells(10, seed=3), typed_cells(10, seed=3)
    cfm.tl.cell_codes(by_cells, model, reference=reference)
    cfm.tl.cell_codes(by_tables, model, reference=reference.uns["cell_code"], key_added="code")
    assert by_tables.obs["code_donor"].tolist() == by_cells.obs["cell_code_donor"].tolist()


def test_a_reference_of_another_model_is_refused(reference: ad.AnnData) -> None:
    query = typed_cells(10, seed=3)
    before = query.copy()
    with pytest.raises(ValueError, match=r"come from another model \('NearestCode', SHA-256"):
        cfm.tl.cell_codes(query, NearestCode(seed=1), reference=reference)
    assert_unchanged(query, before)


def test_a_reference_without_annotations_and_cells_without_codes(model: NearestCode) -> None:
    reference = typed_cells(60)
    cfm.tl.cell_codes(reference, model)
    query = typed_cells(10, seed=3)
    x = query.X.toarray()
    x[5] = 0
    query.X = x
    columns = set(query.obs) | {"cell_code", "cell_code_similarity", "cell_code_margin"}
    cfm.tl.cell_codes(query, model, reference=reference)
    assert set(query.obs) == columns
    assert query.uns["cell_code"]["reference"]["known"].any()
    cfm.tl.cell_codes(reference, model, groupby="cell_type")
    cfm.tl.cell_codes(query, model, reference=reference)
    unread = query.obs_names[5]
    assert query.obs["cell_code_cell_type"].isna()[unread]
    assert np.isnan(query.obs.loc[unread, "cell_code_cell_type_purity"])


def test_few_known_codes_are_warned_of(model: NearestCode) -> None:
    reference, query = typed_cells(60, types=("B",)), typed_cells(20, types=("mono", "T"))
    cfm.tl.cell_codes(reference, model, groupby="donor")
    with pytest.warns(UserWarning, match="of the cells have a code that the reference has"):
        cfm.tl.cell_codes(query, model, reference=reference)
    assert query.obs["cell_code_donor"].isna().mean() > 0.5


def test_a_later_run_leaves_no_stale_labels(reference: ad.AnnData, model: NearestCode) -> None:
    query = typed_cells(10, seed=3)
    cfm.tl.cell_codes(query, model, reference=reference)
    assert "cell_code_donor" in query.obs
    cfm.tl.cell_codes(query, model)
    assert set(query.obs) == {
        "cell_type", "donor", "cell_code", "cell_code_similarity", "cell_code_margin",
    }  # fmt: skip
    assert "reference" not in query.uns["cell_code"]


def test_an_annotation_with_the_name_of_another_result(model: NearestCode) -> None:
    reference = typed_cells(20)
    reference.obs["similarity"] = reference.obs["donor"]
    cfm.tl.cell_codes(reference, model, groupby="similarity")
    query = typed_cells(10, seed=3)
    before = query.copy()
    with pytest.raises(ValueError, match=r"would be written to obs\['cell_code_similarity'\]"):
        cfm.tl.cell_codes(query, model, reference=reference)
    assert_unchanged(query, before)
