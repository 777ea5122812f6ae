"""Fixtures of the trained toy model and its data, for all tests (a plugin of tests/conftest.py)."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import pytest

from cfm.models import CellPulse
from tests._toy import toy_checkpoint, toy_contrasts, toy_model


@pytest.fixture
def contrasts() -> ad.AnnData:
    """Toy contrasts: a fresh copy for each test."""
    return toy_contrasts()


@pytest.fixture
def model() -> CellPulse:
    """The trained toy model, shared: a test must not change it."""
    return toy_model()


@pytest.fixture
def checkpoint() -> Path:
    """Folder of the trained toy model, shared: a test must not change it."""
    return toy_checkpoint()


@pytest.fixture
def fresh(checkpoint: Path) -> CellPulse:
    """The trained toy model, loaded anew: a test may change it."""
    return CellPulse.load(checkpoint)
