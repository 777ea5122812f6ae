"""What a change of a donor's embedding means for the donor's cells, through the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfm.models.pulsar._module import PulsarModule


@torch.no_grad()
def changed_cells(
    module: PulsarModule,
    cells: np.ndarray,
    donor: np.ndarray,
    change: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Decode the cells of donors with their embedding and with a changed one.

    The difference of the two is added to the cells, so that what the decoder cannot reconstruct
    stays as it was.

    Parameters
    ----------
    module
        Network with a decoder.
    cells
        ``(n, input_dim)`` representations.
    donor
        ``(n,)`` names; the cells of a donor are one set.
    change
        Takes ``(1, dim)`` donor embeddings to those after the change.

    Returns
    -------
    ``(n, input_dim)`` float32.

    Raises
    ------
    ValueError
        If there is no decoder, or cells are not finite.
    """
    if not np.isfinite(cells).all():
        raise ValueError("Representations of cells are NaN or infinite; drop those cells.")
    module.eval()
    device = module.cls_embedding.device
    out = np.array(cells, dtype=np.float32)
    for name in np.unique(donor.astype(str)):
        rows = np.flatnonzero(donor.astype(str) == name)
        own = torch.from_numpy(out[rows]).to(device)[None]
        encoded = module.encode(own)
        cls, tokens = encoded[:, 0], encoded[:, 1:]
        moved = torch.from_numpy(change(cls.cpu().numpy())).to(cls)
        before, after = (module.decode(c, tokens)[0, 1:] for c in (cls, moved))
        out[rows] += (after - before).cpu().numpy()
    return out
