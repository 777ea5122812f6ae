"""Models are loaded, used and trained on inside and outside of ``torch.inference_mode``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import cfm
from cfm.models import CellPulse, CellVQ, load_model
from tests import _bulk, _cellvq, _lingshu, _pulsar, _uce
from tests.hub._hostile import saved

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@dataclass
class Case:
    """What a model does with data; ``train`` gets a model that these were attached to."""

    data: Callable[[], ad.AnnData]
    use: Callable[[Any, ad.AnnData], list[np.ndarray]]
    train: Callable[[Any, ad.AnnData], None] | None


def effects() -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"study": np.repeat(["s1", "s2", "s3"], 8)}, index=[f"c{i}" for i in range(24)]
    )
    var = pd.DataFrame(index=[f"G{i}" for i in range(30)])
    return ad.AnnData(rng.normal(size=(24, 30)).astype(np.float32), obs=obs, var=var)


def embedded(adata: ad.AnnData, model: Any, key: str, **arguments: Any) -> np.ndarray:
    made = cfm.tl.embed(adata, model, copy=True, **arguments)
    return np.asarray(made.obsm[key])


def train_cellpulse(model: Any, adata: ad.AnnData) -> None:
    CellPulse.setup_anndata(adata, study_key="study")
    model.attach(adata)
    model.train(max_steps=2, batch_size=8, **QUIET)


def use_bulkformer(model: Any, adata: ad.AnnData) -> list[np.ndarray]:
    adata.X[:, :20] = np.nan
    made = cfm.tl.impute(adata, model, copy=True)
    return [embedded(adata, model, "X_bulkformer"), np.asarray(made.layers["imputed"])]


def train_bulkformer(model: Any, adata: ad.AnnData) -> None:
    type(model).setup_anndata(adata, study_key="study")
    model.attach(adata)
    model.train(max_steps=2, batch_size=16, **QUIET)


def use_cellvq(model: Any, adata: ad.AnnData) -> list[np.ndarray]:
    made = cfm.tl.cell_codes(adata, model, copy=True)
    codes = made.obs.select_dtypes(["number", "category"]).astype(str).to_numpy()
    return [embedded(adata, model, "X_cellvq"), codes]


def train_cellvq(model: Any, adata: ad.AnnData) -> None:
    type(model).setup_anndata(adata)
    model.attach(adata)
    model.train(max_steps=2, batch_size=4, **QUIET)


def use_lingshu(model: Any, adata: ad.AnnData) -> list[np.ndarray]:
    made = model.generate(3, source="B", perturbation="x", seed=0, n_steps=2)
    moved = model.simulate(adata, ["x"], n_steps=2)
    return [np.asarray(cells.X.todense()) for cells in (made, moved)]


def train_lingshu(model: Any, adata: ad.AnnData) -> None:
    type(model).setup_anndata(adata, **_lingshu.KEYS)
    model.attach(adata)
    model.train(max_steps=2, batch_size=16, **QUIET)


def use_pulsar(model: Any, adata: ad.AnnData) -> list[np.ndarray]:
    return [np.asarray(cfm.tl.embed_donors(adata, "donor_id", model=model).X)]


def train_pulsar(model: Any, adata: ad.AnnData) -> None:
    type(model).setup_anndata(adata, use_rep="X_uce")
    model.attach(adata)
    with pytest.warns(UserWarning, match="its head is removed"):
        model.train(max_steps=2, n_cells=10, **QUIET)


def pairs() -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"donor_id": [f"d{i}" for i in range(8)] * 2})
    obs["cytokine"] = np.repeat(["none", "a"], 8)
    obs.index = [f"r{i}" for i in range(16)]
    width = load_model(saved("VirtualInstrument")).size.donor_dim
    return ad.AnnData(obs=obs, obsm={"X_pulsar": rng.normal(size=(16, width)).astype(np.float32)})


def train_instrument(model: Any, adata: ad.AnnData) -> None:
    type(model).setup_anndata(adata, "cytokine")
    model.attach(adata)
    model.train(control="none", max_epochs=1, **QUIET)


CASES = {
    "BulkFormer": Case(_bulk.toy_log_tpm, use_bulkformer, train_bulkformer),
    "CellPulse": Case(effects, lambda m, a: [embedded(a, m, "X_cellpulse")], train_cellpulse),
    "CellVQ": Case(lambda: _cellvq.counted_cells(12), use_cellvq, train_cellvq),
    "LingshuCell": Case(lambda: _lingshu.toy_counts(n=60), use_lingshu, train_lingshu),
    "Pulsar": Case(_pulsar.donors, use_pulsar, train_pulsar),
    "UCE": Case(_uce.cells, lambda m, a: [embedded(a, m, "X_uce", sample_size=32)], None),
    "VirtualInstrument": Case(
        pairs, lambda m, a: [m.predict(a.obsm["X_pulsar"], "a")], train_instrument
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_inside_and_outside_are_the_same(name: str) -> None:
    case = CASES[name]
    expected = case.use(load_model(saved(name), device="cpu"), case.data())
    for guard in (torch.inference_mode, torch.no_grad):
        with guard():
            model = load_model(saved(name), device="cpu")
            inside = case.use(model, case.data())
        outside = case.use(model, case.data())
        for found in (inside, outside):
            assert len(found) == len(expected)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
        if case.train is not None:
            before = {k: v.clone() for k, v in model.module.state_dict().items()}
            case.train(model, case.data())
            after = model.module.state_dict()
            assert any(not torch.equal(after[k], v) for k, v in before.items() if k in after)
            case.use(model, case.data())
            with guard():
                case.use(model, case.data())


def test_a_virus_is_predicted_inside() -> None:
    model = load_model("cellpulse-virus", device="cpu")
    rng = np.random.default_rng(0)
    genes = list(model.vocabulary.genes[:10_000])
    changes = rng.normal(size=(3, 10_000)).astype(np.float32)
    adata = ad.AnnData(changes, var=pd.DataFrame(index=genes))
    expected = cfm.tl.predict_virus(adata, model, copy=True).obs
    with torch.inference_mode():
        found = cfm.tl.predict_virus(adata, "cellpulse-virus", copy=True).obs
    pd.testing.assert_frame_equal(found, expected)


def test_a_model_made_inside_embeds_there() -> None:
    cells = _cellvq.counted_cells(6)
    outside = CellVQ(vocabulary=_cellvq.GENES, **_cellvq.SIZES)
    with torch.inference_mode():
        inside = CellVQ(vocabulary=_cellvq.GENES, **_cellvq.SIZES)
        found = embedded(cells, inside, "X_cellvq")
    np.testing.assert_allclose(found, embedded(cells, outside, "X_cellvq"), atol=1e-6)
