"""Models are loaded, used and trained on inside and outside of ``torch.inference_mode``."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import cfm
from cfm.models import CellVQ, load_model
from tests import _cellvq
from tests._small import SAVED, TRAINED, saved


def embedded(adata: ad.AnnData, model: Any) -> np.ndarray:
    return np.asarray(cfm.tl.embed(adata, model, key_added="X", copy=True).obsm["X"])


def used(name: str, model: Any) -> list[np.ndarray]:
    """What a model makes of its toy data, by itself and through a tool."""
    adata = SAVED[name].data()
    found = [SAVED[name].read(model, adata)]
    if name == "BulkFormer":
        adata.X[:, :20] = np.nan
        found.append(np.asarray(cfm.tl.impute(adata, model, copy=True).layers["imputed"]))
    elif name == "CellVQ":
        found.append(cfm.tl.cell_codes(adata, model, copy=True).obs.astype(str).to_numpy())
    elif name == "LingshuCell":
        cells = model.generate(3, source="B", perturbation="x", seed=0, n_steps=2)
        found += [cells.X.toarray(), model.simulate(adata, ["x"], n_steps=2).X.toarray()]
    elif name == "Pulsar":
        found.append(np.asarray(cfm.tl.embed_donors(adata, "donor_id", model=model).X))
    return found


@pytest.mark.parametrize("name", SAVED)
def test_inside_and_outside_are_the_same(name: str) -> None:
    expected = used(name, load_model(saved(name), device="cpu"))
    for guard in (torch.inference_mode, torch.no_grad):
        with guard():
            model = load_model(saved(name), device="cpu")
            inside = used(name, model)
        outside = used(name, model)
        for found in (inside, outside):
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
        if name in TRAINED:
            before = {k: v.clone() for k, v in model.module.state_dict().items()}
            model.attach(SAVED[name].registered())
            steps = {"n_linear_steps": 1} if name == "CellPulse" else {}
            SAVED[name].train(model, max_steps=2, **steps)
            after = model.module.state_dict()
            assert any(not torch.equal(after[k], v) for k, v in before.items() if k in after)
            used(name, model)
            with guard():
                used(name, model)


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
        found = embedded(cells, inside)
    np.testing.assert_allclose(found, embedded(cells, outside), atol=1e-6)
