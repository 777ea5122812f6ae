"""The network of the virtual instrument and its sizes; what it changes in cells; its losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._arguments import Dropout, check_fields
from cfm.nn._distributed import means_over_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cfm.models.pulsar._module import PulsarModule

#: One part in seven of a cell's elements is shown at a time: 85 % are hidden in training.
_N_PARTS = 7


@dataclass(frozen=True)
class InstrumentSize:
    """Sizes of the network; the defaults are the published ones.

    Attributes
    ----------
    donor_dim, output_dim
        Width of the donor embedding that is read, and of the one that is predicted.
    condition_dim
        Width of what represents a condition: 5120 of the protein embedding of a cytokine.
    hidden_dim
        Width of the hidden layers.
    dropout, donor_dropout, condition_dropout
        Dropout of the output network, the donor's and the condition's.
    """

    donor_dim: int = 512
    output_dim: int = 512
    condition_dim: int = 5120
    hidden_dim: int = 512
    dropout: Dropout = 0.1
    donor_dropout: Dropout = 0.15
    condition_dropout: Dropout = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.output_dim != self.donor_dim:
            raise ValueError(
                f"donor_dim={self.donor_dim} and output_dim={self.output_dim} differ; the "
                "prediction is added to the donor embedding."
            )


class InstrumentModule(nn.Module):
    """Feature-wise linear modulation of a donor embedding by a condition.

    Parameters
    ----------
    size
        Sizes of the network.

    References
    ----------
    The class VirtualInstrument of the PULSAR repository, whose numbers it reproduces.
    """

    def __init__(self, size: InstrumentSize) -> None:
        super().__init__()
        self.size = size
        hidden, of_donor, of_condition = size.hidden_dim, size.donor_dropout, size.condition_dropout
        self.donor_net = nn.Sequential(
            *_block(size.donor_dim, hidden, of_donor), *_block(hidden, hidden, 0.7 * of_donor)
        )
        self.cond_to_gamma = self._modulator(of_condition)
        self.cond_to_beta = self._modulator(of_condition)
        self.output_net = nn.Sequential(
            *_block(hidden, hidden, size.dropout), nn.Linear(hidden, size.output_dim)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.is_meta:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def _modulator(self, dropout: float) -> nn.Sequential:
        hidden = self.size.hidden_dim
        return nn.Sequential(
            *_block(self.size.condition_dim, 2 * hidden, dropout),
            nn.Linear(2 * hidden, hidden),
            nn.LayerNorm(hidden),
        )

    def forward(self, donor: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict donor embeddings under a condition.

        Parameters
        ----------
        donor
            ``(b, donor_dim)``; or donor and condition side by side, without ``condition``.
        condition
            ``(b, condition_dim)``.

        Returns
        -------
        ``(b, output_dim)``.

        Raises
        ------
        ValueError
            If the widths do not fit.
        """
        size = self.size
        if condition is None:
            donor, condition = donor[:, : size.donor_dim], donor[:, size.donor_dim :]
        if donor.shape[-1] != size.donor_dim or condition.shape[-1] != size.condition_dim:
            raise ValueError(
                f"The donor is {donor.shape[-1]} wide and the condition {condition.shape[-1]}; "
                f"expected {size.donor_dim} and {size.condition_dim}."
            )
        features = self.donor_net(F.dropout(donor, 0.5 * size.donor_dropout, self.training))
        condition = F.dropout(condition, 0.5 * size.condition_dropout, self.training)
        moved = self.cond_to_gamma(condition) * features + self.cond_to_beta(condition)
        return self.output_net(moved) + donor


def _block(n_in: int, n_out: int, dropout: float) -> list[nn.Module]:
    """Linear layer, layer norm, GELU, dropout."""
    return [nn.Linear(n_in, n_out), nn.LayerNorm(n_out), nn.GELU(), nn.Dropout(dropout)]


def instrument_losses(module: InstrumentModule, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the mean squared error of donors under conditions, and that of leaving them.

    Parameters
    ----------
    module
        The network.
    batch
        Donors before, ``(b, donor_dim)``, conditions ``(b, condition_dim)``, and donors after.

    Returns
    -------
    ``loss``, and ``unchanged``.
    """
    before, condition, after = batch
    error = (module(before, condition) - after).square()
    unchanged = (before - after).square()
    parts = ((part.sum(), part.numel()) for part in (error, unchanged))
    return dict(zip(("loss", "unchanged"), means_over_processes(*parts), strict=True))


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
        tokens = _decoder_tokens(module, own, encoded[:, 1:])
        for part in tokens:
            before, after = (module.decode(c, part)[0, 1:] for c in (cls, moved))
            out[rows] += (after - before).cpu().numpy() / len(tokens)
    return out


def _decoder_tokens(module: PulsarModule, cells: Tensor, encoded: Tensor) -> list[Tensor]:
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
