"""Small models and good input for every tool, made once; genes are real, so that ids can be mapped.

Counts and effects are whole numbers, so that the same values exist in every dtype.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import anndata as ad
import numpy as np
import pandas as pd

from cfm.data._genes import _tables
from cfm.models import (
    UCE,
    BulkFormer,
    CellPulse,
    CellVQ,
    LingshuCell,
    PerturbationCountModel,
    Pulsar,
)
from tests import _cellvq, _lingshu, _uce

N_GENES = 50
#: The last genes of the data are known to no model.
UNKNOWN = ["unknown1", "unknown2"]


@cache
def genes() -> dict[str, str]:
    """Ensembl id of each gene that the models know, by symbol."""
    found: dict[str, str] = {"ISG15": "", "MX1": "", "IFIT1": ""}
    for number, symbol in _tables().ensembl.items():
        if symbol in found:
            found[symbol] = f"ENSG{number:011d}"
    for number, symbol in sorted(_tables().ensembl.items()):
        if len(found) < N_GENES - len(UNKNOWN):
            found.setdefault(symbol, f"ENSG{number:011d}")
    return found


def _frame(n: int) -> pd.DataFrame:
    """Columns that the tools ask for: everything is there in every combination."""
    i = np.arange(n)
    obs = pd.DataFrame(index=[f"cell{k:02d}" for k in i])
    obs["virus"] = pd.Categorical(np.array(["none", "A", "B"])[i % 3])
    obs["study"] = pd.Categorical(np.array(["s1", "s2"])[(i // 3) % 2])
    obs["donor_id"] = pd.Categorical(np.array(["d1", "d2", "d3", "d4"])[i * 4 // n])
    obs["cell_type"] = pd.Categorical(np.array(["B", "T"])[(i // 6) % 2])
    obs["cell_code"] = pd.Categorical(np.array(["0", "1", "2"])[(i // 2) % 3])
    return obs


def _adata(x: np.ndarray, **parts: object) -> ad.AnnData:
    adata = ad.AnnData(
        x.astype(np.float32),
        obs=_frame(len(x)),
        var=pd.DataFrame(index=[*genes(), *UNKNOWN]),
        **parts,
    )
    # a layer of the same values, where layer= is asked for
    adata.layers["same"] = adata.X.copy()
    return adata


@cache
def _counts(n: int) -> ad.AnnData:
    rng = np.random.default_rng(0)
    mean = rng.uniform(4, 60, N_GENES) * np.ones((n, 1))
    virus = np.arange(n) % 3
    mean[virus == 1, :8] *= 6
    mean[virus == 2, 8:16] *= 6
    mean[(np.arange(n) // 6) % 2 == 1, 16:24] *= 4
    return _adata(rng.poisson(mean))


def counts(n: int = 24) -> ad.AnnData:
    """Counts of cells of two kinds under two viruses."""
    return _counts(n).copy()


@cache
def _effects() -> ad.AnnData:
    rng = np.random.default_rng(1)
    x = rng.integers(-1, 2, size=(18, N_GENES))
    virus = np.arange(18) % 3
    x[virus == 1, :8] += 4
    x[virus == 2, 8:16] -= 4
    return _adata(x)


def effects() -> ad.AnnData:
    """Effects of contrasts, as whole numbers."""
    return _effects().copy()


@cache
def _logs() -> ad.AnnData:
    rng = np.random.default_rng(2)
    level = rng.integers(0, 4, size=(24, 1))
    x = 1.0 * rng.integers(0, 3, size=(24, N_GENES)) + level * rng.integers(0, 3, size=N_GENES)
    x[np.arange(24) % 3 == 1, :8] += 2
    return _adata(x + 0.25)


def logs() -> ad.AnnData:
    """Log expression; whole numbers and a quarter, for whole ones are taken for counts."""
    return _logs().copy()


@cache
def _embedded() -> ad.AnnData:
    adata = counts(40)
    rng = np.random.default_rng(3)
    kind = (adata.obs["cell_type"] == "T").to_numpy()
    rep = rng.normal(size=(40, 6)) + 2.0 * kind[:, None]
    adata.obsm["X_uce"] = rep.astype(np.float32)
    adata.obsm["X_pulsar"] = rep[:, ::-1].astype(np.float32).copy()
    return adata


def embedded() -> ad.AnnData:
    """Cells of four donors with what represents them."""
    return _embedded().copy()


@cache
def cellpulse() -> CellPulse:
    """With a classifier; hardly trained."""
    adata = effects()[:, :-2].copy()
    adata.obs["label"] = adata.obs["virus"].astype(str).replace("none", "uninfected")
    adata.obs["sample"] = adata.obs_names
    CellPulse.setup_anndata(adata, labels_key="label", study_key="study", sample_key="sample")
    model = CellPulse(adata, size="mini", dim=16, n_heads=2, n_tokens=32, n_factors=4)
    quiet = {"batch_size": 9, "tokens_per_profile": 24, "enable_progress_bar": False}
    model.train(max_steps=5, n_linear_steps=4, accelerator="cpu", **quiet)
    model.train_classifier()
    return model


@cache
def bulkformer() -> BulkFormer:
    """Untrained."""
    adata = logs()[:, :-2].copy()
    BulkFormer.setup_anndata(adata, study_key="study")
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2}
    return BulkFormer(adata, attention_dropout=0.0, ff_dropout=0.0, **sizes)


@cache
def cellvq() -> CellVQ:
    """Untrained."""
    model = CellVQ(vocabulary=list(genes()), properties=_cellvq.CLASSES, **_cellvq.SIZES)
    model.module.eval()
    return model


@cache
def lingshu() -> LingshuCell:
    """Untrained."""
    adata = counts()[:, :-2].copy()
    keys = {"source_key": "cell_type", "perturbation_key": "virus", "control": "none"}
    LingshuCell.setup_anndata(adata, **keys)
    return LingshuCell(adata, **_lingshu.SIZES)


@cache
def count_model() -> PerturbationCountModel:
    """Trained on all counts, without sources."""
    adata = counts()[:, :-2].copy()
    PerturbationCountModel.setup_anndata(adata, perturbation_key="virus", control="none")
    model = PerturbationCountModel(adata)
    model.train()
    return model


@cache
def uce() -> UCE:
    """The golden weights, whose genes are called as ours."""
    before, _uce.GENES = _uce.GENES, list(genes())[: _uce.N_GENES]
    try:
        folder = _uce.published(Path(mkdtemp()) / "uce")
    finally:
        _uce.GENES = before
    return UCE.from_pretrained(folder, n_heads=_uce.N_HEADS)


@cache
def pulsar() -> Pulsar:
    """Untrained, with labels of donors."""
    adata = embedded()
    Pulsar.setup_anndata(adata, use_rep="X_uce")
    return Pulsar(adata, dim=16, encoder_layers=1, encoder_ff=16, decoder_ff=16)


@cache
def pulsar_of_counts() -> Pulsar:
    """Untrained, with a projection of counts."""
    adata = embedded()[:, :-2].copy()
    Pulsar.setup_anndata(adata)
    return Pulsar(adata, dim=16, encoder_layers=1, encoder_ff=16, decoder_ff=16)
