"""Tables and matrices that anndata takes and libraries stumble over: they work, or one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import cfm
from cfm.data._matrix import by_rows, read_rows, row_blocks
from tests.matrix import _data, _kinds, _outcome
from tests.matrix.test_matrix import TOOLS, expected, run
from tests.matrix.test_plots import PLOTS, _data_of


@pytest.fixture(autouse=True)
def _other_tests_look_at_our_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _twice(adata: ad.AnnData) -> None:
    note = pd.DataFrame({"note": "x"}, index=adata.obs_names)
    adata.obs = pd.concat([adata.obs, note, note], axis=1)


def _numbered(adata: ad.AnnData) -> None:
    tables = [table for table in adata.obsm.values() if isinstance(table, pd.DataFrame)]
    for table in (adata.obs, *tables):
        table.index = pd.RangeIndex(adata.n_obs)


REFUSED: dict[str, tuple[Callable[[ad.AnnData], None], str]] = {
    "columns twice": (_twice, r"adata\.obs holds more than one column 'note'; drop or rename"),
    "numbers as names": (_numbered, r"adata\.obs_names holds int64 values; expected text"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", TOOLS)
def test_tables_that_cannot_be_copied_or_read_are_refused(name: str, kind: str) -> None:
    change, message = REFUSED[kind]
    data = TOOLS[name].make()
    change(data)
    fields = set(data.obsm) | set(data.uns)
    with pytest.raises(ValueError, match=message):
        TOOLS[name].call(data)
    assert set(data.obsm) | set(data.uns) == fields


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", sorted(set(PLOTS) - {"perturbation_effect", "perturbation_umap"}))
def test_plots_refuse_them_too(name: str, kind: str) -> None:
    change, message = REFUSED[kind]
    data = ad.AnnData(obs=_data_of(name).obs.copy())
    change(data)
    more = {"host_factor_enrichment": [["ISG15"]], "classification": ["virus"]}.get(name, [])
    with pytest.raises(ValueError, match=message):
        getattr(cfm.pl, name)(data, *more)


@pytest.mark.parametrize("name", TOOLS)
def test_an_index_may_be_named_like_a_column(name: str) -> None:
    data = TOOLS[name].make()
    data.obs.index.name = "virus"
    _outcome.assert_alike(run(TOOLS[name], data), expected(name))


@pytest.mark.parametrize(
    "name", ["pp.contrasts", "tl.embed_donors", "tl.cell_codes", "Pulsar.setup_anndata"]
)
@pytest.mark.parametrize("value", [["B"], {"is": "B"}, {"B"}])
def test_columns_of_lists_hold_no_labels(name: str, value: Any) -> None:
    data = TOOLS[name].make()
    columns = {"tl.cell_codes": {"groupby": "virus"}}.get(name, {})
    for column in ("virus", "donor_id"):
        data.obs[column] = pd.Series([value] * data.n_obs, index=data.obs_names, dtype=object)
    with pytest.raises(ValueError, match=f"holds values of type {type(value).__name__}; expected"):
        TOOLS[name].call(data, **columns)


def test_models_register_labels_of_one_kind() -> None:
    data = _data.embedded()
    data.obs["donor_id"] = [1, "d2"] * (data.n_obs // 2)
    with pytest.raises(ValueError, match="holds values of type int, str; expected one text"):
        cfm.models.Pulsar.setup_anndata(data, donor_key="donor_id", use_rep="X_uce")
    data.obs["donor_id"] = data.obs["donor_id"].astype(str)
    cfm.models.Pulsar.setup_anndata(data, donor_key="donor_id", use_rep="X_uce")


def test_a_column_of_lists_is_not_carried_over_to_donors() -> None:
    data = _data.embedded()
    data.obs["tags"] = pd.Series([["x"]] * data.n_obs, index=data.obs_names, dtype=object)
    donors = cfm.tl.embed_donors(data, model=_data.pulsar())
    assert "tags" not in donors.obs
    assert "tags" in donors.uns["X_pulsar"]["varying"]["column"].tolist()


#: What numbers and sparse matrices can be, beside those of the table of storages and dtypes.
MATRICES: dict[str, Callable[[np.ndarray], Any]] = {
    "float16": lambda x: x.astype(np.float16),
    "big-endian": lambda x: x.astype(">f4"),
    "csr_array": sp.csr_array,
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("name", TOOLS)
def test_unusual_matrices_give_what_float32_gives(name: str, kind: str) -> None:
    data = _kinds.with_values(TOOLS[name].make(), MATRICES[kind])
    _outcome.assert_alike(run(TOOLS[name], data), expected(name))


@pytest.mark.parametrize("dtype", ["float16", ">f8", ">i4"])
def test_sparse_matrices_of_unusual_dtypes_are_read(dtype: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).poisson(1.0, (9, 4))
    matrix = sp.csr_matrix(values.astype(np.float32))
    matrix.data = matrix.data.astype(dtype)  # as a file may hold them
    for _, block in row_blocks(matrix, 4):
        assert block.dtype.isnative and block.dtype.itemsize >= 4
    np.testing.assert_array_equal(read_rows(matrix, np.array([8, 0])).toarray(), values[[8, 0]])
    assert type(by_rows(sp.csc_array(values))) is sp.csr_matrix


@pytest.mark.parametrize("name", sorted(set(PLOTS) - {"perturbation", "probe"}))
def test_results_without_a_record_are_drawn(name: str) -> None:
    data = _data_of(name)
    for key, stored in data.uns.items():
        if hasattr(stored, "get") and "params" in stored:
            data.uns[key] = dict(stored) | {"params": None}
    assert PLOTS[name][1](data) is not None


def test_tools_run_again_over_results_without_a_record() -> None:
    for name in ("tl.cell_codes", "pp.split_perturbations", "tl.probe"):
        data = TOOLS[name].make()
        TOOLS[name].call(data)
        for key in data.uns:
            data.uns[key] = {"params": None}
        TOOLS[name].call(data)


def test_a_colour_is_drawn_once() -> None:
    data = _data_of("embedding")
    with pytest.raises(ValueError, match="names a column twice"):
        cfm.pl.embedding(data, color=["virus", "study", "virus"], show=False)


def test_gene_sets_are_text(tmp_path: Path) -> None:
    (tmp_path / "sets.gmt.gz").write_bytes(b"\x1f\x8b\x08\x00\xff\xfe")
    with pytest.raises(ValueError, match=r"sets\.gmt\.gz' is no text file; expected a gmt file"):
        TOOLS["tl.gene_programs"].call(_data.effects(), gene_sets=str(tmp_path / "sets.gmt.gz"))
