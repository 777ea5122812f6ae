"""Which single genes predict a target: ridge on the embedding of each gene, with FDR."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from cfm._fields import GENES
from cfm.data import GeneVocabulary
from cfm.stats._enrichment import benjamini_hochberg
from cfm.tl._probe._cross_validation import N_INNER_FOLDS, make_splits
from cfm.tl._probe._data import read_features
from cfm.tl._representation import read_representation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from cfm.tl._probe._cross_validation import Split
    from cfm.tl._probe._data import Target
    from cfm.tl._representation import LatentModel

#: Value of ``heads`` that probes gene by gene.
EACH_GENE = "each_gene"
#: Permutations of the target; the null distributions of all genes are pooled.
N_PERMUTATIONS = 200
#: Genes that are chosen in the training folds and predict together.
N_CHOSEN = 10
_EXPRESSION = "expression"
#: Ridge penalty, for features of unit variance and a kernel with a mean diagonal of 1.
_PENALTY = 1.0


def probe_each_gene(
    adata: AnnData,
    found: Target,
    use_rep: Sequence[str | LatentModel],
    layer: str | None,
    n_folds: int,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of genes, and the score of genes chosen in training, by representation.

    Raises
    ------
    KeyError, TypeError, ValueError
        If ``use_rep`` is not one ``obsm`` key with embeddings of genes, or the target has missing
        values or training rows of its own.
    """
    if found.trains is not None or not np.isfinite(found.values).all():
        raise ValueError(
            f"heads={EACH_GENE!r} goes with cross-validation and a target without missing values; "
            "leave test_on= out, and pass targets one by one."
        )
    expression = next(iter(read_features(adata, [], layer, found.rows).values()))
    if not use_rep:
        names = adata.var_names.astype(str).tolist()
        columns = (expression[:, [g]] for g in range(len(names)))
        scored = {_EXPRESSION: score_genes(columns, names, found, n_folds, seed)}
    else:
        stored = adata.uns.get(use_rep[0], {}) if isinstance(use_rep[0], str) else {}
        if len(use_rep) != 1 or GENES not in stored:
            raise ValueError(
                f"heads={EACH_GENE!r} reads one obsm key with embeddings of genes, or expression "
                "with use_rep=None; such embeddings come from cfm.tl.embed(adata, model, "
                "level='gene', output=…)."
            )
        names = [str(name) for name in stored[GENES]]
        table = read_representation(adata, use_rep[0], "adata")[found.rows]
        matrices = table.reshape(len(table), len(names), -1)
        alignment = GeneVocabulary(names).align(adata.var_names, min_genes=1)
        columns = (expression[:, [g]] for g in alignment.columns)
        measured = [names[g] for g in alignment.positions]
        genes = (matrices[:, g] for g in range(len(names)))
        scored = {
            str(use_rep[0]): score_genes(genes, names, found, n_folds, seed),
            _EXPRESSION: score_genes(columns, measured, found, n_folds, seed),
        }
    first, *others = scored
    table = scored[first].table
    for name in others:
        table = table.join(scored[name].table.add_prefix(f"{name}_"))
    rows = [
        (name, EACH_GENE, "/".join(found.names), f"correlation, {N_CHOSEN} genes", own.chosen)
        for name, own in scored.items()
    ]
    results = pd.DataFrame(rows, columns=["representation", "head", "target", "metric", "score"])
    results["low"] = results["high"] = np.nan
    results["n_obs"], results["n_groups"] = len(found.rows), len(np.unique(found.groups))
    return table.sort_values("p_value", kind="stable"), results.set_axis(results.index.astype(str))


class GeneScores(NamedTuple):
    """Scores of single genes, and of genes chosen in training.

    Attributes
    ----------
    table
        A row per gene: ``correlation``, ``p_value``, ``fdr`` and ``n_chosen``, the number of
        outer folds in which the gene was chosen.
    chosen
        Correlation of the mean prediction of the genes that were chosen in each training part.
    """

    table: pd.DataFrame
    chosen: float


def responses(target: Target) -> np.ndarray:
    """Return what is predicted linearly, ``(n, k)``.

    Class indicators, values, or martingale residuals: events less the cumulative hazard without
    features (Nelson and Aalen), larger for earlier events.
    """
    if target.task == "classification":
        indicators = np.eye(len(target.classes))[target.strata]
        return indicators[:, 1:] if len(target.classes) == 2 else indicators
    if target.task == "regression":
        return target.values
    time, event = target.values.T
    order = np.argsort(time, kind="stable")
    times, first = np.unique(time[order], return_index=True)
    at_risk = len(time) - first
    n_events = np.add.reduceat(event[order], first)
    hazard = np.cumsum(n_events / at_risk)
    return (event - hazard[np.searchsorted(times, time)])[:, None]


def score_genes(
    genes: Iterator[np.ndarray], names: Sequence[str], target: Target, n_folds: int, seed: int
) -> GeneScores:
    """Score the embedding of each gene.

    Parameters
    ----------
    genes
        For each gene ``(n, d)``, its embedding in each observation.
    names
        Names of the genes.
    target
        The target of the same observations.
    n_folds, seed
        Outer folds, and seed of folds and permutations.
    """
    outcome = responses(target)
    flat = np.zeros(len(outcome), dtype=np.int64)  # folds must not depend on the permuted target
    splits = make_splits(flat, target.groups, n_folds, seed, grouped=target.grouped)
    inner = []
    for train, _ in splits:
        grouped = target.grouped and len(np.unique(target.groups[train])) > 1
        cut = make_splits(flat[train], target.groups[train], N_INNER_FOLDS, seed, grouped=grouped)
        inner.append([(train[a], train[b]) for a, b in cut])
    rng = np.random.default_rng(seed)
    shuffled = [_permutation(target, outcome, rng) for _ in range(N_PERMUTATIONS)]
    every = np.stack([outcome, *(outcome[order] for order in shuffled)])  # (1 + p, n, k)
    found, within, kept = [], [], []
    for features in genes:
        kernel = _kernel(features)
        predicted = _predict(kernel, every, splits)
        found.append(_correlation(every, predicted, splits))
        kept.append(predicted[0])
        within.append(
            [_correlation(every[:1], _predict(kernel, every[:1], cut), cut)[0] for cut in inner]
        )
    null = np.array(found)[:, 1:]
    centre, spread = null.mean(1, keepdims=True), null.std(1, keepdims=True)
    spread[spread == 0] = 1.0
    pooled = np.sort(((null - centre) / spread).ravel())
    standard = (np.array(found)[:, 0] - centre[:, 0]) / spread[:, 0]
    above = len(pooled) - np.searchsorted(pooled, standard, side="left")
    p_values = (1 + above) / (1 + len(pooled))
    ranks = np.array(within).T  # (n_splits, n_genes)
    together, chosen = np.zeros_like(outcome), np.zeros(len(names), dtype=np.int64)
    for (_, test), rank in zip(splits, ranks, strict=True):
        best = np.argsort(-rank, kind="stable")[:N_CHOSEN]
        chosen[best] += 1
        together[test] = np.mean([kept[g][test] for g in best], axis=0)
    table = pd.DataFrame(
        {
            "correlation": np.array(found)[:, 0],
            "p_value": p_values,
            "fdr": benjamini_hochberg(p_values),
            "n_chosen": chosen,
        },
        index=pd.Index(names),
    )
    return GeneScores(table, float(_correlation(outcome[None], together[None], splits)[0]))


def _permutation(target: Target, outcome: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an order of the observations under which groups are exchangeable.

    Observations are permuted within their groups; groups as wholes of the same size if the target
    is constant within each.
    """
    n = len(outcome)
    if not target.grouped:
        return rng.permutation(n)
    members = [np.flatnonzero(target.groups == name) for name in np.unique(target.groups)]
    order = np.arange(n)
    if all((outcome[rows] == outcome[rows[0]]).all() for rows in members):
        sizes = np.array([len(rows) for rows in members])
        for size in np.unique(sizes):
            same = np.flatnonzero(sizes == size)
            for to, source in zip(same, rng.permutation(same), strict=True):
                order[members[to]] = members[source]
    else:
        for rows in members:
            order[rows] = rng.permutation(rows)
    return order


def _kernel(features: np.ndarray) -> np.ndarray:
    """Return products of standardised features, mean diagonal 1; NaN becomes the mean."""
    x = features - np.nan_to_num(np.nanmean(features, axis=0))
    x = np.nan_to_num(x).astype(np.float64)
    spread = x.std(axis=0)
    varies = spread > 1e-6 * max(float(spread.max()), 1e-6)
    x = x[:, varies] / spread[varies]
    return np.asarray(x @ x.T / max(1, x.shape[1]))


def _predict(kernel: np.ndarray, outcomes: np.ndarray, splits: Sequence[Split]) -> np.ndarray:
    """Predict test rows by kernel ridge regression on training rows, as ``outcomes``."""
    p, n, k = outcomes.shape
    columns = outcomes.transpose(1, 0, 2).reshape(n, -1)
    out = np.zeros_like(columns)
    for train, test in splits:
        own = kernel[np.ix_(train, train)]
        weights = np.linalg.solve(own + _PENALTY * np.eye(len(train)), kernel[train][:, test]).T
        known = columns[train]
        out[test] = weights @ (known - known.mean(0))
    return out.reshape(n, p, k).transpose(1, 0, 2)


def _correlation(
    outcomes: np.ndarray, predicted: np.ndarray, splits: Sequence[Split]
) -> np.ndarray:
    """Return the correlation within folds of outcomes and predictions, ``(p,)``."""
    products = np.zeros((3, len(outcomes)))
    for _, test in splits:
        y, z = (v[:, test] - v[:, test].mean(1, keepdims=True) for v in (outcomes, predicted))
        products += [(y * z).sum((1, 2)), (y * y).sum((1, 2)), (z * z).sum((1, 2))]
    return products[0] / np.sqrt(np.maximum(products[1] * products[2], 1e-24))
