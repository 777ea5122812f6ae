"""Contrasts with the fields that ``cfm.tl`` stores, made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from anndata import AnnData

from tests.pl._stored import make_predicted


@pytest.fixture
def predicted() -> Callable[..., AnnData]:
    """Factory of called contrasts."""
    return make_predicted
