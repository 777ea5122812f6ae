"""Averages of weights over training whose window grows with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Iterator


def power_exponent(width: float) -> float:
    r"""Return the exponent :math:`\gamma` of a power-function average of a relative width.

    Solves :math:`\sigma^2 = (\gamma + 1) (\gamma + 2)^{-2} (\gamma + 3)^{-1}` (Karras et al. 2024,
    arXiv 2312.02696, algorithm 2): 0.05 gives 16.97, 0.10 gives 6.94.

    Raises
    ------
    ValueError
        If the width is not in 0 to 0.28, where there is an exponent above 0.
    """
    if not 0.0 < width < 0.28:
        raise ValueError(f"The width of an average must lie between 0 and 0.28; found {width}.")
    t = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - t, 12.0 - t])
    return float(roots[np.isreal(roots)].real.max())


class PowerAverage:
    r"""Running average of parameters with weight :math:`\beta_k = (1 - 1 / k)^{\gamma + 1}`.

    Step :math:`k` counts in proportion to :math:`k^\gamma`, so that the window is a fixed share of
    the training so far and nothing is left of the start.

    Parameters
    ----------
    module
        Whose trained parameters are averaged.
    width
        Relative width of the window; see :func:`power_exponent`.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import PowerAverage
    >>> layer = torch.nn.Linear(2, 1)
    >>> average = PowerAverage(layer, width=0.1)
    >>> average.update()
    >>> average.state_dict()["n_steps"]
    1
    """

    def __init__(self, module: nn.Module, width: float) -> None:
        self.exponent = power_exponent(width)
        self.n_steps = 0
        self._module = module
        self._mean: list[Tensor] = []

    def _trained(self) -> Iterator[Tensor]:
        return (p for p in self._module.parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimiser step."""
        self.n_steps += 1
        if self.n_steps == 1:  # nothing is left of the start
            self._mean = [p.detach().clone() for p in self._trained()]
            return
        new = 1.0 - (1.0 - 1.0 / self.n_steps) ** (self.exponent + 1.0)
        for i, parameter in enumerate(self._trained()):
            self._mean[i] = self._mean[i].to(parameter.device).lerp_(parameter.detach(), new)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and how many steps it is of."""
        return {"n_steps": self.n_steps, "mean": list(self._mean)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.n_steps = state["n_steps"]
        self._mean = []
        if self.n_steps:
            pairs = zip(state["mean"], self._trained(), strict=True)
            self._mean = [mean.to(p.device) for mean, p in pairs]

    def join(self) -> None:
        """Put together the averages of weights that were dealt out to processes."""
        self._mean = [m.full_tensor() if isinstance(m, DTensor) else m for m in self._mean]

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's weights with the average; again to change back."""
        for i, parameter in enumerate(self._trained()):
            held = parameter.detach().clone()
            parameter.copy_(self._mean[i])
            self._mean[i] = held
