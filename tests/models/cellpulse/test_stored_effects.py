"""Contrasts that are not held in memory train the same model as those that are."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import cfm.models.cellpulse._model as module
from cfm.models import CellPulse
from cfm.models.cellpulse._gene_factors import fitted_rows
from tests._toy import SIZES, TRAINING, toy_contrasts


def model_of(adata: ad.AnnData, **arguments) -> CellPulse:
    CellPulse.setup_anndata(adata, study_key="study", sample_key="sample")
    return CellPulse(adata, **SIZES, **arguments)


def backed(folder: Path) -> ad.AnnData:
    toy_contrasts().write_h5ad(folder / "toy.h5ad")
    return ad.read_h5ad(folder / "toy.h5ad", backed="r")


@pytest.mark.parametrize("store", [lambda folder: toy_contrasts(), backed])
def test_training_does_not_depend_on_what_is_held(store, tmp_path, monkeypatch) -> None:
    expected = model_of(toy_contrasts())
    expected.train(max_steps=3, n_linear_steps=1, **TRAINING)
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 0)
    monkeypatch.setattr(CellPulse, "registered_effects", None)  # that would hold everything
    found = model_of(store(tmp_path))
    found.train(max_steps=3, n_linear_steps=1, **TRAINING)
    for name, tensor in expected.module.state_dict().items():
        assert torch.equal(tensor, found.module.state_dict()[name]), name


def test_values_are_checked_when_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 0)
    adata = toy_contrasts()
    adata.X[3, 4] = np.inf
    with pytest.raises(ValueError, match="holds infinite values"):
        model_of(adata)


def test_factors_are_fitted_to_some_of_many_rows() -> None:
    groups = np.array(["large"] * 900 + ["small"] * 30 + ["middle"] * 70, dtype=object)
    assert fitted_rows(groups, n_most=1000).tolist() == list(range(1000))
    rows = fitted_rows(groups, n_most=200, seed=3)
    assert (np.diff(rows) > 0).all()
    names, counts = np.unique(groups[rows].astype(str), return_counts=True)
    assert dict(zip(names, counts.tolist(), strict=True)) == {
        "large": 100,
        "middle": 70,
        "small": 30,
    }
    assert rows.tolist() == fitted_rows(groups, n_most=200, seed=3).tolist()
    assert rows.tolist() != fitted_rows(groups, n_most=200, seed=4).tolist()
