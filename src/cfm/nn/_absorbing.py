"""Absorbing-state diffusion over tokens: how they are hidden, the loss, and how they come back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cfm.nn._distributed import means_over_processes


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
        Lower bound: the loss is weighted by ``1 / t``, and few hidden tokens say little.
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
    number of tokens. Processes that train together take it over the observations of all.

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
    constant. What two networks say of values that neither thinks probable is noise, and guidance
    multiplies it: values that never occurred become likely. Above 0 such values keep the
    probability that the condition gives them.

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
    told, untold = conditional.log_softmax(-1), null.log_softmax(-1)
    return told + weight * (told.clamp(min=log_floor) - untold.clamp(min=log_floor))


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
