"""What has to work in an environment that has the hard dependencies only, and no checkout.

    cd elsewhere && VENV/bin/python smoke.py

After ``pip install`` of the wheel, or of the source distribution.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import files, metadata
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import numpy as np

import cfm


def refuses(call: Callable[[], object], extra: str, module: str) -> None:
    """A call that needs an extra names it, where it is not installed."""
    if find_spec(module) is not None:
        sys.stdout.write(f"{module} is installed here: not tried without\n")
        return
    try:
        call()
    except ImportError as error:
        assert f"cfm-tools[{extra}]" in str(error), error
    else:
        raise AssertionError(f"{extra} was not needed")


def main() -> None:
    """Import, look at what is there, call a virus, and ask for what is not installed."""
    assert "site-packages" in str(cfm.__file__), cfm.__file__
    assert cfm.__version__ == metadata("cfm-tools")["Version"]
    for room in cfm.__all__:
        getattr(cfm, room)
    shipped = {str(path) for path in files("cfm-tools") or []}
    assert "cfm/py.typed" in shipped
    assert not [path for path in shipped if path.startswith("tests")]
    checkpoints = cfm.hub.list_checkpoints()
    assert len(checkpoints) >= 6, checkpoints
    for name in checkpoints.index:
        cfm.hub.load_checkpoint(name)

    counts = cfm.datasets.toy_infection(seed=0)
    contrasts = cfm.pp.contrasts(counts, "virus", "none", by=["study", "donor"])
    cfm.tl.predict_virus(contrasts)
    with tempfile.TemporaryDirectory() as folder:
        contrasts.write_h5ad(Path(folder) / "calls.h5ad")
        contrasts.write_zarr(Path(folder) / "calls.zarr")
        assert ad.read_h5ad(Path(folder) / "calls.h5ad").n_obs == contrasts.n_obs
        cfm.tl.embed(contrasts)
        contrasts.write_h5ad(Path(folder) / "embedded.h5ad")
        parquet = Path(folder) / "reference.parquet"
        refuses(lambda: cfm.data.Reference.from_parquet(parquet), "parquet", "pyarrow")

    rng = np.random.default_rng(0)
    cohort = ad.AnnData(rng.normal(size=(40, 3)).astype(np.float32))
    cohort.obsm["X_pca"] = cohort.X
    cohort.obs["time"], cohort.obs["event"] = rng.exponential(size=40), rng.random(40) < 0.7
    refuses(
        lambda: cfm.tl.probe(cohort, ("time", "event"), use_rep="X_pca", task="survival"),
        "survival",
        "sksurv",
    )
    cells = cfm.datasets.toy_perturbation(seed=0)
    refuses(
        lambda: cfm.tl.evaluate_perturbation(
            cells, cells, key="perturbation", control="control", metrics="cell_eval"
        ),
        "eval",
        "cell_eval",
    )
    sys.stdout.write(f"cfm-tools {cfm.__version__} works here\n")


if __name__ == "__main__":
    main()
