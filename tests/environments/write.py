"""Write what users keep, for the tests of the other environments to read.

    .venv-latest/bin/python -m tests.environments.write tests/environments/latest.zip
    .venv/bin/python -m tests.environments.write tests/environments/constraints.zip

The archive holds an AnnData with results (as ``.h5ad`` and ``.zarr``), a file that a tool wrote
through ``output=``, a checkpoint that was trained there, a reference of donors, and the chunks of a
run that was not finished.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import cfm
from cfm.data._result_store import ResultStore


def contrasts() -> ad.AnnData:
    """Contrasts to work on: a few genes of the toy infection, so that files are small."""
    counts = cfm.datasets.toy_infection(seed=0)
    found = cfm.pp.contrasts(counts, "virus", "none", by="study")
    return found[:, :300].copy()


def results() -> ad.AnnData:
    """Contrasts with calls, an embedding, and columns of every kind that obs may have."""
    adata = contrasts()
    cfm.tl.predict_virus(adata)
    cfm.tl.embed(adata, "cellpulse-mini")
    adata.obs["text"] = [f"sample {i}" for i in range(adata.n_obs)]
    adata.obs["missing"] = pd.Categorical(
        ["a", None] * (adata.n_obs // 2) + ["a"] * (adata.n_obs % 2)
    )
    adata.obs["flag"] = np.arange(adata.n_obs) % 2 == 0
    return adata


def write(folder: Path) -> None:
    """Write everything into a folder."""
    adata = results()
    adata.write_h5ad(folder / "results.h5ad", compression="gzip")
    adata.write_zarr(folder / "results.zarr")
    cfm.tl.embed(contrasts(), "cellpulse-mini", output=folder / "output.h5ad")
    trained = contrasts()
    cfm.models.CellPulse.setup_anndata(trained, labels_key="virus")
    model = cfm.models.CellPulse(trained, dim=16, n_layers=1, n_heads=1, n_tokens=64, n_factors=4)
    model.train(max_steps=2, accelerator="cpu", enable_progress_bar=False)
    model.save(folder / "checkpoint")
    np.save(folder / "latent.npy", model.get_latent_representation(trained))
    vectors = adata.obsm["X_cellpulse"].astype(np.float32)
    table = pd.DataFrame({"donor_id": adata.obs_names.astype(str), "embedding": list(vectors)})
    table.assign(disease_label=adata.obs["virus"].astype(str).to_numpy()).to_parquet(
        folder / "reference.parquet"
    )
    store = ResultStore(folder / "unfinished.h5ad")
    store.begin({"tool": "embed"})
    store.write(0, {"embedding": vectors, "name": np.asarray(table["donor_id"], dtype=str)})
    store.release()


def main(archive: Path) -> None:
    """Write the archive."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(Path(name))
        shutil.make_archive(str(archive.with_suffix("")), "zip", name)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
