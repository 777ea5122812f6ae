"""A small model of each kind: how it is made, trained and read. Made once, read by many tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import torch

from cfm.models import UCE, CellPulse, PerturbationCountModel, Pulsar, VirtualInstrument
from tests import _bulk, _lingshu, _planted_codes, _pulsar, _toy, _uce

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
N_DONORS, WIDTH = 24, 6
#: Conditions of the donors of :func:`paired`.
CONDITIONS = pd.DataFrame(np.eye(3, 5), index=["A", "B", "C"])


def paired(seed: int = 0) -> ad.AnnData:
    """Donors without a condition and under three; odd donors shift the other way.

    ``X`` are their embeddings.
    """
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(N_DONORS, WIDTH))
    base[:, 0] = np.where(np.arange(N_DONORS) % 2, 3.0, -3.0)
    shifts = 2 * rng.normal(size=(3, WIDTH))
    direction = np.where(base[:, :1] > 0, 1.0, -1.0)
    rows, obs = [base], [("none", i) for i in range(N_DONORS)]
    for name, shift in zip(CONDITIONS.index, shifts, strict=True):
        rows.append(base + direction * shift)
        obs += [(name, i) for i in range(N_DONORS)]
    x = np.concatenate(rows).astype(np.float32)
    frame = pd.DataFrame(obs, columns=["cytokine", "person"])
    frame["donor_id"] = "donor" + frame.pop("person").astype(str)
    frame.index = frame["donor_id"] + "-" + frame["cytokine"]
    return ad.AnnData(x, obs=frame.astype("category"), obsm={"X_pulsar": x.copy()})


def weights(model: Any) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().float().ravel() for p in model.module.state_dict().values()])


class Small(NamedTuple):
    """A model class with toy data, sizes and settings under which it trains in a second."""

    cls: Any
    data: Callable[[], ad.AnnData]
    setup: dict[str, Any]
    sizes: dict[str, Any]
    training: dict[str, Any]
    read: Callable[[Any, ad.AnnData], np.ndarray]

    def registered(self, adata: ad.AnnData | None = None, **setup: Any) -> ad.AnnData:
        """Return toy data that are registered."""
        adata = self.data() if adata is None else adata
        self.cls.setup_anndata(adata, **self.setup | setup)
        return adata

    def make(self, adata: ad.AnnData | None = None, **sizes: Any) -> Any:
        """Return a model of toy data, not trained yet."""
        return self.cls(self.registered(adata), **self.sizes | sizes)

    def train(self, model: Any, **settings: Any) -> None:
        """Train a model for some steps."""
        model.train(**self.training | settings)


def _latent(model: Any, adata: ad.AnnData) -> np.ndarray:
    return np.asarray(model.get_latent_representation(adata, precision="float32"))


def _effect_latent(model: Any, adata: ad.AnnData) -> np.ndarray:
    return np.asarray(model.get_latent_representation(adata))


_CONDITIONS = {"source_key": "cell_type", "perturbation_key": "drug", "control": "none"}

#: Models with the common ``train``.
TRAINED = {
    "BulkFormer": Small(
        _bulk.BulkFormer,
        _bulk.toy_log_tpm,
        {"study_key": "study"},
        _bulk.SIZES | {"ff_dropout": 0.2},
        _bulk.TRAINING | {"accelerator": "cpu", "max_steps": 6, "redraw_interval": 2},
        _latent,
    ),
    "CellPulse": Small(
        CellPulse,
        _toy.toy_contrasts,
        {"study_key": "study", "sample_key": "sample"},
        _toy.SIZES,
        _toy.TRAINING | {"accelerator": "cpu", "max_steps": 8, "n_linear_steps": 3},
        _effect_latent,
    ),
    "CellVQ": Small(
        _planted_codes.CellVQ,
        lambda: _planted_codes.planted_cells(60),
        {"labels_keys": ["cell_type"], "study_key": "study"},
        _planted_codes.SMALL,
        _planted_codes.TRAINING | {"max_steps": 4, "code_label_weight": 1.0},
        _latent,
    ),
    "LingshuCell": Small(
        _lingshu.LingshuCell,
        lambda: _lingshu.toy_counts(n=260),
        _CONDITIONS,
        _lingshu.SIZES,
        _lingshu.TRAINING | {"max_steps": 4},
        _lingshu.states,
    ),
    "Pulsar": Small(
        Pulsar,
        lambda: _pulsar.donors((30, 20, 25, 22, 35, 27, 24, 26), width=10),
        {"use_rep": "X_uce", "labels_key": "disease"},
        {"dim": 32, "encoder_layers": 1, "encoder_ff": 64, "decoder_ff": 64},
        QUIET | {"max_steps": 4, "n_cells": 20, "batch_size": 3},
        _latent,
    ),
    "VirtualInstrument": Small(
        VirtualInstrument,
        paired,
        {"condition_key": "cytokine"},
        {"conditions": CONDITIONS, "hidden_dim": 16},
        QUIET | {"control": "none", "max_steps": 4, "batch_size": 20},
        lambda model, adata: model.predict(adata.X, "B"),
    ),
}
#: All models that are saved.
SAVED = TRAINED | {
    "PerturbationCountModel": Small(
        PerturbationCountModel,
        lambda: _lingshu.toy_counts(n=260),
        _CONDITIONS,
        {},
        {},
        lambda model, adata: model.predict_effects("x").to_numpy(),
    ),
    "UCE": Small(UCE, _uce.cells, {}, {}, {}, _latent),
}


@cache
def trained(name: str) -> Any:
    """Return the trained model of a kind. Not to be changed by a test."""
    if name == "UCE":
        files = _uce.published(Path(tempfile.mkdtemp()) / "released")
        return UCE.from_pretrained(files, n_heads=_uce.N_HEADS)
    small = SAVED[name]
    model = small.make()
    small.train(model)
    return model


@cache
def saved(name: str) -> Path:
    """Return the folder of that model. Not to be changed by a test."""
    folder: Path = trained(name).save(Path(tempfile.mkdtemp()) / "first", card="# Card\n\nText.")
    return folder
