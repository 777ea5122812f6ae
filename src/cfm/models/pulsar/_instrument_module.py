"""Virtual instrument, tensor side: a donor and a condition in, the donor under it out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from cfm._arguments import check_whole


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
    dropout: float = 0.1
    donor_dropout: float = 0.15
    condition_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("donor_dim", "output_dim", "condition_dim", "hidden_dim"):
            check_whole(name, getattr(self, name))
        for name in ("dropout", "donor_dropout", "condition_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"{name} must be at least 0 and below 1; found {getattr(self, name)!r}."
                )
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
