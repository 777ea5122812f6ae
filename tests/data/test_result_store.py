"""Chunks of results: whole or not there, of one run only, and put together under their name."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm.data import _result_store, open_files
from cfm.data._result_store import ResultStore, Streamed, check_output, write_results
from tests._same import assert_same

RUN = {"tool": "embed", "batch_size": 64, "chunk_size": 4}


@pytest.fixture(params=[".h5ad", ".zarr"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"out{request.param}"


@pytest.fixture
def small() -> ad.AnnData:
    """What is small of ten observations."""
    obs = pd.DataFrame(
        {"call": pd.Categorical(list("aabbaabbab"))}, index=[f"o{i}" for i in range(10)]
    )
    made = ad.AnnData(obs=obs, var=pd.DataFrame(index=["g1", "g2", "g3"]))
    made.uns["tool"] = {"params": {"batch_size": 64, "layer": "counts"}}
    return made


def _blocks(matrix: np.ndarray, size: int = 4) -> Streamed:
    parts = [matrix[i : i + size] for i in range(0, len(matrix), size)]
    return Streamed(matrix.shape[1], matrix.dtype, iter(parts))


def _begun(path: Path) -> ResultStore:
    store = ResultStore(path)
    store.begin(RUN)
    return store


def test_blocks_become_an_anndata(path: Path, small: ad.AnnData) -> None:
    embedding = np.random.default_rng(0).random((10, 5)).astype(np.float32)
    filled = np.random.default_rng(1).random((10, 3))
    streamed = {("obsm", "X_e"): _blocks(embedding), ("layers", "filled"): _blocks(filled, 3)}
    store = _begun(path)
    store.finish(small, streamed)
    back = ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)
    expected = small.copy()
    expected.obsm["X_e"], expected.layers["filled"] = embedding, filled
    assert_same(back.obs, expected.obs)
    assert back.X is None
    assert_same(back.obsm["X_e"], embedding)
    assert_same(back.layers["filled"], filled)
    assert back.uns["tool"] == small.uns["tool"]
    opened = open_files(path)
    np.testing.assert_array_equal(opened.obsm["X_e"][2:7], embedding[2:7])
    assert not store.folder.exists()


def test_what_cannot_be_told_is_begun_anew(path: Path) -> None:
    store = _begun(path)
    store.write(0, {"x": np.zeros(2)})
    (store.folder / "run.json").write_text('{"tool": "emb')
    (store.folder / "00000001.npz.77.part").write_bytes(b"cut short")
    store.release()
    again = _begun(path)
    assert again.done() == set()
    assert json.loads((again.folder / "run.json").read_text()) == RUN
    assert not list(again.folder.glob("*.part"))


def test_a_killed_process_lets_go_and_leaves_whole_chunks(tmp_path: Path) -> None:
    path = tmp_path / "out.zarr"
    script = (
        "import os, signal, numpy as np\n"
        "from pathlib import Path\n"
        "from cfm.data import _result_store as module\n"
        f"store = module.ResultStore(Path({str(path)!r}))\n"
        f"store.begin({RUN!r})\n"
        "store.write(0, {'x': np.arange(3)})\n"
        "module.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.write(1, {'x': np.arange(3)})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert done.returncode == -9
    store = _begun(path)
    assert store.done() == {0}
    np.testing.assert_array_equal(store.read(0)["x"], np.arange(3))


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    store = _begun(tmp_path / "out.h5ad")
    with pytest.raises(BlockingIOError, match="Another process writes the results"):
        ResultStore(store.path).begin(RUN)
    store.release()
    ResultStore(store.path).begin(RUN)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("Can't write data (file write failed: errno = 28, error message = 'No …')"),
        RuntimeError("Can't decrement id ref count (file write failed: errno = 28)"),
    ],
)
@pytest.mark.parametrize("at", ["chunk", "end"])
def test_a_full_disk_keeps_what_is_done(
    tmp_path: Path,
    small: ad.AnnData,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    error: OSError | RuntimeError,
) -> None:
    path = tmp_path / "out.h5ad"
    store = _begun(path)
    store.write(0, {"x": np.zeros((10, 2))})

    def full(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(_result_store.np, "savez", full)
        patched.setattr(_result_store, "write_elem", full)
        with pytest.raises(OSError, match=r"No room left .*Make room and repeat") as caught:
            if at == "chunk":
                store.write(1, {"x": np.zeros((10, 2))})
            else:
                store.finish(small, {})
    assert caught.value.errno in (errno.ENOSPC, errno.EDQUOT)
    assert store.done() == {0}
    assert not list(store.folder.glob("*.part"))
    assert not path.exists()
    store.finish(small, {("obsm", "x"): _blocks(store.read(0)["x"])})
    assert open_files(path).obsm["x"].shape == (10, 2)


def test_other_errors_stay_what_they_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _begun(path)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Can't write (errno = 5)")

    with monkeypatch.context() as patched:
        patched.setattr(_result_store.np, "savez", broken)
        with pytest.raises(RuntimeError, match="errno = 5"):
            store.write(1, {"x": np.zeros(2)})


def test_what_is_there_stays_until_the_new_is_whole(path: Path, small: ad.AnnData) -> None:
    write_results(path, small, {})
    store = _begun(path)
    with pytest.raises(ValueError, match="Found 4 rows of results for 'x'; expected 10"):
        store.finish(small, {("obsm", "x"): _blocks(np.zeros((4, 2)))})
    assert "x" not in open_files(path).obsm
    store.finish(small, {("obsm", "x"): _blocks(np.zeros((10, 2)))}, overwrite=True)
    assert "x" in open_files(path).obsm
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_a_file_that_is_open_may_be_replaced(path: Path, small: ad.AnnData) -> None:
    write_results(path, small, {("obsm", "x"): _blocks(np.zeros((10, 2)))})
    opened = open_files(path)
    np.testing.assert_array_equal(opened.obsm["x"][:2], np.zeros((2, 2)))
    _begun(path).finish(small, {("obsm", "x"): _blocks(np.ones((10, 2)))}, overwrite=True)
    np.testing.assert_array_equal(open_files(path).obsm["x"][:2], np.ones((2, 2)))


def test_outputs_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"ends in '\.csv'; expected one of"):
        check_output(tmp_path / "out.csv")
    with pytest.raises(FileNotFoundError, match="does not exist; make it"):
        check_output(tmp_path / "no" / "out.h5ad")
    (tmp_path / "out.h5ad").write_bytes(b"")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        check_output(tmp_path / "out.h5ad")
    assert check_output(tmp_path / "out.h5ad", overwrite=True) == tmp_path / "out.h5ad"
    (tmp_path / "dir.h5ad").mkdir()
    with pytest.raises(FileExistsError, match=r"is a folder, so it is no \.h5ad"):
        check_output(tmp_path / "dir.h5ad", overwrite=True)
    monkeypatch.chdir(tmp_path)
    assert check_output("new.zarr") == tmp_path / "new.zarr"
