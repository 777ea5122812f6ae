"""Groups of codes: of planted types, in files, and where they are refused."""

from __future__ import annotations

import anndata as ad
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

import cfm
from tests._codes import NearestCode, typed_cells
from tests._same import assert_unchanged


def test_codes_of_planted_types_become_a_group_each() -> None:
    cells = typed_cells()
    cfm.tl.cell_codes(cells, NearestCode(), groupby="cell_type", n_groups=4)
    group, codes = cells.obs["cell_code_group"], cells.uns["cell_code"]["codes"]
    truth = cells.obs["cell_type"].astype(str)
    before = adjusted_rand_score(truth, cells.obs["cell_code"].astype(str))
    assert adjusted_rand_score(truth, group.astype(str)) > max(before, 0.9)
    assert group.cat.categories.tolist() == ["0", "1", "2", "3"]
    assert (codes.loc[cells.obs["cell_code"].astype(str), "group"].to_numpy() == group).all()
    assert cells.uns["cell_code"]["params"]["n_groups"] == 4


def test_cells_without_a_code_have_no_group_and_files_keep_it(tmp_path) -> None:
    cells = typed_cells(12)
    x = cells.X.toarray()
    x[7] = 0
    cells.X = x
    cfm.tl.cell_codes(cells, NearestCode(), n_groups=3)
    assert cells.obs["cell_code_group"].isna().to_numpy().nonzero()[0].tolist() == [7]
    cells.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    pd.testing.assert_series_equal(
        back.obs["cell_code_group"], cells.obs["cell_code_group"], check_categorical=False
    )
    cfm.tl.cell_codes(cells, NearestCode())
    assert "cell_code_group" not in cells.obs
    assert "group" not in cells.uns["cell_code"]["codes"]


def test_more_groups_than_codes_are_refused() -> None:
    cells = typed_cells(3)
    before = cells.copy()
    with pytest.raises(ValueError, match="n_groups is 64, but the 12 cells have"):
        cfm.tl.cell_codes(cells, NearestCode(), n_groups=64)
    with pytest.raises(ValueError, match="n_groups=0"):
        cfm.tl.cell_codes(cells, NearestCode(), n_groups=0)
    assert_unchanged(cells, before)


def test_an_annotation_called_group_falls_on_it() -> None:
    reference, query = typed_cells(12), typed_cells(12, seed=3)
    reference.obs["group"] = reference.obs["donor"]
    cfm.tl.cell_codes(reference, NearestCode(), groupby="group")
    with pytest.raises(ValueError, match="taken by another result"):
        cfm.tl.cell_codes(query, NearestCode(), reference=reference, n_groups=2)
