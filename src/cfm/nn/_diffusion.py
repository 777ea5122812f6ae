"""Absorbing-state diffusion over tokens, and averages of weights with a growing window."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cfm.nn._distributed import means_over_processes

if TYPE_CHECKING:
    from collections.abc import Iterator


def draw_times(
    n: int, generator: torch.Generator, *, least: float = 1e-3, stratified: bool = True
) -> Tensor:
    """Draw the share of tokens to hide in each observation, uniform on ``least`` to 1.

    Parameters
    ----------
    n
        Number of observations.
    generator
        Source of random numbers.
    least
        Lower bound: the loss is weighted by ``1 / t``, and few hidden tokens carry little.
    stratified
        Draw one from each ``n``-th of the range, in random order, so that every batch has small
        and large shares. Each one alone is uniform as before.

    Returns
    -------
    ``(n,)`` float32.
    """
    draw = torch.rand(n, generator=generator)
    if stratified:
        draw = (torch.randperm(n, generator=generator) + draw) / max(n, 1)
    return least + (1.0 - least) * draw


def absorbing_loss(nll: Tensor, row: Tensor, time: Tensor, n_tokens: Tensor) -> Tensor:
    r"""Return the loss of absorbing-state diffusion (Lingshu-Cell, eq. 2), per token.

    .. math:: \frac{1}{b} \sum_i \frac{1}{t_i n_i} \sum_{j \text{ hidden}} -\log p(x_{ij} | x_i^t)

    Its expectation bounds the negative log likelihood of the observations, divided by their
    number of tokens. Over processes that train together it is the mean over all observations.

    Parameters
    ----------
    nll
        ``(m,)``, negative log-probability of each hidden token.
    row
        ``(m,)`` int64, the observation it belongs to.
    time
        ``(b,)``, share of tokens that was hidden in expectation.
    n_tokens
        ``(b,)``, number of tokens that could have been hidden.
    """
    weight = 1.0 / (time * n_tokens.clamp(min=1))
    return means_over_processes(((nll * weight[row]).sum(), len(time)))[0]


def reveal_counts(n_tokens: int, n_steps: int) -> list[int]:
    r"""Return how many tokens to reveal in each step: cosine schedule.

    After step :math:`i` of :math:`N` a share :math:`\cos(\pi i / 2 N)` is still hidden, of three
    steps 0.866, 0.5 and 0.

    Raises
    ------
    ValueError
        If there is no step.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1; found {n_steps}.")
    left = [round(n_tokens * math.cos(math.pi * i / (2 * n_steps))) for i in range(n_steps)]
    return [a - b for a, b in zip(left, [*left[1:], 0], strict=True)]


def guided(conditional: Tensor, null: Tensor, weight: float, floor: float = 0.0) -> Tensor:
    r"""Move a distribution away from that of the null condition (eq. 10).

    .. math:: \log p_c + w (\max(\log p_c, \log f) - \max(\log p_0, \log f))

    With :math:`f = 0` these are the published logits :math:`a_0 + (w + 1) (a_c - a_0)`, up to a
    constant. The logits of values that are improbable under both are noise, and guidance multiplies
    it: values that never occurred become likely. With :math:`f > 0` such values keep their
    probability under the condition.

    Parameters
    ----------
    conditional, null
        ``(m, v)`` logits.
    weight
        :math:`w`; 0 leaves the condition's distribution as it is.
    floor
        Probability :math:`f` below which differences do not count.

    Returns
    -------
    ``(m, v)`` logits.
    """
    if floor == 0.0:
        return null + (weight + 1.0) * (conditional - null)
    log_floor = math.log(floor)
    log_p, log_null = conditional.log_softmax(-1), null.log_softmax(-1)
    return log_p + weight * (log_p.clamp(min=log_floor) - log_null.clamp(min=log_floor))


def draw_tokens(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw from categorical distributions by inverting their distribution functions.

    Parameters
    ----------
    logits
        ``(m, v)``.
    uniform
        ``(m,)`` float64, 0 to 1: equal numbers give equal tokens.

    Returns
    -------
    ``(m,)`` int64.
    """
    weight = (logits - logits.amax(-1, keepdim=True)).exp()
    below = weight.cumsum(-1, dtype=torch.float64)
    total = below[:, -1:].contiguous()
    found = torch.searchsorted(below, uniform.unsqueeze(-1) * total, right=True)
    # a number just below 1 is rounded to the total, beyond the last token that can be drawn
    return torch.minimum(found, torch.searchsorted(below, total)).squeeze(-1)


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
        Module whose trained parameters are averaged.
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
        """Add the weights after an optimiser step."""
        self.n_steps += 1
        if self.n_steps == 1:  # nothing is left of the start
            self._mean = [p.detach().clone() for p in self._trained()]
            return
        new = 1.0 - (1.0 - 1.0 / self.n_steps) ** (self.exponent + 1.0)
        for i, parameter in enumerate(self._trained()):
            self._mean[i] = self._mean[i].to(parameter.device).lerp_(parameter.detach(), new)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and its number of steps."""
        return {"n_steps": self.n_steps, "mean": list(self._mean)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.n_steps = state["n_steps"]
        self._mean = []
        if self.n_steps:
            pairs = zip(state["mean"], self._trained(), strict=True)
            self._mean = [mean.to(p.device) for mean, p in pairs]

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's weights with the average; again to change back."""
        for i, parameter in enumerate(self._trained()):
            held = parameter.detach().clone()
            parameter.copy_(self._mean[i])
            self._mean[i] = held
