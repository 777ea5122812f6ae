"""Factor scores of signatures: where a CellPulse places a set of up and down genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cfm.models.cellpulse._core import CellPulseCore


@torch.inference_mode()
def signature_scores(
    model: CellPulseCore, effects: Iterable[np.ndarray], *, batch_size: int = 64
) -> np.ndarray:
    """Place profiles in the space of the model's gene-gene term.

    The factor scores of :class:`cfm.nn.LowRankLogistic`: the place of a profile from the
    directions of its strongest genes alone. A profile turned upside down lies at the opposite
    place, so that the cosine of two places changes its sign and nothing else.

    Parameters
    ----------
    model
        A CellPulse.
    effects
        ``(n_vocabulary,)`` rows, one at a time: log2 fold changes or −1 and 1, ``NaN`` or 0
        where a gene says nothing.
    batch_size
        Profiles at a time; the result does not depend on it.

    Returns
    -------
    ``(n, n_factors)`` float32 of unit length; 0 for a profile without any known gene.
    """
    model.module.eval()
    out: list[np.ndarray] = [np.empty((0, model.module.gene_factors.shape[1]), np.float32)]
    batch: list[np.ndarray] = []

    def flush() -> None:
        tokens = model.tokenizer.encode(np.stack(batch)).to(model.device)
        z = model.module.linear_scores(tokens)[2].float().cpu().numpy()
        length = np.linalg.norm(z, axis=1, keepdims=True)
        out.append(np.where(length > 1e-9, z / np.maximum(length, 1e-9), 0.0))
        batch.clear()

    for row in effects:
        batch.append(row)
        if len(batch) == batch_size:
            flush()
    if batch:
        flush()
    return np.concatenate(out)
