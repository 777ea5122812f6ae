"""Run the published scGen in an environment of its own; see ``benchmarks.perturbation``.

``python _scgen_run.py TASK.npz CELLS.npz SEED`` imports nothing of cfm: scgen 2.1.0 needs an
older scvi-tools (0.19 was used, with pytorch-lightning 1.7 and torchmetrics 0.11).
"""

import sys

import anndata as ad
import numpy as np
import pandas as pd
import scgen
import scvi
import torch


def main(task: str, cells: str, seed: int) -> None:
    """Train on the cells of a task, as in scGen's tutorial, and predict those of its sources."""
    torch.set_num_threads(1)
    scvi.settings.seed = seed
    given = np.load(task, allow_pickle=False)
    obs = pd.DataFrame({name: given[name].astype(object) for name in ("group", "condition")})
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(given["x"], obs=obs)
    scgen.SCGEN.setup_anndata(adata, batch_key="condition", labels_key="group")
    model = scgen.SCGEN(adata)
    model.train(
        max_epochs=100,
        batch_size=32,
        early_stopping=True,
        early_stopping_patience=25,
        use_gpu=False,
        simple_progress_bar=False,
        enable_progress_bar=False,
        logger=False,
    )
    predicted, _ = model.predict(
        ctrl_key="control",
        stim_key="perturbed",
        adata_to_predict=adata[given["sources"]].copy(),
    )
    np.savez(cells, x=np.asarray(predicted.X, dtype=np.float32))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
