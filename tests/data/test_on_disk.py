"""Files are opened without loading, and read as the data that were written."""

import gc
import os
import pickle
import signal
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cfm.data import _disk_parts, _row_stack, open_files
from cfm.data._matrix import by_rows
from cfm.data._row_stack import RowStack
from tests._same import assert_same
from tests._storages import STORAGES, stored

OPENED = [kind for kind in STORAGES if kind.startswith("opened")]


def toy(n: int = 23, d: int = 11, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    x = sparse.csr_matrix(rng.poisson(0.7, size=(n, d)).astype(np.float32))
    obs = pd.DataFrame(
        {"kind": pd.Categorical(rng.choice(["a", "b"], n)), "size": rng.random(n)},
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame({"length": rng.integers(1, 9, d)}, index=[f"G{i}" for i in range(d)])
    adata = ad.AnnData(x, obs=obs, var=var, uns={"made": {"by": "test"}})
    adata.layers["two"] = 2 * x
    adata.obsm["X_pca"] = rng.random((n, 3), dtype=np.float32)
    return adata


def dense(x):
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


@pytest.mark.parametrize("kind", STORAGES)
def test_every_storage_holds_the_same(kind, tmp_path):
    adata = toy()
    other = stored(adata, kind, tmp_path)
    assert other.shape == adata.shape
    assert list(other.obs_names) == list(adata.obs_names)
    found = other[3:9].to_memory()
    assert np.array_equal(dense(found.X), dense(adata.X[3:9]))
    assert np.array_equal(dense(found.layers["two"]), dense(adata.layers["two"][3:9]))
    assert np.array_equal(dense(found.obsm["X_pca"]), adata.obsm["X_pca"][3:9])


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("kind", OPENED)
def test_loaded_and_written(kind, suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(_row_stack, "_WRITE_ROWS", 5)  # several blocks
    adata = toy()
    opened = stored(adata, kind, tmp_path)
    path = tmp_path / f"again{suffix}"
    write(opened, path)
    for found in (opened.to_memory(), opened.copy().to_memory(), open_files(path).to_memory()):
        assert np.array_equal(dense(found.X), adata.X.toarray())
        assert np.array_equal(dense(found.layers["two"]), adata.layers["two"].toarray())
        assert_same(found.obsm["X_pca"], adata.obsm["X_pca"])
        assert_same(dict(found.uns), dict(adata.uns))
        assert_same(found.obs[list(adata.obs)], adata.obs)
        assert_same(found.var, adata.var)
    read = ad.read_h5ad(path) if suffix == ".h5ad" else ad.read_zarr(path)
    assert type(read.X) is type(opened.X[:])
    assert np.array_equal(dense(read.X), adata.X.toarray())


def write(adata, path):
    if path.suffix == ".zarr":
        adata.write_zarr(path)
    else:
        adata.write_h5ad(path)


@pytest.mark.parametrize("kind", OPENED)
def test_nothing_is_loaded_until_it_is_asked_for(kind, tmp_path):
    opened = stored(toy(), kind, tmp_path)
    for view in (opened, opened[2:9], opened[opened.obs["kind"] == "a"], opened[:, ["G3", "G1"]]):
        for matrix in (view.X, view.layers["two"], view.obsm["X_pca"]):
            assert isinstance(matrix, RowStack)
        assert view.X.shape == view.shape
    assert len(opened) == len(opened.X) == 23
    assert "read by rows" in repr(opened.X) and "23 × 11" in repr(opened.X)
    assert "n_obs × n_vars = 23 × 11" in repr(opened)


@pytest.mark.parametrize("kind", OPENED)
def test_views_of_views(kind, tmp_path):
    adata = toy()
    opened = stored(adata, kind, tmp_path)
    rows = np.array([7, 2, 2, 21, 0])
    for found, expected in [
        (opened[rows], adata[rows]),
        (opened[rows][[3, 1]][:, ["G5", "G2"]], adata[rows[[3, 1]]][:, ["G5", "G2"]]),
        (opened[::3][:, ["G3", "G1"]], adata[::3][:, ["G3", "G1"]]),
        (opened[opened.obs["size"] > 0.5][1:], adata[adata.obs["size"] > 0.5][1:]),
        (opened["cell4"], adata["cell4"]),
        (opened[rows[2:]].copy()[[2, 0], ["G4", "G1"]], adata[rows[[4, 2]], ["G4", "G1"]]),
        (opened[:, ["G7", "G4", "G1"]].copy()[:, ["G1", "G4"]], adata[:, ["G1", "G4"]]),
        (opened[:0], adata[:0]),
    ]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Observation names are not unique")
            for loaded in (found.to_memory(), found.copy().to_memory()):
                assert np.array_equal(dense(loaded.X), dense(expected.X))
                assert np.array_equal(dense(loaded.layers["two"]), dense(expected.layers["two"]))
                assert np.array_equal(loaded.obsm["X_pca"], expected.obsm["X_pca"])


INDICES = st.one_of(
    st.slices(23),
    st.lists(st.integers(-23, 22), max_size=30).map(lambda rows: np.array(rows, dtype=int)),
    st.lists(st.booleans(), min_size=23, max_size=23).map(np.array),
    st.integers(-23, 22),
)


@pytest.fixture(scope="module")
def all_opened(tmp_path_factory):
    return {
        kind: stored(toy(), kind, tmp_path_factory.mktemp(kind)) for kind in OPENED
    }, toy().X.toarray()


@settings(max_examples=80, deadline=None)
@given(row=INDICES, column=st.one_of(st.none(), st.slices(11), st.integers(0, 10)))
def test_every_index_gives_what_numpy_gives(all_opened, row, column):
    opened, values = all_opened
    index = row if column is None else (row, column)
    expected = values[index]
    for kind, adata in opened.items():
        found = adata.X[index]
        assert adata.X.dtype == np.float32
        if "dense" in kind:
            assert isinstance(found, np.ndarray | np.floating)
            assert np.array_equal(found, expected)
        elif np.isscalar(found):
            assert found == expected
        else:
            assert found.dtype == np.float32
            assert np.array_equal(found.toarray().ravel(), np.ravel(expected))


@pytest.mark.parametrize("kind", ["opened_list", "opened_dense"])
def test_rows_that_are_not_there(kind, all_opened):
    x = all_opened[0][kind].X
    for row in (23, -24, [0, 23], [-24]):
        with pytest.raises(IndexError, match="of a matrix of 23 rows"):
            x[row]
    with pytest.raises(IndexError, match="a mask of 3 for 23 rows"):
        x[np.ones(3, dtype=bool)]
    with pytest.raises(IndexError, match="by number, slice or mask, not by float64"):
        x[[0.5]]
    with pytest.raises(IndexError, match="3 indices"):
        x[0, 0, 0]


@pytest.mark.parametrize("kind", OPENED)
def test_it_can_be_sent_to_another_process(kind, tmp_path):
    adata = toy()
    x = pickle.loads(pickle.dumps(stored(adata, kind, tmp_path).X))
    assert np.array_equal(dense(x[3:9]), adata.X[3:9].toarray())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_opens_the_file_anew(tmp_path):
    adata = toy()
    x = stored(adata, "opened_h5ad", tmp_path).X
    x[:2]
    before = x.parts[0].element._opened
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends it if it hangs
        ok = np.array_equal(dense(x[3:9]), adata.X[3:9].toarray())
        os._exit(0 if ok and x.parts[0].element._opened[1] is not before[1] else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("kind", ["backed_csr", "backed_dense"])
def test_a_file_that_was_closed_is_opened_again(kind, tmp_path):
    adata = toy()
    backed = stored(adata, kind, tmp_path)
    matrix = by_rows(backed.X)
    assert isinstance(matrix, RowStack)
    stored_as = backed.X
    assert kind == "backed_dense" or by_rows(stored_as) is by_rows(stored_as)
    backed.file.close()
    assert np.array_equal(dense(matrix[[5, 2]]), adata.X[[5, 2]].toarray())


@pytest.mark.parametrize("kind", ["opened_h5ad", "opened_dense"])
def test_nothing_can_be_written(kind, tmp_path):
    opened = stored(toy(), kind, tmp_path)
    opened[:0].write_h5ad(tmp_path / "empty.h5ad")
    assert ad.read_h5ad(tmp_path / "empty.h5ad").shape == (0, 11)


def test_dense_matrices_pass_for_arrays(tmp_path):
    adata = toy()
    found = stored(adata, "opened_h5ad", tmp_path).obsm["X_pca"]
    assert np.array_equal(np.asarray(found), adata.obsm["X_pca"])
    assert np.asarray(found, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="without being loaded"):
        np.array(found, copy=False)


def test_missing_values_of_dense_files_stay(tmp_path):
    adata = toy()
    x = adata.X.toarray()
    x[3, 4] = np.nan
    adata.X = x
    adata.write_h5ad(tmp_path / "a.h5ad")
    other = toy()
    other.obs_names = [f"other{i}" for i in range(other.n_obs)]
    other.write_h5ad(tmp_path / "b.h5ad")
    assert np.array_equal(open_files(tmp_path / "a.h5ad").X[:], x, equal_nan=True)
    # with a sparse file beside it, as sparse rows
    both = open_files([tmp_path / "a.h5ad", tmp_path / "b.h5ad"])
    found = both.X[:23]
    assert sparse.issparse(found)
    assert np.array_equal(found.toarray(), x, equal_nan=True)


def test_what_is_no_matrix_is_loaded(tmp_path):
    adata = toy()
    adata.obsm["table"] = pd.DataFrame({"p": np.arange(23.0)}, index=adata.obs_names)
    adata.obsm["cube"] = np.zeros((23, 2, 2))
    adata.varm["loadings"] = np.ones((11, 2))
    adata.X = None
    adata.write_h5ad(tmp_path / "a.h5ad")
    found = open_files(tmp_path / "a.h5ad")
    assert found.X is None
    assert_same(found.obsm["table"], adata.obsm["table"])
    assert_same(found.obsm["cube"], adata.obsm["cube"])
    assert_same(found.varm["loadings"], adata.varm["loadings"])
    assert isinstance(found.layers["two"], RowStack)
    # of several files, tables lie above each other and get the names
    adata.write_h5ad(tmp_path / "b.h5ad")
    with pytest.warns(UserWarning, match="23 names of observations are in more than one file"):
        both = open_files([tmp_path / "a.h5ad", tmp_path / "b.h5ad"])
    assert both.obsm["table"]["p"].tolist() == [*np.arange(23.0)] * 2
    assert both.obs_names[[0, 23]].tolist() == ["cell0-a.h5ad", "cell0-b.h5ad"]
    assert "cube" not in both.obsm


def test_files_with_other_genes_columns_and_categories(tmp_path):
    a, b = toy(), toy(seed=1)
    b.obs_names = [f"other{i}" for i in range(b.n_obs)]
    b = b[:, ["G8", "G2", "G0", "G9", "G5", "G1", "G10", "G4", "G3"]].copy()
    b.X.sort_indices()  # by its own columns
    b.obs["kind"] = pd.Categorical(["c"] * b.n_obs)
    b.obs["only_b"] = 1
    b.obsm["X_umap"] = np.zeros((b.n_obs, 2))
    b.uns["made"] = {"by": "somebody else"}
    b.var["length"] = 0
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    paths = [tmp_path / "1" / "x.h5ad", tmp_path / "2" / "x.h5ad"]
    a.write_h5ad(paths[0])
    b.write_h5ad(paths[1])
    found = open_files(paths)
    expected = ["G0", "G1", "G2", "G3", "G4", "G5", "G8", "G9", "G10"]
    assert found.var_names.tolist() == expected
    assert found.obs["file"].tolist() == [str(paths[0])] * 23 + [str(paths[1])] * 23
    assert list(found.obs) == ["kind", "size", "file"]
    assert set(found.obs["kind"]) == {"a", "b", "c"}
    assert list(found.var) == []
    assert list(found.obsm) == ["X_pca"]
    assert found.uns["made"]["by"] == "test"
    together = np.concatenate([a[:, expected].X.toarray(), b[:, expected].X.toarray()])
    assert np.array_equal(found.X[:].toarray(), together)
    assert found.X[20:30].has_sorted_indices
    rows = np.array([45, 1, 23, 22, 1])
    assert np.array_equal(found.X[rows].toarray(), together[rows])
    with pytest.raises(ValueError, match=r"2 genes of .*1/x.h5ad \(G6, G7\) are not in all files"):
        open_files(paths, join="exact")


def test_files_of_other_types_of_numbers(tmp_path):
    a, b = toy(), toy(seed=1)
    a.X = a.X.astype(np.int32)
    b.X = b.X.astype(np.float64)
    b.obs_names = [f"other{i}" for i in range(b.n_obs)]
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    a.write_h5ad(paths[0])
    b.write_h5ad(paths[1])
    x = open_files(paths).X
    assert x.dtype == x[:3].dtype == x[30:].dtype == np.float64


def test_many_genes_that_are_lost_are_said(tmp_path):
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    a, b = toy(), toy()
    b.obs_names = [f"other{i}" for i in range(b.n_obs)]
    a.write_h5ad(paths[0])
    b[:, :8].copy().write_h5ad(paths[1])
    with pytest.warns(UserWarning, match=r"Only 8 of the 11 genes of .*a.h5ad are in all 2 files"):
        open_files(paths)
    b.var_names = [f"X{i}" for i in range(11)]
    b.write_h5ad(paths[1])
    with pytest.raises(ValueError, match=r"no gene in common: .*a.h5ad has G0, G1, G2, …, .*X0"):
        open_files(paths)


def test_genes_and_files_that_come_twice(tmp_path):
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    a = toy()
    a.write_h5ad(paths[0])
    a.obs_names = [f"other{i}" for i in range(a.n_obs)]
    a.var_names = ["G0", "G0", *a.var_names[2:]]
    a.write_h5ad(paths[1])
    with pytest.raises(ValueError, match=r"b.h5ad: 1 var_names occur more than once \('G0'\)"):
        open_files(paths)
    with pytest.raises(ValueError, match="is given more than once"):
        open_files([paths[0], paths[0]])


def test_a_column_of_that_name_is_replaced(tmp_path):
    adata = toy()
    adata.obs["file"] = "mine"
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    adata[:10].copy().write_h5ad(paths[0])
    adata[10:].copy().write_h5ad(paths[1])
    with pytest.warns(UserWarning, match="column 'file' of obs is replaced"):
        assert set(open_files(paths).obs["file"]) == {"a.h5ad", "b.h5ad"}
    assert set(open_files(paths[0]).obs["file"]) == {"mine"}


def test_columns_first_has_to_be_loaded(tmp_path):
    adata = toy()
    adata.X = adata.X.tocsc()
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.warns(UserWarning, match=r"X of .*a.h5ad is stored by columns \(CSC\)"):
        found = open_files(tmp_path / "a.h5ad")
    assert np.array_equal(found.X[[5, 2]].toarray(), adata.X[[5, 2]].toarray())
    assert found.X[[5, 2]].format == "csr"


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a.h5ad does not exist \(seen from"):
        open_files(tmp_path / "a.h5ad")
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match=r"a.csv is neither .h5ad nor .zarr"):
        open_files(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="no file was given"):
        open_files([])
    with pytest.raises(TypeError, match="expected a path or a list of paths, found int"):
        open_files(3)
    with pytest.raises(TypeError, match="expected paths, found int"):
        open_files([3])
    with pytest.raises(ValueError, match="join='outer'; expected one of"):
        open_files(tmp_path / "a.h5ad", join="outer")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match=r"empty.zarr cannot be opened"):
        open_files(tmp_path / "empty.zarr")


def test_files_that_are_damaged(tmp_path):
    path = tmp_path / "a.h5ad"
    toy().write_h5ad(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a.h5ad cannot be opened: .*truncated.*copy or download"):
        open_files(path)
    path.write_text("no HDF5")
    with pytest.raises(ValueError, match=r"It is no .h5ad or is cut short"):
        open_files(path)
    toy().write_h5ad(path)
    with h5py.File(path, "a") as file:
        data = file["X/data"][:-5]
        del file["X/data"]
        file["X/data"] = data
    with pytest.raises(ValueError, match="the file is damaged or was not written to its end"):
        open_files(path)


def test_files_that_hold_something_else(tmp_path):
    path = tmp_path / "a.h5ad"
    with h5py.File(path, "w") as file:
        file["obs"] = np.arange(3)
    with pytest.raises(ValueError, match=r"has no var, so it holds no AnnData; it has \['obs'\]"):
        open_files(path)
    with h5py.File(path, "a") as file:
        file["var"] = np.arange(3)
    with pytest.raises(ValueError, match="holds obs as an old version of anndata wrote it"):
        open_files(path)
    adata = toy()
    adata.write_h5ad(path)
    with h5py.File(path, "a") as file:
        file["X"].attrs["encoding-type"] = "categorical"
    with pytest.raises(ValueError, match=r"X of .* is stored as categorical; a dense or sparse"):
        open_files(path)
    with h5py.File(path, "a") as file:
        del file["X"]
        file["X"] = np.zeros((23, 11, 2))
    with pytest.raises(ValueError, match=r"shape \(23, 11, 2\) and holds float64 values; a matrix"):
        open_files(path)


def open_h5ad(folder) -> int:
    """Files in a folder that this process has open."""
    gc.collect()
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum(os.path.realpath(link).startswith(str(folder)) for link in links)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="not Linux")
def test_many_files_are_not_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_disk_parts, "_MOST_OPEN", 5)
    adata = toy(40)
    paths = [tmp_path / f"{i}.h5ad" for i in range(20)]
    for i, path in enumerate(paths):
        adata[2 * i : 2 * i + 2].copy().write_h5ad(path)
    opened = open_files(paths)
    for _ in range(2):
        assert np.array_equal(opened.X[::-1].toarray(), adata.X[::-1].toarray())
        assert open_h5ad(tmp_path) <= 5
    del opened
    assert open_h5ad(tmp_path) == 0


def test_rows_far_into_a_matrix():
    """Places are counted without overflow where the file counts with 32 bits."""
    end = np.array([2**31 - 20, 2**31 - 10], dtype=np.int32)
    assert _disk_parts.stretches(end - np.int32(5), end) == [(0, 2)]


def test_large_matrices_are_read_in_pieces(tmp_path, monkeypatch):
    """Stretches are cut where they would be too long, and gaps are read over where short."""
    rng = np.random.default_rng(0)
    x = sparse.random(400, 50, 0.3, format="csr", dtype=np.float32, rng=rng)
    ad.AnnData(x).write_h5ad(tmp_path / "a.h5ad")
    for most, gap in [(100, 0), (40, 1000), (1, 0), (10**6, 10**6)]:
        monkeypatch.setattr(_disk_parts, "_STRETCH_VALUES", most)
        monkeypatch.setattr(_disk_parts, "_GAP_VALUES", gap)
        matrix = open_files(tmp_path / "a.h5ad").X
        for rows in (np.arange(400), np.arange(0, 400, 3), rng.permutation(400)[:50]):
            assert np.array_equal(matrix[rows].toarray(), x[rows].toarray())


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), min_size=1, max_size=40),
    chunk=st.integers(1, 60),
)
def test_stretches_hold_each_piece_once(pieces, chunk):
    gap, length = np.array(pieces).T
    end = np.cumsum(gap + length)
    start = end - length
    found = _disk_parts.stretches(start, end, chunk)
    assert [i for first, last in found for i in range(first, last)] == list(range(len(pieces)))
    assert all(first < last for first, last in found)


def test_scdataset_reads_from_it(tmp_path):
    scdataset = pytest.importorskip("scdataset")
    adata = toy()
    opened = stored(adata, "opened_list", tmp_path)
    for data, values in [(opened.X, lambda b: b), (opened, lambda b: b.to_memory().X)]:
        rows = scdataset.scDataset(
            data, scdataset.BlockShuffling(block_size=4), 5, fetch_transform=values
        )
        found = np.concatenate([batch.toarray() for batch in rows])
        assert sorted(map(tuple, found)) == sorted(map(tuple, adata.X.toarray()))
