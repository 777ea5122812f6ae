"""Local factor model: expression of all genes from the observed ones, in closed form.

An addition of this package, apart from the published architecture of BulkFormer: it is used alone,
or blended with the predictions of a network, and its factors embed samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Factors that embed a sample.
N_EMBEDDED = 128
#: Added to the variance of a gene that the factors do not explain, in squared log TPM.
NOISE_FLOOR = 0.03
#: Ridge penalty of the scores of a sample, times the share of genes that it does not measure.
_RIDGE = 0.3
#: Smallest share of a gene's variance that counts as noise.
_LEAST_NOISE = 0.1
#: Weight κ of the covariance of centres.
_BETWEEN = 0.1
#: Candidates of λ, and of the noise in units of that of the training samples.
_LOCAL = (0.03, 0.1, 1.0, 10.0)
_NOISE = (0.5, 1.5, 4.0, 8.0)
#: Groups with a smaller share in a sample are left out.
_LEAST_SHARE = 1e-4
#: A sample chooses among them by one in so many of its observed genes, predicted from the others.
_EVERY = 5
#: Samples of each study, and share of their genes hidden, by which a network's share is chosen.
_SAMPLES = 8
_HIDDEN = 0.3


class LocalFactorModel(nn.Module):
    r"""Predict every gene of a sample from the observed ones by a Gaussian of similar samples.

    Each group of training samples :math:`t` (a study, a tissue) has a centre :math:`c_t`. A sample
    :math:`x` belongs to group :math:`t` with

    .. math:: g_t \propto \exp(-\tfrac{1}{2} \operatorname{mean}_{O} (x - c_t)^2 / v)

    over its observed genes :math:`O`, and is modelled as a draw from
    :math:`N(\mu, L S L^\top + \sigma^2)` with :math:`\mu = \sum_t g_t c_t`, loadings :math:`L`
    common to all, and the score covariance :math:`S` of the training samples, weighted by
    :math:`g` of their group plus :math:`\lambda`, plus :math:`\kappa` times that of the centres
    around :math:`\mu`. The prediction is the conditional mean given :math:`x_O`: ridge regression
    on all observed genes, in which similar samples have the largest weight. How local it is,
    :math:`\lambda`, and the noise :math:`\sigma^2` are chosen for each sample alone: those that
    best predict a fifth of its observed genes from the others.

    The leading factors embed samples (:meth:`embed`). They are the principal components of the
    training samples around the centre of their group, so that what distinguishes studies does not
    lead.

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
    middle: Tensor
    variances: Tensor
    noise: Tensor
    measured: Tensor
    usual: Tensor
    scores: Tensor
    score_scale: Tensor
    group: Tensor
    weight: Tensor

    def __init__(self, n_genes: int, n_factors: int, n_groups: int, n_rows: int) -> None:
        super().__init__()
        self.sizes = {"n_factors": n_factors, "n_groups": n_groups, "n_rows": n_rows}
        # int8 with a scale per gene: more factors improve predictions more than their digits.
        self.register_buffer("loadings", torch.zeros(n_genes, n_factors, dtype=torch.int8))
        self.register_buffer("loading_scale", torch.ones(n_genes))
        self.register_buffer("centres", torch.zeros(n_groups, n_genes))
        self.register_buffer("centre_scores", torch.zeros(n_groups, n_factors))
        # Mean of the centres.
        self.register_buffer("middle", torch.zeros(n_genes))
        # Variance within groups that the loadings do not explain: of each gene, and their mean.
        self.register_buffer("variances", torch.ones(n_genes))
        self.register_buffer("noise", torch.tensor(1.0))
        self.register_buffer("measured", torch.ones(n_groups, n_genes, dtype=torch.bool))
        # Mean squared distance of a group's samples from its centre.
        self.register_buffer("usual", torch.ones(n_groups))
        self.register_buffer("scores", torch.zeros(n_rows, n_factors, dtype=torch.int8))
        self.register_buffer("score_scale", torch.ones(n_factors))
        self.register_buffer("group", torch.zeros(n_rows, dtype=torch.int32))
        #: Share of this model in a blended prediction; the rest is the network's.
        self.register_buffer("weight", torch.tensor(1.0))

    @classmethod
    def fit(cls, values: np.ndarray, groups: np.ndarray, *, n_factors: int = 192) -> Self:
        """Fit centres, loadings and scores.

        The loadings are the leading directions of the samples around the centre of their group,
        and of the centres around their mean; those along which samples of a group differ most come
        first.

        Parameters
        ----------
        values
            ``(n, n_genes)`` float32 log TPM, ``NaN`` = missing.
        groups
            ``(n,)`` group of each sample: names or numbers.
        n_factors
            Number of loadings; fewer if the samples have fewer directions.

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
        between = np.where(measured, centres - middle, 0.0).astype(np.float32)

        rows = np.concatenate([within / np.sqrt(len(values)), between / np.sqrt(n_groups)])
        eigenvalues, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
        kept = np.argsort(eigenvalues)[::-1][:n_factors]
        kept = kept[eigenvalues[kept] > 1e-6 * eigenvalues.max()]
        directions = rows.T @ (vectors[:, kept] / np.sqrt(eigenvalues[kept])).astype(np.float32)
        along = within @ directions
        _, turn = np.linalg.eigh((along.T @ along).astype(np.float64))
        rounded, scale = _to_int8(directions @ turn[:, ::-1].astype(np.float32), axis=1)
        directions = rounded * scale  # as they are read back

        scores = _scores(within, known, directions)
        centre_scores = _scores(between, measured, directions)
        # Genes that a group does not measure follow from its other genes.
        centres = np.where(measured, centres, middle + centre_scores @ directions.T)
        rounded_scores, score_scale = _to_int8(scores, axis=0)
        count = np.maximum(known.sum(0), 1)
        left = (np.where(known, within - scores @ directions.T, 0.0) ** 2).sum(0) / count
        # The loadings were fitted to these samples, so what they leave is too little.
        left = np.maximum(left, _LEAST_NOISE * (within**2).sum(0) / count)

        model = cls(values.shape[1], directions.shape[1], n_groups, len(values))
        filled = {
            "loadings": rounded,
            "loading_scale": scale.ravel(),
            "centres": centres,
            "centre_scores": centre_scores,
            "middle": middle,
            "variances": left + NOISE_FLOOR,
            "measured": measured,
            "scores": rounded_scores,
            "score_scale": score_scale.ravel(),
            "group": groups.astype(np.int32),
        }
        for name, array in filled.items():
            getattr(model, name).copy_(torch.from_numpy(np.ascontiguousarray(array)))
        model.noise.fill_(float(left.mean()) + 1e-6)
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        distance = torch.stack([model.distance(x)[t] for x, t in zip(tensor, groups, strict=True)])
        total = np.bincount(groups, weights=distance.numpy())
        typical = float(np.median(total / size))  # counts as four more samples of each group
        model.usual.copy_(torch.from_numpy((total + 4.0 * typical) / (size + 4.0)))
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
        out = values.new_empty(values.shape, dtype=torch.float32)
        loadings = self.loadings.float() * self.loading_scale.unsqueeze(1)
        group = self.group.long()
        rows = self.scores * self.score_scale / self._sizes()[group].sqrt().unsqueeze(1)
        common = self._sizes().sqrt()
        if without is not None:
            common = torch.where(without, 0.0, common)
        common = common / common.sum()
        weighted = rows * common[group].sqrt().unsqueeze(1)
        usual = weighted.T @ weighted
        measured = torch.isfinite(values)
        for i, x in enumerate(values.float()):
            if i == 0 or not torch.equal(measured[i], measured[i - 1]):
                grams = self._grams(loadings, measured[i])
            belongs, _ = self.membership(x, without)
            near = belongs[group] > _LEAST_SHARE
            close = rows[near] * belongs[group[near]].sqrt().unsqueeze(1)
            offset = self.centre_scores - belongs @ self.centre_scores
            if without is not None:
                offset = offset[~without]
            own = close.T @ close + _BETWEEN / len(offset) * (offset.T @ offset)
            out[i] = self._conditional_mean(x, belongs, own, usual, loadings, grams)
        return out

    @torch.no_grad()
    def embed(self, values: np.ndarray) -> np.ndarray:
        r"""Return the leading factors of samples: their means given the observed genes.

        With the variance :math:`w` of each factor within groups of training samples and
        :math:`x` around the mean of the centres,
        :math:`(L_O^\top L_O + \sigma^2 \operatorname{diag}(1 / w))^{-1} L_O^\top x_O`.

        Parameters
        ----------
        values
            ``(n, n_genes)`` log TPM, ``NaN`` = missing.

        Returns
        -------
        ``(n, f)`` float32, at most 128 factors, in units of log TPM.
        """
        scale = self.loading_scale.unsqueeze(1)
        loadings = (self.loadings[:, :N_EMBEDDED].float() * scale).cpu().numpy()
        variance = (self.scores * self.score_scale).square().mean(0).cpu().numpy()[:N_EMBEDDED]
        known = np.isfinite(values)
        rows = np.where(known, values - self.middle.cpu().numpy(), np.float32(0.0))
        return _scores(rows, known, loadings, float(self.noise) / np.maximum(variance, 1e-9))

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
        belongs = torch.softmax(-0.5 * distance, 0)
        share = self.usual / distance.clamp(min=1e-6)
        return belongs, 1.0 - (belongs @ share).clamp(max=1.0)

    def distance(self, x: Tensor) -> Tensor:
        """Return the mean squared distance from each centre, ``(n_groups,)``, in noise variances.

        Infinite for a group that measures none of the sample's genes.
        """
        seen = torch.isfinite(x) & self.measured  # (t, g)
        distance = (x - self.centres).square() / self.variances
        mean = torch.where(seen, distance, 0.0).sum(1) / seen.sum(1).clamp(min=1)
        return torch.where(seen.any(1), mean, torch.inf) if bool(seen.any()) else mean

    def _sizes(self) -> Tensor:
        """Return the number of training samples of each group, at least 1, ``(n_groups,)``."""
        return torch.bincount(self.group.long(), minlength=len(self.centres)).clamp(min=1).float()

    def _grams(self, loadings: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`L^\top L` over the genes to fit to, and over all observed ones."""
        fit, check = _parts(seen)
        gram = loadings[fit].T @ loadings[fit]
        return gram, gram + loadings[check].T @ loadings[check]

    def _conditional_mean(
        self,
        x: Tensor,
        belongs: Tensor,
        own: Tensor,
        usual: Tensor,
        loadings: Tensor,
        grams: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return the mean of all genes given the observed ones of a sample, ``(n_genes,)``.

        Parameters
        ----------
        x
            ``(n_genes,)`` log TPM, ``NaN`` = missing.
        belongs
            ``(n_groups,)`` share of each group.
        own, usual
            ``(r, r)`` covariance of scores of samples like this one, and of all; their sum with
            weights 1 and λ is that of the sample.
        loadings, grams
            ``(n_genes, r)``, and what :meth:`_grams` makes of them.
        """
        mean = belongs @ self.centres
        left = torch.nan_to_num(x - mean)
        fit, check = _parts(torch.isfinite(x))
        right = loadings[fit].T @ left[fit]
        both = right + loadings[check].T @ left[check]
        unit = torch.eye(len(own), device=x.device)
        least = torch.inf
        for local in _LOCAL:
            # With a root of the covariance the system is well conditioned even if it is singular.
            root = _root(own + local * usual)
            gram, target = root.T @ grams[0] @ root, root.T @ right
            for times in _NOISE:
                noise = times * self.noise
                scores = root @ _solve(gram + noise * unit, target)
                error = float((loadings[check] @ scores - left[check]).square().sum())
                if error < least:
                    least, chosen = error, (root, noise)
        root, noise = chosen
        whole = root.T @ grams[1] @ root + noise * unit
        return mean + loadings @ (root @ _solve(whole, root.T @ both))

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
            rows = rng.permutation(np.flatnonzero(studies == study))[:_SAMPLES]
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


def _parts(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Split observed genes into those to fit to, and every fifth to check predictions by."""
    place = torch.nonzero(seen).squeeze(1)
    check = torch.arange(len(place), device=place.device) % _EVERY == _EVERY - 1
    return place[~check], place[check]


def _root(covariance: Tensor) -> Tensor:
    """Return a matrix whose product with its transpose is the covariance, almost."""
    jitter = 1e-7 * covariance.diagonal().mean() + 1e-12
    unit = torch.eye(len(covariance), device=covariance.device, dtype=torch.float64)
    return torch.linalg.cholesky(covariance.double() + jitter * unit).float()


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Solve a system that is positive definite, but for rounding."""
    root, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        return torch.linalg.solve(matrix, vector)
    return torch.cholesky_solve(vector.unsqueeze(1), root).squeeze(1)


def _scores(
    rows: np.ndarray, known: np.ndarray, directions: np.ndarray, penalty: np.ndarray | None = None
) -> np.ndarray:
    """Return least-squares scores of rows on the loadings, over the genes that each measures."""
    out = np.empty((len(rows), directions.shape[1]), dtype=np.float32)
    patterns, which = np.unique(known, axis=0, return_inverse=True)
    for p, pattern in enumerate(patterns):
        chosen = np.flatnonzero(which.ravel() == p)
        d = directions[pattern].astype(np.float64)
        own = 1e-3 + _RIDGE * (1.0 - pattern.mean()) if penalty is None else penalty
        gram = d.T @ d + own * np.eye(d.shape[1])
        right = rows[chosen][:, pattern] @ d
        out[chosen] = np.linalg.solve(gram, right.T).T
    return out


def _hide(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Choose a random part of the observed entries."""
    return torch.isfinite(x) & torch.from_numpy(rng.random(tuple(x.shape)) < _HIDDEN)
