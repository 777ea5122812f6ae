"""What a change of a donor's embedding means for the donor's cells, through the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from cfm.models.pulsar._module import PulsarModule

#: One part in seven of a cell's elements is shown at a time: 85 % are hidden in training.
_N_PARTS = 7


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
        cls = encoded[:, 0]
        moved = torch.from_numpy(change(cls.cpu().numpy())).to(cls)
        tokens = _tokens(module, own, encoded[:, 1:])
        for part in tokens:
            before, after = (module.decode(c, part)[0, 1:] for c in (cls, moved))
            out[rows] += (after - before).cpu().numpy() / len(tokens)
    return out


def _tokens(module: PulsarModule, cells: Tensor, encoded: Tensor) -> list[Tensor]:
    """Return tokens of cells as the decoder was trained to read them.

    A decoder that was trained on cells with most elements hidden reads them so: every element is
    shown in one of the parts. One without such an input network gets the encoder's tokens.
    """
    if not module.size.masked_input:
        return [encoded]
    x = module.standardise(cells)
    part = torch.arange(x.shape[-1], device=x.device) % _N_PARTS
    return [
        module.in_proj_mask_embedding(torch.where(part == k, x, module.mask_element))
        for k in range(_N_PARTS)
    ]
