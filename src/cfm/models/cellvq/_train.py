"""Training of CellVQ: what goes in, and the run."""

from __future__ import annotations

from typing import Any

from cfm.models.cellvq._core import CellVQCore


class Trainable(CellVQCore):
    """A CellVQ that can be trained."""

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Train; in the next commit."""
        raise NotImplementedError
