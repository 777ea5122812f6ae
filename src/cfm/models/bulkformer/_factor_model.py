"""Local factor model: expression of all genes from the observed ones, in closed form.

An addition of this package, apart from the published architecture of BulkFormer: it is used alone,
or blended with the predictions of a network.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Smallest variance of a gene that the factors do not explain, in squared log TPM.
NOISE_FLOOR = 0.03
#: Ridge penalty of the scores of a sample, times the share of genes that it does not measure.
_RIDGE = 0.3
#: Smallest share of a gene's variance that counts as noise.
_LEAST_NOISE = 0.1
#: Candidates of λ, κ and τ.
_GRID = ((0.3, 1.0, 3.0), (0.1, 0.5, 3.0), (1.0,))
#: Studies, and samples of each, on which settings are compared.
_STUDIES, _SAMPLES = 8, 2
#: Share of a sample's genes that is hidden for the comparison.
_HIDDEN = 0.3


class LocalFactorModel(nn.Module):
    r"""Predict every gene of a sample from the observed ones by a Gaussian of similar samples.

    Each group of training samples :math:`t` (a study, a tissue) has a centre :math:`c_t`. A sample
    :math:`x` belongs to group :math:`t` with

    .. math:: g_t \propto \exp(-\tfrac{1}{2 \tau} \operatorname{mean}_{O}
        (x - c_t)^2 / v)

    over its observed genes :math:`O`, and is modelled as a draw from
    :math:`N(\mu, L S L^\top + D)` with :math:`\mu = \sum_t g_t c_t`, loadings :math:`L` common to
    all, and the score covariance :math:`S` of the training samples, weighted by :math:`g` of
    their group plus :math:`\lambda`, plus :math:`\kappa` times that of the centres around
    :math:`\mu`. The prediction is the conditional mean given :math:`x_O`: ridge regression on all
    observed genes, in which similar samples have the largest weight.

    Make one with :meth:`fit`; the constructor sets the sizes only.

    Parameters
    ----------
    n_genes, n_factors, n_groups, n_rows
        Sizes: genes, loadings, groups, training samples whose scores are kept.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.models.bulkformer import LocalFactorModel
    >>> level = np.random.default_rng(0).normal(5, 1, size=(30, 1))
    >>> values = np.repeat(level, 20, axis=1).astype("float32")
    >>> model = LocalFactorModel.fit(values[:20], np.zeros(20, dtype=int), n_factors=2)
    >>> hidden = values[20:].copy()
    >>> hidden[:, :5] = np.nan
    >>> bool(np.abs(model.predict(hidden) - values[20:]).max() < 0.1)
    True
    """

    loadings: Tensor
    loading_scale: Tensor
    centres: Tensor
    centre_scores: Tensor
    variances: Tensor
    measured: Tensor
    usual: Tensor
    scores: Tensor
    score_scale: Tensor
    group: Tensor
    settings: Tensor
    weight: Tensor

    def __init__(self, n_genes: int, n_factors: int, n_groups: int, n_rows: int) -> None:
        super().__init__()
        self.sizes = {"n_factors": n_factors, "n_groups": n_groups, "n_rows": n_rows}
        # int8 with a scale per gene: more factors improve predictions more than their digits.
        self.register_buffer("loadings", torch.zeros(n_genes, n_factors, dtype=torch.int8))
        self.register_buffer("loading_scale", torch.ones(n_genes))
        self.register_buffer("centres", torch.zeros(n_groups, n_genes))
        self.register_buffer("centre_scores", torch.zeros(n_groups, n_factors))
        # Variance within a group that the loadings do not explain.
        self.register_buffer("variances", torch.ones(n_groups, n_genes))
        self.register_buffer("measured", torch.ones(n_groups, n_genes, dtype=torch.bool))
        # Mean squared distance of a group's samples from its centre.
        self.register_buffer("usual", torch.ones(n_groups))
        self.register_buffer("scores", torch.zeros(n_rows, n_factors, dtype=torch.int8))
        self.register_buffer("score_scale", torch.ones(n_factors))
        self.register_buffer("group", torch.zeros(n_rows, dtype=torch.int32))
        #: λ, κ and τ.
        self.register_buffer("settings", torch.tensor([0.1, 0.05, 0.1]))
        #: Share of this model in a blended prediction; the rest is the network's.
        self.register_buffer("weight", torch.tensor(1.0))

    @classmethod
    def fit(
        cls,
        values: np.ndarray,
        groups: np.ndarray,
        *,
        studies: np.ndarray | None = None,
        n_factors: int = 192,
        seed: int = 0,
    ) -> Self:
        """Fit centres, loadings and scores, and choose λ, κ and τ.

        The loadings are the leading directions of the samples around the centre of their group,
        and of the centres around their mean, in units of each gene's spread within groups.

        Parameters
        ----------
        values
            ``(n, n_genes)`` float32 log TPM, ``NaN`` = missing.
        groups
            ``(n,)`` group of each sample: names or numbers.
        studies
            ``(n,)`` study of each sample. λ, κ and τ are chosen on samples that are predicted
            without the groups of their study. Without ``studies``, or with fewer than three of
            them whose groups can be left out, they keep their defaults.
        n_factors
            Number of loadings; fewer if the samples have fewer directions.
        seed
            Of the choice of studies, samples and hidden genes.

        Returns
        -------
        The fitted model, on the CPU.
        """
        _, groups = np.unique(groups, return_inverse=True)
        groups = groups.ravel()
        size = np.bincount(groups)
        n_groups = len(size)
        known = np.isfinite(values)
        measured = np.stack([known[groups == t].any(axis=0) for t in range(n_groups)])
        centres = np.stack(
            [_mean(values[groups == t], known[groups == t]) for t in range(n_groups)]
        )
        middle = np.where(measured, centres, 0.0).sum(0) / np.maximum(measured.sum(0), 1)
        within = np.where(known, values - centres[groups], np.float32(0.0))
        weight = np.full((len(values), 1), 1.0 / len(values))
        variance = (weight * within**2).sum(0)
        spread = np.sqrt(variance + NOISE_FLOOR).astype(np.float32)

        between = np.where(measured, centres - middle, 0.0) / np.sqrt(n_groups)
        rows = np.concatenate([within * np.sqrt(weight), between]) / spread
        rows = rows.astype(np.float32)
        eigenvalues, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
        kept = np.argsort(eigenvalues)[::-1][:n_factors]
        kept = kept[eigenvalues[kept] > 1e-6 * eigenvalues.max()]
        directions = rows.T @ (vectors[:, kept] / np.sqrt(eigenvalues[kept])).astype(np.float32)
        rounded, scale = _to_int8(directions, axis=1)
        directions = rounded * scale  # as they are read back
        loadings = (directions * spread[:, None]).astype(np.float32)  # (g, r)

        scores = _scores(within, known, directions, spread)
        centre_scores = _scores(
            np.where(measured, centres - middle, 0.0), measured, directions, spread
        )
        # Genes that a group does not measure follow from its other genes.
        centres = np.where(measured, centres, middle + centre_scores @ loadings.T)
        rounded_scores, score_scale = _to_int8(scores, axis=0)
        left = np.where(known, within - scores @ loadings.T, 0.0) ** 2
        pooled = (weight * left).sum(0) / np.maximum((weight * known).sum(0), 1e-9)
        variances = np.empty_like(centres)
        for t in range(n_groups):
            own = groups == t
            # A variance of few samples is uncertain: add eight samples of the pooled one.
            n = known[own].sum(0)
            variances[t] = (left[own].sum(0) + 8.0 * pooled) / (n + 8.0)
            # The loadings were fitted to these samples, so their residuals are too small.
            whole = ((within[own] ** 2).sum(0) + 8.0 * variance) / (n + 8.0)
            variances[t] = np.maximum(variances[t], _LEAST_NOISE * whole)

        model = cls(values.shape[1], loadings.shape[1], n_groups, len(values))
        filled = {
            "loadings": rounded,
            "loading_scale": scale.ravel() * spread,
            "centres": centres,
            "centre_scores": centre_scores,
            "variances": variances,
            "measured": measured,
            "scores": rounded_scores,
            "score_scale": score_scale.ravel(),
            "group": groups.astype(np.int32),
        }
        for name, array in filled.items():
            getattr(model, name).copy_(torch.from_numpy(np.ascontiguousarray(array)))
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        distance = torch.stack([model.distance(x)[t] for x, t in zip(tensor, groups, strict=True)])
        total = np.bincount(groups, weights=distance.numpy())
        typical = float(np.median(total / size))  # counts as four more samples of each group
        model.usual.copy_(torch.from_numpy((total + 4.0 * typical) / (size + 4.0)))
        if studies is not None:
            model._choose_settings(tensor, studies, seed)
        return model

    @torch.no_grad()
    def predict(self, values: np.ndarray) -> np.ndarray:
        """Predict all genes of samples.

        Parameters
        ----------
        values
            ``(n, n_genes)`` log TPM, ``NaN`` = missing.

        Returns
        -------
        ``(n, n_genes)`` float32. Of observed genes this is the model's reconstruction.
        """
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return self(tensor.to(self.weight.device)).cpu().numpy()

    def forward(self, values: Tensor, without: Tensor | None = None) -> Tensor:
        """Predict all genes of samples.

        Parameters
        ----------
        values
            ``(n, n_genes)`` log TPM, ``NaN`` = missing.
        without
            ``(n_groups,)`` bool, groups to leave out (to predict samples of their study).

        Returns
        -------
        ``(n, n_genes)`` float32.
        """
        loadings = self.loadings.float() * self.loading_scale.unsqueeze(1)
        out = values.new_empty(values.shape, dtype=torch.float32)
        for i, x in enumerate(values):
            out[i] = self._conditional_mean(x.float(), loadings, without)
        return out

    def blend(self, network: Tensor, values: Tensor) -> Tensor:
        """Return a weighted mean of the network's prediction and of this model's, at least 0.

        Parameters
        ----------
        network
            ``(n, n_genes)`` prediction of the network.
        values
            As of :meth:`forward`.
        """
        share = self.network_share(values).unsqueeze(1)
        return F.relu(torch.lerp(self(values), network, share))

    def network_share(self, values: Tensor, without: Tensor | None = None) -> Tensor:
        """Return the share of the network in each sample's prediction, ``(n,)``.

        ``1 - weight`` for samples unlike all groups, decreasing with the fourth power of
        :math:`f` (:meth:`membership`): for samples like those of training the regression is hard
        to improve on. With a weight of 0 the network predicts alone.
        """
        share = torch.ones(len(values), device=values.device)
        if self.weight == 0.0:
            return share
        for i, x in enumerate(values):
            share[i] = (1.0 - self.weight) * self.membership(x.float(), without)[1] ** 4
        return share

    def membership(self, x: Tensor, without: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the share of each group in a sample, and the sample's distance from all groups.

        The distance :math:`f` is 0 for a sample no farther from its centre than usual in that
        group and approaches 1 for one far from all centres.

        Parameters
        ----------
        x
            ``(n_genes,)`` log TPM, ``NaN`` = missing.
        without
            ``(n_groups,)`` bool, groups to leave out.

        Returns
        -------
        ``(n_groups,)`` shares that sum to 1, and :math:`f`, between 0 and 1.
        """
        distance = self.distance(x)
        if without is not None:
            distance = torch.where(without, torch.inf, distance)
        belongs = torch.softmax(-0.5 * distance / self.settings[2], 0)
        share = self.usual / distance.clamp(min=1e-6)
        return belongs, 1.0 - (belongs @ share).clamp(max=1.0)

    def distance(self, x: Tensor) -> Tensor:
        """Return the mean squared distance from each centre, ``(n_groups,)``, in noise variances.

        Infinite for a group that measures none of the sample's genes.
        """
        seen = torch.isfinite(x) & self.measured  # (t, g)
        distance = (x - self.centres).square() / (self.variances.mean(0) + NOISE_FLOOR)
        mean = torch.where(seen, distance, 0.0).sum(1) / seen.sum(1).clamp(min=1)
        return torch.where(seen.any(1), mean, torch.inf) if bool(seen.any()) else mean

    def _conditional_mean(self, x: Tensor, loadings: Tensor, without: Tensor | None) -> Tensor:
        """Return the mean of all genes given the observed ones of a sample, ``(n_genes,)``."""
        belongs, _ = self.membership(x, without)
        wide, shift, _ = self.settings
        group = self.group.long()
        n = torch.bincount(group, minlength=len(belongs)).clamp(min=1)
        common = n.float().sqrt()
        if without is not None:
            common = torch.where(without, 0.0, common)
        common = common / common.sum()
        share = belongs + wide * common
        mean = belongs @ self.centres
        rows = self.scores * self.score_scale * (share / n)[group].sqrt().unsqueeze(1)
        covariance = rows.T @ rows  # (r, r)
        offset = self.centre_scores - belongs @ self.centre_scores
        if without is not None:
            offset = offset[~without]
        covariance = covariance + shift / len(offset) * (offset.T @ offset)
        noise = share @ self.variances + NOISE_FLOOR  # (g,)
        # With a root of the covariance the system is well conditioned even if it is singular.
        values, vectors = torch.linalg.eigh(covariance.double())
        root = (vectors * values.clamp(min=0.0).sqrt()).float()
        seen = torch.nonzero(torch.isfinite(x)).squeeze(1)
        observed = loadings[seen] @ root
        weighted = observed / noise[seen].unsqueeze(1)
        gram = weighted.T @ observed + torch.eye(len(root), device=x.device)
        scores = torch.linalg.solve(gram, weighted.T @ (x - mean)[seen])
        return mean + loadings @ (root @ scores)

    def _choose_settings(self, values: Tensor, studies: np.ndarray, seed: int) -> None:
        """Set λ, κ and τ to those with the smallest mean log squared error of hidden genes."""
        studies = studies.astype(str)
        names = [n for n in np.unique(studies) if not self._groups_of(studies == n).all()]
        if len(names) < 3:
            return
        rng = np.random.default_rng(seed)
        cases = [
            (values[row : row + 1], self._groups_of(studies == name))
            for name in rng.permutation(names)[:_STUDIES]
            for row in rng.permutation(np.flatnonzero(studies == name))[:_SAMPLES]
        ]
        masks = [_hide(x, rng) for x, _ in cases]
        tried, errors = list(product(*_GRID)), []
        for settings in tried:
            self.settings.copy_(torch.tensor(settings))
            made = [
                self(x.masked_fill(hidden, torch.nan), without)
                for (x, without), hidden in zip(cases, masks, strict=True)
            ]
            error = [
                float((p - x)[hidden].square().mean().log())
                for p, (x, _), hidden in zip(made, cases, masks, strict=True)
            ]
            errors.append(float(np.mean(error)))
        self.settings.copy_(torch.tensor(tried[int(np.argmin(errors))]))

    @torch.no_grad()
    def choose_weight(
        self,
        network: Callable[[Tensor], Tensor],
        values: np.ndarray,
        studies: np.ndarray,
        held_out: np.ndarray,
        *,
        seed: int,
    ) -> None:
        """Set the share of this model beside a network, by least squares.

        Hidden genes are predicted for samples that the network was not trained on, by this model
        without the groups of their study. Without such samples the weight is 1.

        Parameters
        ----------
        network
            Predicts ``(n, n_genes)`` from ``(n, n_genes)``, ``NaN`` = missing.
        values, studies
            As for :meth:`fit`, the same samples.
        held_out
            ``(n,)`` bool, samples that the network was not trained on.
        seed
            Of the choice of samples and hidden genes.
        """
        rng = np.random.default_rng(seed)
        self.weight.fill_(1e-6)
        above = below = 0.0
        for study in np.unique(studies[held_out].astype(str)):
            without = self._groups_of(studies == study)
            rows = rng.permutation(np.flatnonzero(studies == study))[: 4 * _SAMPLES]
            if without.all() or not len(rows):
                continue
            x = torch.from_numpy(values[rows])
            hidden = _hide(x, rng)
            seen = x.masked_fill(hidden, torch.nan)
            predicted, linear = network(seen), self(seen, without)
            most = self.network_share(seen, without).unsqueeze(1)  # with a weight of almost 0
            apart, gap = ((predicted - linear) * most)[hidden], (x - linear)[hidden]
            above += float((apart * gap).mean())
            below += float((apart * apart).mean())
        share = above / below if below > 0 else 0.0
        self.weight.fill_(1.0 - float(np.clip(share, 0.0, 1.0)))

    def _groups_of(self, rows: np.ndarray) -> Tensor:
        """Return the groups of some training samples, ``(n_groups,)`` bool."""
        chosen = torch.zeros(len(self.centres), dtype=torch.bool)
        chosen[self.group[torch.from_numpy(rows)].long()] = True
        return chosen


def _to_int8(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values rounded to int8, and the scale along the other axis."""
    scale = np.maximum(np.abs(values).max(axis=axis, keepdims=True), 1e-12) / 127.0
    return np.rint(values / scale).astype(np.int8), scale.astype(np.float32)


def _mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    total = np.where(known, values, 0.0).sum(0)
    return (total / np.maximum(known.sum(0), 1)).astype(np.float32)


def _scores(
    rows: np.ndarray, known: np.ndarray, directions: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """Return least-squares scores of rows on the loadings, over the genes that each measures."""
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


def _hide(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Choose a random part of the observed entries."""
    return torch.isfinite(x) & torch.from_numpy(rng.random(tuple(x.shape)) < _HIDDEN)
