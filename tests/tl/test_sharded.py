"""Two processes that apply a model together give what one gives, in order, and stop together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cfm.data import open_files
from tests._cellvq import counted_cells, small_model
from tests._two_processes import run_script
from tests.tl._sharded import TWO, results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two processes."""
    made = tmp_path_factory.mktemp("two")
    counted_cells(50).write_h5ad(made / "cells.h5ad")
    run_script("tests.tl._sharded", str(made), timeout=240)
    return made


def test_two_processes_give_what_one_gives(folder: Path, tmp_path: Path) -> None:
    counted_cells(50).write_h5ad(tmp_path / "cells.h5ad")
    one = results(tmp_path, **(TWO | {"devices": 1}))
    for number in range(2):
        found = np.load(folder / f"process{number}.npz")
        assert found["n"] == 2
        np.testing.assert_array_equal(found["filled"], one["filled"].layers["imputed"])
        assert found["n_imputed"] == one["filled"].uns["imputed"]["n_imputed"]
        assert found["codes"].tolist() == one["codes"].obs["cell_code"].astype(str).tolist()
        np.testing.assert_array_equal(found["read"], one["codes"].obsm["X_cellvq"][:])
        whole = one["cells"].obsm["X_cellvq"]  # made at once, not in chunks
        np.testing.assert_allclose(found["embedding"], whole, rtol=1e-5, atol=1e-6)


def test_an_error_in_one_process_stops_both(folder: Path) -> None:
    own, other = (folder / f"error{i}.txt" for i in range(2))
    assert own.read_text().startswith("ValueError: ")
    assert "not whole" in own.read_text()
    assert other.read_text().startswith("RuntimeError: Process 0 stopped: ValueError: ")


def test_processes_are_started_once(folder: Path) -> None:
    for number in range(2):
        said = (folder / f"number{number}.txt").read_text()
        assert "ask for 3 processes, but 2 were started together" in said


def test_if_one_process_is_killed_both_stop_and_go_on_when_called_again(tmp_path: Path) -> None:
    cells = counted_cells(50)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(RuntimeError, match="ended with"):
        run_script("tests.tl._sharded", str(tmp_path), "--kill", timeout=120)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / ".out.zarr.partial").glob("*.npz")}
    assert {"00000000.npz", "00000001.npz"} <= set(kept)
    assert "00000003.npz" not in kept
    run_script("tests.tl._sharded", str(tmp_path), "--kill", timeout=120)
    found = open_files(tmp_path / "out.zarr").obsm["X_cellvq"][:]
    whole = small_model().get_latent_representation(cells)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)
