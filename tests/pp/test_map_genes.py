"""Genes get current symbols, and those with the same one become one column."""

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfm.pp import map_genes

NAMES = ["ISG15", "ENSG00000187608.10", "DDX58", "xyz", "MX1", "RIGI", "xyz"]
MERGED = ["ISG15", "RIGI", "xyz", "MX1"]
VALUES = np.arange(21, dtype=np.float32).reshape(3, 7)
SUMS = np.stack(
    [VALUES[:, [0, 1]].sum(1), VALUES[:, [2, 5]].sum(1), VALUES[:, [3, 6]].sum(1), VALUES[:, 4]], 1
)


@pytest.fixture
def adata():
    var = pd.DataFrame({"length": range(7)}, index=NAMES)
    with pytest.warns(UserWarning, match="not unique"):
        return ad.AnnData(
            VALUES.copy(),
            var=var,
            layers={"counts": sparse.csr_matrix(VALUES)},
            varm={"loadings": VALUES.T.copy()},
        )


def dense(x):
    x = x.compute() if hasattr(x, "compute") else x
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def test_duplicates_are_summed_in_every_layer(adata):
    assert map_genes(adata) is None
    assert adata.var_names.tolist() == MERGED
    assert np.array_equal(adata.X, SUMS)
    assert np.array_equal(dense(adata.layers["counts"]), SUMS)
    assert adata.layers["counts"].format == "csr"
    assert adata.var["original_id"].tolist() == [
        "ISG15;ENSG00000187608.10",
        "DDX58;RIGI",
        "xyz",
        "MX1",
    ]
    assert adata.var["mapping"].tolist() == ["symbol;ensembl", "alias;symbol", "unmapped", "symbol"]
    assert adata.var["length"].tolist() == [0, 2, 3, 4]
    assert np.array_equal(adata.varm["loadings"], VALUES.T[[0, 2, 3, 4]])
    report = adata.uns["map_genes"]
    assert (report["n_mapped"], report["n_unmapped"], report["n_merged"]) == (5, 2, 3)
    assert report["unmapped"].tolist() == ["xyz", "xyz"]
    assert report["params"]["organism"] == "human"


def test_copy_leaves_the_input_alone(adata):
    result = map_genes(adata, aggregate="mean", unmapped="drop", copy=True)
    assert adata.var_names.tolist() == NAMES
    assert "map_genes" not in adata.uns
    assert result.var_names.tolist() == ["ISG15", "RIGI", "MX1"]
    assert np.allclose(result.X, SUMS[:, [0, 1, 3]] / [2, 2, 1])
    assert result.X.dtype == np.float32


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(
    "wrap",
    [
        np.asfortranarray,
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.int16),
        sparse.csr_matrix,
        sparse.csc_matrix,
        sparse.csr_array,
        lambda x: da.from_array(x, chunks=(2, 3)),
        lambda x: da.from_array(x, chunks=(2, 7)).map_blocks(sparse.csr_matrix),
    ],
)
@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_storages_and_dtypes(wrap, aggregate):
    adata = ad.AnnData(wrap(VALUES), var=pd.DataFrame(index=NAMES))
    kind, dtype = type(adata.X), adata.X.dtype
    map_genes(adata, aggregate=aggregate)
    expected = SUMS if aggregate == "sum" else SUMS / [2, 2, 2, 1]
    assert np.allclose(dense(adata.X), expected)
    assert type(adata.X) is kind
    assert adata.X.dtype == (dtype if aggregate == "sum" or dtype.kind == "f" else np.float64)
    assert dense(adata.X).dtype == adata.X.dtype


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_view_and_backed(adata, tmp_path):
    view = adata[1:]
    assert view.is_view
    map_genes(view)
    assert not view.is_view
    assert np.array_equal(view.X, SUMS[1:])
    assert adata.n_vars == 7
    renamed = adata[:, [4]]
    map_genes(renamed)
    assert not renamed.is_view
    assert renamed.var_names.tolist() == ["MX1"]

    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ValueError, match="copy=True"):
        map_genes(backed)
    result = map_genes(backed, copy=True)
    assert not result.isbacked
    assert np.array_equal(result.X, SUMS)
    assert backed.var_names.tolist() == NAMES


def test_column_with_identifiers():
    var = pd.DataFrame(
        {"gene": ["ISG15", None, "", "nonsense", "strange"]},
        index=["a", "MX1", "b", "ENSG00000126709", "c"],
    )
    adata = ad.AnnData(np.ones((2, 5)), var=var)
    map_genes(adata, var_key="gene")
    assert adata.var_names.tolist() == ["ISG15", "MX1", "b", "IFI6", "strange"]
    assert adata.var["mapping"].tolist() == ["symbol"] * 2 + ["unmapped", "ensembl", "unmapped"]


def test_mouse():
    adata = ad.AnnData(np.ones((1, 3)), var=pd.DataFrame(index=["Isg15", "Mx1", "H2-K1"]))
    map_genes(adata)
    assert adata.var_names.tolist() == ["ISG15", "MX1", "H2-K1"]
    assert adata.uns["map_genes"]["params"]["organism"] == "mouse"


def test_summing_logs_warns(adata):
    adata.X = np.log1p(VALUES)
    with pytest.warns(UserWarning, match=r"adata\.X looks log-transformed"):
        map_genes(adata, copy=True)
    map_genes(adata, aggregate="mean")
    assert np.allclose(adata.X[:, 0], np.log1p(VALUES[:, :2]).mean(axis=1))


def test_without_x(adata):
    adata.X = None
    map_genes(adata)
    assert adata.X is None
    assert np.array_equal(dense(adata.layers["counts"]), SUMS)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("file_format", ["h5ad", "zarr"])
def test_an_empty_record_survives_writing(tmp_path, file_format):
    names = ["ISG15", "MX1", "IFIT1", "IFI6", "RSAD2", "IFI27", "IFI44L"]
    adata = ad.AnnData(VALUES.copy(), var=pd.DataFrame(index=names))
    map_genes(adata)
    getattr(adata, f"write_{file_format}")(tmp_path / "a")
    again = (ad.read_h5ad if file_format == "h5ad" else ad.read_zarr)(tmp_path / "a")
    assert again.var["original_id"].tolist() == adata.var["original_id"].tolist()
    assert list(again.uns["map_genes"]["unmapped"]) == list(adata.uns["map_genes"]["unmapped"])
    assert again.uns["map_genes"]["n_mapped"] == adata.uns["map_genes"]["n_mapped"]


def test_bad_input(adata):
    before = adata.copy()
    with pytest.raises(ValueError, match=r"none of the 2 gene identifiers \('a', 'b'"):
        map_genes(ad.AnnData(np.ones((1, 2)), var=pd.DataFrame(index=["a", "b"])))
    with pytest.raises(ValueError, match="adata has no genes"):
        map_genes(ad.AnnData(np.ones((2, 0))))
    with pytest.raises(TypeError, match="Found a ndarray; expected an AnnData"):
        map_genes(np.ones((1, 1)))
    assert adata.var_names.equals(before.var_names)
    assert np.array_equal(adata.X, before.X)


def test_hardly_any_gene_known_warns():
    adata = ad.AnnData(np.ones((2, 30)), var=pd.DataFrame(index=[f"g{i}" for i in range(30)]))
    with pytest.warns(UserWarning, match="only 1 of 30 gene identifiers are known"):
        map_genes(adata)
