"""A program in which two processes apply models together; as a script, ``FOLDER`` gets results.

``python -m tests.tl._sharded FOLDER`` starts a second process, which runs it again. With
``--kill`` the second process is killed in its second chunk, if ``FOLDER/killed`` is not there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

import cfm
from cfm.models import CellVQ
from cfm.nn._distributed import process_number
from tests._bulk import N_GENES, toy_log_tpm
from tests._cellvq import counted_cells, small_model

SIZES = {"dim": 8, "n_layers": 1, "n_heads": 1}
TWO = {"devices": 2, "strategy": "ddp", "chunk_size": 8}


def samples() -> ad.AnnData:
    """Samples of which one chunk lacks nothing."""
    made = toy_log_tpm(n=20)
    made.X[::2, 3] = np.nan
    made.X[8:16, 3] = 1.0
    return made


def bulkformer() -> cfm.models.BulkFormer:
    """A model without training."""
    genes = [f"GENE{i}" for i in range(N_GENES)]
    graph = ([[0, 1], [1, 2]], [0.9, 0.8])
    return cfm.models.BulkFormer(vocabulary=genes, graph=graph, **SIZES)


def results(folder: Path, **shared: object) -> dict[str, ad.AnnData]:
    """Apply models to data in memory and to a file."""
    cells, filled = counted_cells(50), samples()
    cfm.tl.embed(cells, small_model(), **shared)
    cfm.tl.impute(filled, bulkformer(), batch_size=4, **shared)
    codes = cfm.tl.cell_codes(
        folder / "cells.h5ad", small_model(), min_cells=2, output=folder / "codes.zarr", **shared
    )
    return {"cells": cells, "filled": filled, "codes": codes}


def main(folder: Path) -> None:
    """Write what this process has of all results."""
    found = results(folder, **TWO)
    number, n = process_number()
    np.savez(
        folder / f"process{number}.npz",
        n=n,
        embedding=found["cells"].obsm["X_cellvq"],
        filled=found["filled"].layers["imputed"],
        n_imputed=found["filled"].uns["imputed"]["n_imputed"],
        codes=found["codes"].obs["cell_code"].astype(str).to_numpy(dtype=str),
        read=np.asarray(found["codes"].obsm["X_cellvq"][:]),
    )
    broken = counted_cells(50)
    broken.X[20, 3] = 0.5  # in the third chunk, which the first process makes
    try:
        cfm.tl.embed(broken, small_model(), **TWO)
    except (ValueError, RuntimeError) as error:
        (folder / f"error{number}.txt").write_text(f"{type(error).__name__}: {error}")
    try:
        cfm.tl.embed(broken, small_model(), **(TWO | {"devices": 3}))
    except RuntimeError as error:
        (folder / f"number{number}.txt").write_text(str(error))


class Killed(CellVQ):
    """Kills the second process once."""

    folder: Path

    def get_latent_representation(self, adata: Any = None, **kwargs: Any) -> np.ndarray:
        mark = self.folder / "killed"
        if process_number()[0] == 1 and adata.obs_names[0] == "cell24" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().get_latent_representation(adata, **kwargs)


def killed(folder: Path) -> None:
    """Embed a file; see above."""
    Killed.__name__ = "CellVQ"
    model = small_model()
    model.__class__, model.folder = Killed, folder
    cfm.tl.embed(folder / "cells.h5ad", model, output=folder / "out.zarr", **TWO)


if __name__ == "__main__":
    (killed if "--kill" in sys.argv else main)(Path(sys.argv[1]))
