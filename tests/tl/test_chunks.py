"""Chunks of rows: what a stopped run goes on from, and what is said meanwhile."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import cfm
from cfm.data import _matrix, _result_store
from cfm.models import CellVQ
from cfm.tl import _run
from tests._cellvq import counted_cells, small_model
from tests._toy import toy_checkpoint, toy_contrasts, toy_model


@pytest.fixture(autouse=True)
def chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfm.settings, "chunk_size", 10)


class Counting(CellVQ):
    """Counts the rows that it embeds, and stops at a chunk if it is told to."""

    seen: list[int]
    stop: tuple[int, BaseException] | None = None

    def get_latent_representation(self, adata: Any = None, **kwargs: Any) -> np.ndarray:
        if self.stop is not None and len(self.seen) == self.stop[0]:
            raise self.stop[1]
        self.seen.append(adata.n_obs)
        return super().get_latent_representation(adata, **kwargs)


Counting.__name__ = "CellVQ"  # results are named after it


def _counting(**arguments: Any) -> Counting:
    model = small_model(**arguments)
    model.__class__ = Counting
    model.seen = []
    return model


@pytest.fixture
def counting() -> Counting:
    return _counting()


@pytest.fixture
def cells() -> ad.AnnData:
    return counted_cells(50)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("no power")])
def test_a_stopped_run_goes_on(
    counting: Counting, cells: ad.AnnData, tmp_path: Path, stop: BaseException, suffix: str
) -> None:
    expected = small_model().get_latent_representation(cells)
    out = tmp_path / f"out{suffix}"
    counting.stop = 3, stop
    with pytest.raises(type(stop)) as caught:
        cfm.tl.embed(cells, counting, output=out)
    if isinstance(stop, KeyboardInterrupt):
        assert "the same call continues" in caught.value.__notes__[0]
    assert not out.exists()
    counting.stop = None
    found = cfm.tl.embed(cells, counting, output=out)
    assert counting.seen == [10] * 5
    np.testing.assert_allclose(found.obsm["X_cellvq"][:], expected, rtol=1e-5, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_a_run_that_only_lacked_its_name_computes_nothing(
    counting: Counting, cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(_result_store, "write_results", full)
        with pytest.raises(OSError, match="No room left") as caught:
            cfm.tl.embed(cells, counting, output=tmp_path / "out.zarr")
    assert caught.value.errno == errno.ENOSPC
    found = cfm.tl.embed(cells, counting, output=tmp_path / "out.zarr")
    assert counting.seen == [10] * 5
    assert found.obsm["X_cellvq"].shape[0] == 50


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 8}, "batch_size was 64 and is now 8"),
        ({"representation": "code"}, "representation was None and is now 'code'"),
        ({"names": True}, "obs_names changed"),
        ({"weights": True}, "weights changed"),
    ],
)
def test_another_run_does_not_go_on_with_it(
    counting: Counting, cells: ad.AnnData, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    out = tmp_path / "out.h5ad"
    counting.stop = 3, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        cfm.tl.embed(cells, counting, output=out)
    counting.stop = None
    if change.pop("names", False):
        cells.obs_names = [f"{name}b" for name in cells.obs_names]
    if change.pop("weights", False):
        next(counting.module.parameters()).data.view(-1)[7] += 1e-3
    arguments = {"output": out} | change
    with pytest.raises(ValueError, match=f"another run .*{named}"):
        cfm.tl.embed(cells, counting, **arguments)
    found = cfm.tl.embed(cells, counting, **arguments, overwrite=True)
    assert sum(counting.seen[3:]) == 50
    np.testing.assert_allclose(
        found.obsm["X_cellvq"][:],
        counting.get_latent_representation(
            cells, representation=change.get("representation", "cell")
        ),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.slow
def test_a_killed_program_goes_on(tmp_path: Path) -> None:
    contrasts = toy_contrasts()
    contrasts.write_h5ad(tmp_path / "in.h5ad")
    script = tmp_path / "run.py"
    script.write_text(
        "import logging, sys, cfm\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stderr)\n"
        "cfm.settings.chunk_size = 1\n"
        f"model = {str(toy_checkpoint())!r}\n"
        "cfm.tl.embed('in.h5ad', model, output='out.zarr')\n"
    )
    command = [sys.executable, str(script)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / ".out.zarr.partial"
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.npz"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    n_kept = len(list(folder.glob("*.npz")))
    assert 2 <= n_kept < contrasts.n_obs
    assert not (tmp_path / "out.zarr").exists()
    again = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    assert f"{n_kept} chunks are finished" in again.stderr
    found = cfm.data.open_files(tmp_path / "out.zarr").obsm["X_cellpulse"][:]
    expected = toy_model().get_latent_representation(contrasts)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_only_the_next_chunk_is_read_meanwhile(
    counting: Counting, cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_read: list[tuple[int, int]] = []

    def read(matrix: Any, rows: np.ndarray) -> Any:
        n_read.append((int(rows[0]), len(rows)))
        return _matrix.read_rows(matrix, rows)

    ahead = []
    plain = counting.get_latent_representation

    def slow(adata: Any, **kwargs: Any) -> np.ndarray:
        deadline = time.monotonic() + 10
        while len(n_read) < min(len(ahead) + 2, 5) and time.monotonic() < deadline:
            time.sleep(0.001)
        ahead.append(len(n_read))
        return plain(adata, **kwargs)

    monkeypatch.setattr(_run, "read_rows", read)
    monkeypatch.setattr(counting, "get_latent_representation", slow)
    cfm.tl.embed(cells, counting, output=tmp_path / "out.zarr")
    assert (ahead, n_read) == ([2, 3, 4, 5, 5], [(row, 10) for row in range(0, 50, 10)])


def test_an_error_of_reading_reaches_the_caller(
    counting: Counting, cells: ad.AnnData, tmp_path: Path
) -> None:
    cells.X[33, 4] = 0.5
    with pytest.raises(ValueError, match="values that are not whole"):
        cfm.tl.embed(cells, counting, output=tmp_path / "out.zarr")


def test_warnings_are_said_once_and_counts_added_up(tmp_path: Path) -> None:
    model = small_model(vocabulary=[f"G{i}" for i in range(45)])
    cells = counted_cells(50, genes=[*model.vocabulary.genes[:10], "X1"])
    cells.X[[2, 3, 31], :10] = 0
    with pytest.warns(UserWarning) as raised:
        cfm.tl.embed(cells, model, output=tmp_path / "out.zarr")
    caught = [w for w in raised if w.category is UserWarning]
    texts = [str(w.message) for w in caught]
    assert len(texts) == 2
    assert texts[0].startswith("Only 22% of the model's 45 genes are measured")
    assert texts[1].startswith("3 of 50 cells express none")
    assert {Path(w.filename).name for w in caught} == {Path(__file__).name}


def test_a_warning_that_is_an_error_stops_at_the_first_chunk(tmp_path: Path) -> None:
    genes = [f"G{i}" for i in range(45)]
    model = _counting(vocabulary=genes)
    few = counted_cells(50, genes=genes[:10])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="Only 22%"):
            cfm.tl.embed(few, model, output=tmp_path / "out.zarr")
    assert len(model.seen) == 1


def test_chunks_are_logged(
    counting: Counting, cells: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counting.stop = 2, KeyboardInterrupt()
    with caplog.at_level(logging.INFO, logger="cfm"):
        with pytest.raises(KeyboardInterrupt):
            cfm.tl.embed(cells, counting, output=tmp_path / "out.zarr")
        counting.stop = None
        cfm.tl.embed(cells, counting, output=tmp_path / "out.zarr")
    told = [(r.event, r.done) for r in caplog.records if hasattr(r, "event")]
    assert told == [
        ("chunk", 1),
        ("chunk", 2),
        ("resumed", 2),
        ("chunk", 3),
        ("chunk", 4),
        ("chunk", 5),
    ]
    last = caplog.records[-1]
    assert (last.total, last.rows) == (5, 10)
    assert last.seconds > 0


def test_other_statistics_of_the_same_codes_need_no_model(
    cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(ValueError, match="n_groups is 60"):
        cfm.tl.cell_codes(cells, small_model(), n_groups=60, output=out)
    monkeypatch.setattr(CellVQ, "_encoded", None)
    found = cfm.tl.cell_codes(cells, small_model(), n_groups=1, output=out)
    assert found.obs["cell_code_group"].tolist() == ["0"] * 50


def test_chunks_of_another_size_are_another_run(
    counting: Counting, cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.h5ad"
    counting.stop = 3, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        cfm.tl.embed(cells, counting, output=out)
    counting.stop = None
    monkeypatch.setattr(cfm.settings, "chunk_size", 20)
    with pytest.raises(ValueError, match="chunk_size was 10 and is now 20"):
        cfm.tl.embed(cells, counting, output=out)
    assert cfm.tl.embed(cells, counting, output=out, overwrite=True).n_obs == 50
    assert counting.seen[3:] == [20, 20, 10]


@pytest.mark.parametrize("value", [0, 2.5, True, "8"])
def test_a_chunk_has_a_whole_number_of_rows(value: Any) -> None:
    with pytest.raises(ValueError, match=r"chunk_size=.*; expected a whole number"):
        cfm.settings.chunk_size = value


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AttributeError, match="no setting 'chunksize'; expected chunk_size"):
        cfm.settings.chunksize = 8
