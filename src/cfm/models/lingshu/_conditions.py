"""Conditions of cells as tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Number of a condition that is not known, in every slot.
UNKNOWN = 0
#: Number of the control among the parts of perturbations; the parts themselves follow.
CONTROL = 1
FIRST_PART = 2
#: Fills up rows with fewer parts.
NO_PART = -1


class Conditions(NamedTuple):
    """What is known of ``b`` cells; 0 is *unknown* in every slot.

    Attributes
    ----------
    source
        ``(b,)`` int64, cell line, donor or cell type: level + 1.
    parts
        ``(b, k)`` int64, parts of the perturbation: −1 fills up, 1 is the control, part + 2.
    covariates
        ``(b, n_covariates)`` int64, level + 1 of each.
    depth
        ``(b,)`` float32, counts of the cell over the genes of the model; ``NaN`` is unknown.
    features
        ``(n, n_features)`` float32 standardised features by part, or ``None`` for those of the
        model: rows beyond its own are parts that were described when they were asked for.
    """

    source: Tensor
    parts: Tensor
    covariates: Tensor
    depth: Tensor
    features: Tensor | None = None

    def rows(self, index: Tensor | slice) -> Conditions:
        """Return the conditions of some of the cells."""
        source, parts, covariates, depth = (part[index] for part in self[:4])
        return Conditions(source, parts, covariates, depth, self.features)

    def to(self, device: torch.device) -> Conditions:
        """Return the same on a device."""
        source, parts, covariates, depth = (part.to(device) for part in self[:4])
        features = None if self.features is None else self.features.to(device)
        return Conditions(source, parts, covariates, depth, features)

    def control(self) -> Conditions:
        """Return the null condition: the control of the same source, covariates and depth."""
        parts = self.parts.new_full((len(self.parts), 1), CONTROL)
        return self._replace(parts=parts, features=None)
