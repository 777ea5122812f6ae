"""Fits the linear gene-gene term of BulkFormer to samples: one eigenvalue problem."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor

from cfm.models.bulkformer._constants import MISSING
from cfm.models.bulkformer._linear_term import NOISE_FLOOR, LocalFactors

#: Scores are shrunk where a sample measures few genes, by this times the share that it lacks.
_RIDGE = 0.3
#: Smallest share of a gene's variance that is taken as noise.
_LEAST_LEFT = 0.1
#: What is tried of λ, κ and τ.
_GRID = ((0.3, 1.0, 3.0), (0.1, 0.5, 3.0), (1.0,))
#: Studies, and samples of each, that settings are tried on.
_STUDIES, _SAMPLES = 8, 2
#: Share of a sample's genes that is hidden for it.
_HIDDEN = 0.3


def fit_local_factors(
    values: np.ndarray, groups: np.ndarray, *, n_factors: int, balance: float = 0.0
) -> LocalFactors:
    """Fit centres, loadings and scores.

    The loadings are the leading directions of the samples around the centre of their group, and of
    the centres around their mean, in units of each gene's spread within groups.

    Parameters
    ----------
    values
        ``(n, n_genes)`` float32 log TPM, ``NaN`` = missing.
    groups
        ``(n,)`` whole numbers from 0, the group of each sample.
    n_factors
        Number of loadings; fewer if the samples have no more directions.
    balance
        Weight of a group of ``n`` samples is ``n ** (1 - balance)``: 0 counts each sample alike,
        1 each group.

    Returns
    -------
    The term, with settings yet to be chosen.
    """
    n_groups = int(groups.max()) + 1
    known = np.isfinite(values)
    size = np.bincount(groups, minlength=n_groups)
    measured = np.stack([known[groups == t].any(axis=0) for t in range(n_groups)])
    centres = np.stack([_mean(values[groups == t], known[groups == t]) for t in range(n_groups)])
    middle = np.where(measured, centres, 0.0).sum(0) / np.maximum(measured.sum(0), 1)
    within = np.where(known, values - centres[groups], np.float32(0.0))
    weight = (size**-balance)[groups]
    weight = weight / weight.sum()
    variance = (weight[:, None] * within**2).sum(0)
    spread = np.sqrt(variance + NOISE_FLOOR).astype(np.float32)

    between = np.where(measured, centres - middle, 0.0) / np.sqrt(n_groups)
    rows = np.concatenate([within * np.sqrt(weight)[:, None], between]) / spread
    rows = rows.astype(np.float32)
    eigenvalues, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    kept = np.argsort(eigenvalues)[::-1][:n_factors]
    kept = kept[eigenvalues[kept] > 1e-6 * eigenvalues.max()]
    directions = rows.T @ (vectors[:, kept] / np.sqrt(eigenvalues[kept])).astype(np.float32)
    rounded, scale = _bytes(directions, axis=1)
    directions = rounded * scale  # as they will be read back
    loadings = (directions * spread[:, None]).astype(np.float32)  # (g, r)

    scores = _scores(within, known, directions, spread)
    centre_scores = _scores(np.where(measured, centres - middle, 0.0), measured, directions, spread)
    # What a group does not measure is as the loadings make it.
    centres = np.where(measured, centres, middle + centre_scores @ loadings.T)
    rounded_scores, score_scale = _bytes(scores, axis=0)
    left = np.where(known, within - scores @ loadings.T, 0.0) ** 2
    pooled = (weight[:, None] * left).sum(0) / np.maximum((weight[:, None] * known).sum(0), 1e-9)
    variances = np.empty_like(centres)
    for t in range(n_groups):
        own = groups == t
        # Few samples say little of a variance: eight more of the pooled one.
        n = known[own].sum(0)
        variances[t] = (left[own].sum(0) + 8.0 * pooled) / (n + 8.0)
        # Loadings made of these very samples leave too little of them.
        whole = ((within[own] ** 2).sum(0) + 8.0 * variance) / (n + 8.0)
        variances[t] = np.maximum(variances[t], _LEAST_LEFT * whole)

    term = LocalFactors(values.shape[1], loadings.shape[1], n_groups, len(values))
    filled = {
        "loadings": rounded,
        "loading_scale": scale.ravel() * spread,
        "centres": centres,
        "centre_scores": centre_scores,
        "variances": variances,
        "measured": measured,
        "scores": rounded_scores,
        "score_scale": score_scale.ravel(),
        "group": groups.astype(np.int16),
    }
    for name, array in filled.items():
        buffer = getattr(term, name)
        buffer.copy_(torch.from_numpy(np.ascontiguousarray(array)))
    seen = torch.from_numpy(np.where(known, values, np.float32(MISSING)))
    distance = torch.stack([term.distance(x)[t] for x, t in zip(seen, groups, strict=True)])
    total = np.bincount(groups, weights=distance.numpy(), minlength=n_groups)
    few = float(np.median(total / size))  # counts as four more samples of each group
    term.usual.copy_(torch.from_numpy((total + 4.0 * few) / (size + 4.0)))
    return term


def _bytes(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values as whole numbers of a byte, and the scale along the other axis."""
    scale = np.maximum(np.abs(values).max(axis=axis, keepdims=True), 1e-12) / 127.0
    return np.rint(values / scale).astype(np.int8), scale.astype(np.float32)


def _mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    total = np.where(known, values, 0.0).sum(0)
    return (total / np.maximum(known.sum(0), 1)).astype(np.float32)


def _scores(
    rows: np.ndarray, known: np.ndarray, directions: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """Least-squares scores of rows on the loadings, over what each row measures."""
    out = np.empty((len(rows), directions.shape[1]), dtype=np.float32)
    patterns, which = np.unique(known, axis=0, return_inverse=True)
    for p, pattern in enumerate(patterns):
        chosen = np.flatnonzero(which.ravel() == p)
        d = directions[pattern].astype(np.float64)
        penalty = 1e-3 + _RIDGE * (1.0 - pattern.mean())
        gram = d.T @ d + penalty * np.eye(d.shape[1])
        right = (rows[chosen][:, pattern] / spread[pattern]) @ d
        out[chosen] = np.linalg.solve(gram, right.T).T
    return out


def choose_settings(term: LocalFactors, values: Tensor, studies: np.ndarray, *, seed: int) -> None:
    """Choose λ, κ and τ on samples that are predicted without the groups of their study.

    The settings with the smallest mean of the log of the squared error win; with fewer than three
    studies whose groups can be spared they stay as they are.

    Parameters
    ----------
    term
        Changed in place.
    values
        ``(n, n_genes)`` the samples that it was fitted to, −10 = missing.
    studies
        ``(n,)`` object.
    seed
        Of the choice of studies, samples and hidden genes.
    """
    names = [
        name
        for name in np.unique(studies.astype(str))
        if not _groups_of(term, studies == name).all()
    ]
    if len(names) < 3:
        return
    rng = np.random.default_rng(seed)
    cases = []
    for study in rng.permutation(names)[:_STUDIES]:
        rows = np.flatnonzero(studies == study)
        for row in rng.permutation(rows)[:_SAMPLES]:
            cases.append((values[row : row + 1], _groups_of(term, studies == study)))
    hides = [_hide(x, rng) for x, _ in cases]
    errors = []
    tried = list(product(*_GRID))
    for settings in tried:
        term.settings.copy_(torch.tensor(settings))
        made = [
            term.predict(x.masked_fill(hidden, MISSING), without)
            for (x, without), hidden in zip(cases, hides, strict=True)
        ]
        error = [
            float((p - x)[hidden].square().mean().log())
            for p, (x, _), hidden in zip(made, cases, hides, strict=True)
        ]
        errors.append(float(np.mean(error)))
    term.settings.copy_(torch.tensor(tried[int(np.argmin(errors))]))


def choose_weight(
    term: LocalFactors,
    network: Callable[[Tensor], Tensor],
    values: Tensor,
    studies: np.ndarray,
    held_out: np.ndarray,
    *,
    seed: int,
) -> None:
    """Choose how far the term is trusted beside the network, by least squares.

    Judged on held-out samples, which the network was not trained on and the term predicts without
    the groups of their study. Without such samples the term alone is used.

    Parameters
    ----------
    term
        Changed in place.
    network
        Predicts ``(n, n_genes)`` from ``(n, n_genes)``.
    values, studies
        As for :func:`choose_settings`.
    held_out
        ``(n,)`` bool.
    seed
        Of the choice of samples and hidden genes.
    """
    rng = np.random.default_rng(seed)
    term.weight.fill_(1e-6)
    above = below = 0.0
    for study in np.unique(studies[held_out].astype(str)):
        own = _groups_of(term, studies == study)
        rows = rng.permutation(np.flatnonzero(studies == study))[: 4 * _SAMPLES]
        if own.all() or not len(rows):
            continue
        x = values[rows]
        hidden = _hide(x, rng)
        seen = x.masked_fill(hidden, MISSING)
        with torch.inference_mode():
            net = network(seen)
        linear = term.predict(seen, own)
        most = term.network_share(seen, own).unsqueeze(1)  # with a weight of almost 0
        apart, gap = ((net - linear) * most)[hidden], (x - linear)[hidden]
        above += float((apart * gap).mean())
        below += float((apart * apart).mean())
    share = above / below if below > 0 else 0.0
    term.weight.fill_(1.0 - float(np.clip(share, 0.0, 1.0)))


def _groups_of(term: LocalFactors, rows: np.ndarray) -> Tensor:
    """Return which groups some samples belong to, ``(n_groups,)`` bool."""
    chosen = torch.zeros(len(term.centres), dtype=torch.bool)
    chosen[term.group[torch.from_numpy(rows)].long()] = True
    return chosen


def _hide(x: Tensor, rng: np.random.Generator) -> Tensor:
    return (x != MISSING) & torch.from_numpy(rng.random(tuple(x.shape)) < _HIDDEN)
