"""Damage of files and matrices is an error of ours, never the end of the process."""

import json
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr
from scipy import sparse

import cfm
from cfm._adata import check_sparse
from cfm.data import ProfileMatrix, open_files
from cfm.data._matrix import get_matrix, read_rows, row_blocks, to_dense
from tests._damaged_files import N_GENES, N_ROWS, SECONDS, toy
from tests._toy import toy_model

N_CASES = 320
#: What is wrong, where (array and place), and what the error says of it.
DAMAGES = {
    "too large": ("indices", 40, N_GENES, rf"column {N_GENES}; expected 0 to {N_GENES - 1}"),
    "below 0": ("indices", 40, -1, rf"column -1; expected 0 to {N_GENES - 1}"),
    "falls": ("indptr", 9, 2, r"indptr falls from \d+ to 2 at row 8"),
    "beyond": ("indptr", N_ROWS, 10**6, r"indptr (goes from 0|ends with|has)"),
}


@pytest.mark.parametrize("seed", [0])
def test_reads_of_damaged_files_end_well(seed, tmp_path):
    command = [sys.executable, "-m", "tests._damaged_files", tmp_path, N_CASES, seed]
    run = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=20 * SECONDS
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    last = lines[-1] if lines else "before the first"
    assert run.returncode == 0, f"{run.returncode} in {last}: {run.stderr[-2000:]}"
    ended = [line for line in lines if len(line) == 3]
    assert len(ended) == N_CASES
    other = [line for line in ended if line[2] not in ("read", "refused")]
    assert not other, "\n".join(map(str, other[:5]))
    counted = Counter(line[2] for line in ended)
    assert min(counted["read"], counted["refused"]) > N_CASES // 10


def spoil(matrix, damage):
    """Damage a matrix in memory, or a group of a file."""
    name, place, value, _ = DAMAGES[damage]
    array = getattr(matrix, name) if sparse.issparse(matrix) else matrix[name]
    array[place] = value


def in_memory(kind, damage):
    adata = toy(kind)
    spoil(adata.X, damage)
    return adata


def file(folder, damage, suffix=".h5ad", key="X"):
    path = folder / f"some{suffix}"
    adata = toy(sparse.csr_matrix)
    adata.raw = adata
    if suffix == ".zarr":
        adata.write_zarr(path)
        spoil(zarr.open_group(path, mode="r+")[key], damage)
    else:
        adata.write_h5ad(path)
        with h5py.File(path, "a") as stored:
            spoil(stored[key], damage)
    return path


STORAGES = {
    "csr_matrix": lambda folder, damage: in_memory(sparse.csr_matrix, damage),
    "csr_array": lambda folder, damage: in_memory(sparse.csr_array, damage),
    "view": lambda folder, damage: in_memory(sparse.csr_matrix, damage)[2:, ["G3", "G2", "G7"]],
    "read": lambda folder, damage: ad.read_h5ad(file(folder, damage)),
    "backed": lambda folder, damage: ad.read_h5ad(file(folder, damage), backed="r"),
    "view of backed": lambda folder, damage: ad.read_h5ad(file(folder, damage), backed="r")[
        1:, ["G3", "G2", "G7"]
    ],
    "lazy": lambda folder, damage: ad.experimental.read_lazy(file(folder, damage)),
    "view of lazy": lambda folder, damage: ad.experimental.read_lazy(file(folder, damage))[
        1:, ["G3", "G2", "G7"]
    ],
    "h5ad": lambda folder, damage: open_files(file(folder, damage)),
    "zarr": lambda folder, damage: open_files(file(folder, damage, ".zarr")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", STORAGES)
def test_indices_out_of_range_in_every_storage(kind, damage, tmp_path):
    says = DAMAGES[damage][3]
    if kind.endswith("lazy") and damage == "beyond":
        says = "."  # anndata reads the block, which has fewer values than it says
    with pytest.raises((ValueError, OSError), match=says) as caught:
        for _, block in row_blocks(get_matrix(STORAGES[kind](tmp_path, damage))):
            to_dense(block)
    if kind in ("backed", "view of backed", "h5ad", "zarr"):
        assert "some." in str(caught.value) and "X" in str(caught.value)
        assert "copy or download it again" in str(caught.value)


def test_rows_are_named_by_their_number_in_the_file(tmp_path):
    path = file(tmp_path, "too large")
    with h5py.File(path) as stored:
        row = int(np.searchsorted(stored["X/indptr"][:], 40, "right")) - 1
    matrix = open_files(path).X
    with pytest.raises(ValueError, match=rf"some.h5ad: X: row {row} holds a value in column 15"):
        matrix[[N_ROWS - 1, row, 0]]
    others = np.setdiff1d(np.arange(N_ROWS), row)
    expected = toy(sparse.csr_matrix).X[others].toarray()
    assert np.array_equal(matrix[others].toarray(), expected)


@pytest.mark.parametrize(("bad", "row"), [(N_ROWS, "24"), (-1, "-1")])
@pytest.mark.parametrize("storage", ["memory", "backed", "h5ad", "zarr"])
def test_matrices_by_columns(storage, bad, row, tmp_path):
    adata = toy(sparse.csc_matrix)
    adata.X.indices[40] = bad
    if storage == "zarr":
        adata.write_zarr(tmp_path / "a.zarr")
    else:
        adata.write_h5ad(tmp_path / "a.h5ad")
    with (
        pytest.raises(
            ValueError, match=rf"column \d+ holds a value in row {row}; expected 0 to 23"
        ),
        pytest.warns(UserWarning) if storage in ("h5ad", "zarr") else nullcontext(),
    ):
        if storage in ("h5ad", "zarr"):
            open_files(tmp_path / f"a.{storage}")
        if storage == "backed":
            adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
        read_rows(get_matrix(adata), np.arange(3))


@pytest.mark.parametrize("slot", ["layer", "raw"])
def test_layers_and_raw(slot, tmp_path):
    key = {"layer": "layers/two", "raw": "raw/X"}[slot]
    adata = ad.read_h5ad(file(tmp_path, "below 0", key=key))
    call = {"layer": {"layer": "two"}, "raw": {"use_raw": True}}[slot]
    name = {"layer": r"adata.layers\['two'\]", "raw": "adata.raw.X"}[slot]
    with pytest.raises(ValueError, match=f"{name} is damaged: row .* column -1; expected 0 to 14"):
        get_matrix(adata, **call)
    get_matrix(adata)


def test_other_formats_and_what_is_stored_beyond_the_last_value():
    entries = sparse.coo_matrix(np.eye(4))
    assert (check_sparse(entries, "it") != entries).nnz == 0
    entries.col[2] = 4
    with pytest.raises(ValueError, match=r"it is damaged: .*index 4 exceeds"):
        check_sparse(entries, "it")
    spare = sparse.csr_matrix(np.eye(4))
    spare.indptr[-1] = 3
    spare.indices[3] = 99  # of no row
    assert check_sparse(spare, "it") is spare and len(spare.indices) == 4
    assert check_sparse(sparse.csr_matrix((3, 4)), "it").nnz == 0
    unsigned = sparse.csr_matrix(np.eye(4))
    unsigned.indices = unsigned.indices.astype("u1")
    check_sparse(unsigned, "it")
    unsigned.indices[1] = 4
    with pytest.raises(ValueError, match="row 1 holds a value in column 4"):
        check_sparse(unsigned, "it")
    unsigned.indices = unsigned.indices.astype("f4")
    with pytest.raises(ValueError, match="indices are float32 values; integers are expected"):
        check_sparse(unsigned, "it")


def bulk(bad):
    adata = cfm.datasets.toy_infection()
    adata.X = sparse.csr_matrix(adata.X)
    adata.X.indices[70] = {"large": adata.n_vars, "negative": -1}[bad]
    return adata


def profiles(bad):
    made = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    made.X = sparse.csr_matrix(np.nan_to_num(made.X))
    made.X.indices[70] = {"large": made.n_vars, "negative": -1}[bad]
    return made


TOOLS = {
    "contrasts": lambda bad: cfm.pp.contrasts(bulk(bad), "virus", "none", by="study"),
    "map_genes": lambda bad: cfm.pp.map_genes(bulk(bad)),
    "tpm": lambda bad: cfm.pp.tpm(bulk(bad)),
    "embed": lambda bad: cfm.tl.embed(profiles(bad), toy_model()),
    "predict_virus": lambda bad: cfm.tl.predict_virus(profiles(bad), toy_model()),
    "host_factors": lambda bad: cfm.tl.host_factors(profiles(bad), "virus", model=toy_model()),
    "top_genes": lambda bad: cfm.pl.top_genes(profiles(bad), show=False),
    "ProfileMatrix": lambda bad: ProfileMatrix(profiles(bad).X, profiles(bad).var_names),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bad", ["large", "negative"])
@pytest.mark.parametrize("tool", TOOLS)
def test_tools_refuse_indices_out_of_range(tool, bad):
    with pytest.raises(ValueError, match=r"is damaged: row \d+ holds a value in column"):
        TOOLS[tool](bad)


@pytest.mark.parametrize("shape", [(2**60, N_GENES), (N_ROWS, 2**60), (N_ROWS + 1, N_GENES)])
def test_sizes_that_a_file_claims(shape, tmp_path):
    path = tmp_path / "a.h5ad"
    toy(sparse.csr_matrix).write_h5ad(path)
    with h5py.File(path, "a") as stored:
        stored["X"].attrs["shape"] = shape
    with pytest.raises(ValueError, match=r"a.h5ad: X.* shape .*copy or download it again"):
        open_files(path)
    toy(np.asarray).write_h5ad(path)
    with h5py.File(path, "a") as stored:
        attrs = dict(stored["X"].attrs)
        del stored["X"]
        stored.create_dataset("X", shape=shape, dtype="f4", chunks=(1, 1)).attrs.update(attrs)
    with pytest.raises(ValueError, match=r"a.h5ad: X has shape .* beside 24 rows of obs and 15"):
        open_files(path)
