"""Models that answer at once, and a small study on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests._demo_tools import refuse_all
from tests.cli.demo._demo import CARD, small_study, stand_in_embed, stand_in_predict


@pytest.fixture(autouse=True)
def _any_model(monkeypatch):
    """Names of models pass, so that a bad table is what is noticed, bundled models or not."""
    monkeypatch.setattr("cfm.hub.resolve", Path)


@pytest.fixture
def stand_in(monkeypatch):
    """Replace the model tools and the checkpoint, so that a run takes seconds."""
    checkpoint = SimpleNamespace(
        name="stand-in",
        model="CellPulse",
        sha256="b" * 64,
        config={"classifier_studies": ["study1"]},
        files={"history.csv": "epoch,train_loss,validation_loss\n0,2,2.1\n1,1,1.2\n"},
        card=CARD,
    )
    monkeypatch.setattr("cfm._report._figures.MAX_GENE_FIGURES", 1)
    monkeypatch.setattr("cfm.tl.embed", stand_in_embed, raising=False)
    monkeypatch.setattr("cfm.tl.predict_virus", stand_in_predict, raising=False)
    monkeypatch.setattr("cfm.hub.load_checkpoint", lambda source: checkpoint)
    refuse_all(monkeypatch)
    return checkpoint


@pytest.fixture
def study(tmp_path) -> Path:
    """Counts of two studies with three viruses, written as h5ad; gene names are real."""
    adata = small_study()
    path = tmp_path / "counts.h5ad"
    adata.write_h5ad(path)
    return path
