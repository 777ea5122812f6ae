"""How much of a target can be read off a representation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import settings
from scvi.utils import track

from cfm._adata import check_key, takes_anndata, warn_overwritten
from cfm._adata import target as destination
from cfm._arguments import check_seed
from cfm._fields import (
    COMPARISONS,
    FOLD,
    GENES,
    HIGH_RISK,
    LOW_RISK,
    MEAN_TARGET,
    METHOD_PROBABILITIES,
    NO_FEATURES,
    PARAMS,
    PLAIN_EXPRESSION,
    PREDICTIONS,
    PROBABILITIES,
    PROBE_KEY,
    RESULTS,
    RISK_GROUP,
)
from cfm.metrics._fold_scores import class_scores, group_draws, survival_scores, value_scores
from cfm.tl._probe._by_gene import EACH_GENE, N_CHOSEN, N_PERMUTATIONS, probe_each_gene
from cfm.tl._probe._cross_validation import (
    N_COMPONENTS,
    N_INNER_FOLDS,
    choose_heads,
    make_splits,
    out_of_fold,
    trivial,
)
from cfm.tl._probe._data import Task, read_features, read_target, recorded_layer
from cfm.tl._representation import representation_name, representation_record

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.tl._probe._cross_validation import Prediction
    from cfm.tl._probe._data import Target
    from cfm.tl._representation import LatentModel

_TRIVIAL = {"classification": "majority", "regression": "mean", "survival": "Kaplan-Meier"}
#: Survival is scored at the times of these shares of the events, which weighs early and late events
#: equally in any unit of time.
_HORIZONS = (0.25, 0.5, 0.75)
#: Draws behind each interval: between seeds its ends then differ by some 2 % of its width.
_N_BOOT = 1000
_CONFIDENCE = 0.95

#: By representation and head: (metric, target) → ``(1 + n_boot,)``, the plain score first.
Scores = dict[tuple[str, str], dict[tuple[str, str], np.ndarray]]


@takes_anndata(columns=("target", "groups"), ranges={"n_folds": 2})
def probe(
    adata: AnnData,
    target: str | Sequence[str],
    task: Task = "classification",
    *,
    groups: str | None = None,
    test_on: str | Sequence[str] | None = None,
    use_rep: str | LatentModel | Sequence[str | LatentModel] | None = None,
    layer: str | None = None,
    heads: str | Sequence[str] | None = None,
    n_folds: int = 5,
    seed: int | Sequence[int] = 0,
    key_added: str = PROBE_KEY,
    copy: bool = False,
) -> AnnData | None:
    """Score predictions of a target from embeddings, from plain expression and without features.

    Nested cross-validation: for each outer fold, small models (heads) are fitted on the other
    folds, with settings chosen by three inner folds. Groups are never split, not even between inner
    folds. All estimates (means, variances, principal components, penalties) come from training
    observations only. The baselines are the same heads on the first 50 principal components of the
    expression matrix, and a trivial predictor without features. Classes have equal weights in
    training.

    Rank metrics (AUROC, C-index, correlations) are computed within folds, as each fold has its own
    model; AUROC and C-index are means over the folds, weighted by their groups. With as many folds
    as studies, each study has its own ranking and the same weight. Several targets are scored one
    by one, without a pooled correlation, which mostly reflects their different means.

    Parameters
    ----------
    adata
        Observations (samples, patients, cell lines, or genes) with representations in ``obsm``
        and expression on a log scale in ``X`` or a layer.
    target
        Column of ``obs``; for survival the columns of time and event, ``("time", "event")``; for
        regression also several columns or an ``obsm`` key, such as the response to each drug or
        the essentiality in each cell line. Observations without a target are left out.
    task
        ``"classification"``, ``"regression"`` or ``"survival"`` (which needs
        ``cfm-tools[survival]``). An event is 1 or ``True`` if it was observed.
    groups
        Column of ``obs`` with the groups that stay together: patients, donors, studies. With
        ``None`` each observation is a group. Two groups are predicted from each other.
    test_on
        Levels of ``groups`` to predict from all others. Cross-validation then only chooses the
        settings of the heads.
    use_rep
        One or more representations: ``obsm`` keys, or models with
        ``get_latent_representation(adata)``, of cfm, scvi-tools or elsewhere. The representation
        of a model is named ``X_<class>`` and not stored; models of scvi-tools register ``adata``.
        Predictions of the first are stored in ``obs``. ``None`` is the expression of all genes.
    layer
        Layer with the expression instead of ``X``; by default the recorded layer of
        ``use_rep``. Counts are scaled to the median of their sums and transformed by ``log1p``.
    heads
        Of ``"logistic"``, ``"random_forest"``; ``"ridge"``, ``"random_forest"``; ``"cox"`` (ridge
        penalty), ``"random_survival_forest"``, ``"cox_elastic_net"``. By default the first two of
        the task; ridge only for several targets (a forest predicts them jointly).
        ``"each_gene"`` instead scores single genes: ridge regression on the embedding of each
        gene in ``use_rep`` (:func:`cfm.tl.embed` with ``level="gene"`` and ``output``), and on its
        expression. It predicts class indicators, values, or martingale residuals of survival.
    n_folds
        Outer folds, stratified by class or event. If the training rows are of one group, inner
        folds split observations.
    seed
        Seed of folds, forests and draws. With several seeds, such as ``range(5)``, the
        cross-validation is repeated with other folds, and predictions and scores are averaged:
        steadier for small cohorts.
    key_added
        Name of the results.
    copy
        Return a changed copy; ``adata`` stays unchanged.

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes

    ``adata.uns[key_added]['results']``
        DataFrame, a row per ``representation``, ``head``, ``target`` and ``metric``: ``score``,
        ``low`` and ``high``, ``n_obs``, ``n_groups``. Intervals hold 95 % of 1,000 bootstrap draws
        of whole groups; of observations within groups with two groups or ``test_on``.
        Representations are those of ``use_rep``, ``"expression PCA"`` and ``"none"``.
        Metrics: ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``auroc``; ``pearson``,
        ``spearman``, ``r2``, ``mae``; ``c_index``, ``auroc_t`` (cumulative/dynamic) and
        ``brier_t`` (smaller = better), means over the times of 25, 50 and 75 % of the events.
        With several targets also the ``"mean over targets"``.
    ``adata.uns[key_added]['comparisons']``
        DataFrame: difference of each representation to those after it in ``use_rep``, to plain
        expression and to the trivial predictor, with the same head and paired over the draws:
        ``difference``, ``low``, ``high``.
    ``adata.uns[key_added]['params']``
        Arguments, ``target_key`` (the ``obsm`` key of the target, or ``""``), classes, horizons,
        counts of observations and groups, and ``models``: the model of each representation
        (``model``, ``module`` of its class, ``sha256`` or ``""``), if recorded.
    ``adata.uns[key_added]['genes']``
        Only with ``heads="each_gene"``, which writes no comparisons and predictions: DataFrame, a
        row per gene. ``correlation`` within folds of out-of-fold prediction and target;
        ``p_value`` against 200 permutations of the target (of observations within ``groups``, or
        of whole groups if the target is constant in each), standardised for each gene and pooled
        over genes; ``fdr`` (Benjamini-Hochberg over the genes); ``n_chosen``, the outer folds in
        which the gene was among the best ten of the training observations. The same of its
        expression with the prefix ``expression_``. The results then have the score of the mean
        prediction of those ten genes: screening is inside of the cross-validation.
    ``adata.obs[key_added]``
        Out-of-fold prediction of the first representation and head: the class (categorical), the
        value, or the risk as the share of training observations with a lower one (0 to 1). Missing
        if the observation is left out; not written for several targets.
    ``adata.obs[key_added + '_fold']``
        int64, outer fold (of the first seed), -1 if left out.
    ``adata.obs[key_added + '_risk_group']``
        Survival: ``"high"`` if the risk is above that of half the training observations.
    ``adata.obsm[key_added + '_proba']``
        Classification: DataFrame, observations by classes, of the first representation and head;
        class names have ``"|"`` for ``"/"``.
    ``adata.obsm[key_added + '_method_proba']``
        Classification: DataFrame, the same of each ``"representation|head|class"``.
    ``adata.obsm[key_added + '_predictions']``
        DataFrame: the same as ``obs[key_added]`` for each ``"representation|head"``; for several
        targets the predicted values, observations by targets.

    Raises
    ------
    ImportError
        If scikit-survival is needed and not installed.
    KeyError
        If a column, layer or representation does not exist.
    TypeError
        If a target does not fit the task, or ``use_rep`` is neither key nor model.
    ValueError
        If there is one class, a class with fewer members than folds or in one group only, a
        constant target, fewer groups than folds, no events, negative times, or an argument out of
        range; or there is neither a representation nor expression. ``adata`` stays unchanged.

    Warns
    -----
    UserWarning
        If observations are left out, features are missing, a column such as ``patient`` repeats
        while ``groups`` is not given, or there is no plain expression as a baseline: ``X`` is
        empty, or is the representation itself.

    Notes
    -----
    Intervals describe the sampling of groups at given predictions, not the variance of training;
    with fewer than about ten groups they are too narrow. Results do not depend on the order of the
    observations.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.pp.contrasts(
    ...     cfm.datasets.toy_infection(), "virus", "none", by=["study", "donor"]
    ... )
    >>> cfm.tl.embed(adata, "cellpulse-mini")
    >>> cfm.tl.probe(adata, "virus", groups="study", use_rep="X_cellpulse", n_folds=3)
    >>> sorted(adata.uns["probe"]["results"]["representation"].unique())
    ['X_cellpulse', 'expression PCA', 'none']
    """
    check_key(key_added)
    seeds = [check_seed(s) for s in (seed if isinstance(seed, Sequence) else [seed])]
    if not seeds:
        raise ValueError("seed= is empty; expected one whole number or more.")
    given: Any = [] if use_rep is None else use_rep
    reps: list[str | LatentModel] = list(given) if isinstance(given, list | tuple) else [given]
    if use_rep is not None and not reps:
        raise ValueError("use_rep is an empty list; name obsm keys, or pass None for all genes.")
    found = read_target(adata, target, task, groups, n_folds, test_on)
    if layer is None:
        layer = recorded_layer(adata, reps)
    if heads == EACH_GENE:
        if len(seeds) > 1:
            raise ValueError(
                f"seed has {len(seeds)} values; heads={EACH_GENE!r} takes one, for folds and "
                "permutations."
            )
        genes, results = probe_each_gene(adata, found, reps, layer, n_folds, seeds[0])
        adata = destination(adata, copy=copy)
        warn_overwritten(adata, key_added, {})
        _remove_former(adata, key_added)
        settings_used = {
            "target": found.names,
            "task": task,
            "groups": groups or "",
            "use_rep": [str(rep) for rep in reps],
            "layer": layer or "",
            "heads": [EACH_GENE],
            "n_folds": n_folds,
            "n_permutations": N_PERMUTATIONS,
            "n_chosen": N_CHOSEN,
            "seed": seeds[:1],
        }
        adata.uns[key_added] = {PARAMS: settings_used, RESULTS: results, GENES: genes}
        return adata if copy else None
    chosen = choose_heads(heads, task, len(found.names))
    representations = read_features(adata, reps, layer, found.rows)
    models = {representation_name(rep): representation_record(adata, rep) for rep in reps}
    horizons = np.empty(0)
    if task == "survival":
        time, event = found.values.T
        horizons = np.unique(np.quantile(time[event == 1], _HORIZONS))

    if found.trains is None:
        splits_of = [
            make_splits(found.strata, found.groups, n_folds, s, grouped=found.grouped)
            for s in seeds
        ]
    else:
        splits_of = [[(np.flatnonzero(found.trains), np.flatnonzero(~found.trains))]] * len(seeds)
    predictions: dict[tuple[str, str], list[Prediction]] = {}
    work = [(name, head) for name in representations for head in chosen]
    silent = settings.verbosity > logging.INFO
    for name, head in track(work, description="Probing", disable=silent):
        reduce, features = name == PLAIN_EXPRESSION, representations[name]
        predictions[name, head] = [
            out_of_fold(features, found, head, splits, horizons, s, reduce=reduce)
            for s, splits in zip(seeds, splits_of, strict=True)
        ]
    predictions[NO_FEATURES, _TRIVIAL[task]] = [trivial(found, s, horizons) for s in splits_of]
    folds = np.zeros((len(seeds), len(found.rows)), dtype=np.int64)
    for fold, splits in zip(folds, splits_of, strict=True):
        for number, (_, test) in enumerate(splits):
            fold[test] = number
    n_train = 0
    if found.trains is not None:  # only predicted observations are scored
        n_train, tested = int(found.trains.sum()), splits_of[0][0][1]
        found, folds = found.part(tested), folds[:, tested]
        predictions = {m: [p.part(tested) for p in of] for m, of in predictions.items()}
    few = n_train > 0 or (found.grouped and len(np.unique(found.groups)) == 2)
    weights = group_draws(found.groups, _N_BOOT, seeds[0], within=few)
    scores = {m: _score(found, of, folds, horizons, weights) for m, of in predictions.items()}
    results, comparisons = _tables(found, scores)

    adata = destination(adata, copy=copy)
    fields = _fields(adata, found, predictions, folds[0], key_added)
    warn_overwritten(adata, key_added, {slot: list(new) for slot, new in fields.items()})
    _remove_former(adata, key_added)
    for slot, new in fields.items():
        for name, value in new.items():
            getattr(adata, slot)[name] = value
    in_obsm = isinstance(target, str) and target not in adata.obs and target in adata.obsm
    record = {
        "target": found.names,
        "target_key": target if in_obsm else "",
        "task": task,
        "groups": groups or "",
        "test_on": [] if test_on is None else np.atleast_1d(test_on).astype(str).tolist(),
        "use_rep": [n for n in representations if n != PLAIN_EXPRESSION],
        "layer": layer or "",
        "heads": chosen,
        "predictions": "|".join(next(iter(predictions))),
        "n_components": N_COMPONENTS,
        "n_folds": n_folds,
        "n_inner_folds": N_INNER_FOLDS,
        "n_boot": _N_BOOT,
        "confidence": _CONFIDENCE,
        "seed": seeds,
        "n_obs": len(found.rows),
        "n_train": n_train,
        "n_left_out": adata.n_obs - n_train - len(found.rows),
        "n_groups": len(np.unique(found.groups)),
        "models": {name: one for name, one in models.items() if one},
    }
    if found.classes:
        record["classes"] = found.classes
    if task == "survival":
        record |= {"horizons": horizons, "n_events": int(found.values[:, 1].sum())}
    adata.uns[key_added] = {PARAMS: record, RESULTS: results, COMPARISONS: comparisons}
    return adata if copy else None


def _remove_former(adata: AnnData, key: str) -> None:
    """Remove the fields of an earlier probe with this key."""
    former = adata.uns.get(key)
    if not isinstance(former, Mapping) or COMPARISONS not in former:
        return
    tables = (PROBABILITIES, METHOD_PROBABILITIES, PREDICTIONS)
    slots = {"obs": ("", FOLD, RISK_GROUP), "obsm": tables}
    for slot, parts in slots.items():
        for name in (key + part for part in parts):
            if name in getattr(adata, slot):
                del getattr(adata, slot)[name]


def _fields(
    adata: AnnData,
    found: Target,
    predictions: dict[tuple[str, str], list[Prediction]],
    folds: np.ndarray,
    key: str,
) -> dict[str, dict[str, Any]]:
    """Return the fields of ``obs`` and ``obsm``, over all observations."""
    fold: np.ndarray = np.full(adata.n_obs, -1, dtype=np.int64)
    fold[found.rows] = folds
    obs: dict[str, Any] = {key + FOLD: fold}
    obsm: dict[str, Any] = {}
    methods = [method for method in predictions if method[0] != NO_FEATURES]
    means = {m: np.mean([p.main for p in predictions[m]], axis=0) for m in methods}
    main = means[methods[0]]

    def spread(values: np.ndarray) -> np.ndarray:
        full = np.full((adata.n_obs, *values.shape[1:]), np.nan)
        full[found.rows] = values
        return full

    columns: dict[str, Any]
    if found.task == "classification":
        names = [name.replace("/", "|") for name in found.classes]  # files take no "/"
        obsm[key + PROBABILITIES] = pd.DataFrame(spread(main), index=adata.obs_names, columns=names)
        every = {
            f"{'|'.join(method)}|{name}": values
            for method in methods
            for name, values in zip(names, spread(means[method]).T, strict=True)
        }
        obsm[key + METHOD_PROBABILITIES] = pd.DataFrame(every, index=adata.obs_names)
        columns = {}
        for method in methods:
            codes = np.full(adata.n_obs, -1, dtype=np.int64)
            codes[found.rows] = means[method].argmax(axis=1)
            columns["|".join(method)] = pd.Categorical.from_codes(codes, pd.Index(found.classes))
    elif found.task == "survival":
        risks = {m: np.mean([p.percentile for p in predictions[m]], axis=0) for m in methods}
        columns = {"|".join(m): spread(risk) for m, risk in risks.items()}
        own = columns["|".join(methods[0])]
        code = np.where(np.isnan(own), -1, own > 0.5).astype(np.int64)
        obs[key + RISK_GROUP] = pd.Categorical.from_codes(code, pd.Index([LOW_RISK, HIGH_RISK]))
    elif len(found.names) > 1:
        names = [name.replace("/", "|") for name in found.names]
        columns = dict(zip(names, spread(main).T, strict=True))
    else:
        columns = {"|".join(m): spread(mean[:, 0]) for m, mean in means.items()}
    if found.task != "regression" or len(found.names) == 1:
        obs[key] = next(iter(columns.values()))
    obsm[key + PREDICTIONS] = pd.DataFrame(columns, index=adata.obs_names)
    return {"obs": obs, "obsm": obsm}


def _score(
    target: Target,
    repeats: Sequence[Prediction],
    folds: np.ndarray,
    horizons: np.ndarray,
    weights: np.ndarray,
) -> dict[tuple[str, str], np.ndarray]:
    """Score each repeat under all weights, and average over the repeats.

    Returns (metric, target) → ``(n_draws,)``; of several targets first their mean.
    """
    _, member, size = np.unique(target.groups, return_inverse=True, return_counts=True)
    mass = 1.0 / size[member.ravel()]
    found: list[dict[str, np.ndarray]] = []
    for prediction, fold in zip(repeats, folds, strict=True):
        if target.task == "classification":
            one = class_scores(target.strata, prediction.main, fold, weights, mass)
        elif target.task == "regression":
            one = value_scores(target.values, prediction.main, fold, weights)
        else:
            from sksurv.nonparametric import CensoringDistributionEstimator
            from sksurv.util import Surv

            time, event = target.values[:, 0], target.values[:, 1].astype(bool)
            # censoring is independent of the predictions: all observations estimate it
            censoring = CensoringDistributionEstimator().fit(Surv.from_arrays(event, time))
            at = (censoring.predict_proba(time), censoring.predict_proba(horizons))
            risk, survival = prediction.main[:, 0], prediction.survival
            one = survival_scores(time, event, risk, survival, horizons, at, fold, weights, mass)
        found.append({name: values.reshape(len(weights), -1) for name, values in one.items()})
    scores = {}
    for metric in found[0]:
        values = np.mean([one[metric] for one in found], axis=0)  # (n_draws, n_targets)
        if values.shape[1] > 1:
            scores[metric, MEAN_TARGET] = pd.DataFrame(values).mean(axis=1).to_numpy()
        for name, draws in zip(target.scored_names, values.T, strict=True):
            scores[metric, name] = draws
    return scores


def _tables(target: Target, scores: Scores) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores, and the difference of each representation to those after it."""
    names, member = np.unique(target.groups, return_inverse=True)
    counts = dict.fromkeys([MEAN_TARGET, *target.scored_names], (len(target.rows), len(names)))
    if target.task == "regression":
        for name, used in zip(target.names, np.isfinite(target.values).T, strict=True):
            counts[name] = int(used.sum()), len(np.unique(member.ravel()[used]))
    results, comparisons = [], []
    order = list(dict.fromkeys(representation for representation, _ in scores))
    for (representation, head), own in scores.items():
        for (metric, name), draws in own.items():
            results.append((representation, head, name, metric, *_summary(draws), *counts[name]))
        for (baseline, other_head), others in scores.items():
            is_after = order.index(baseline) > order.index(representation)
            if not is_after or (other_head != head and baseline != NO_FEATURES):
                continue
            for (metric, name), draws in own.items():  # paired over the draws
                difference = _summary(draws - others[metric, name])
                comparisons.append((representation, baseline, head, name, metric, *difference))
    key, interval = ["head", "target", "metric"], ["low", "high"]
    columns = ["representation", *key, "score", *interval, "n_obs", "n_groups"]
    table = pd.DataFrame(results, columns=columns)
    columns = ["representation", "baseline", *key, "difference", *interval]
    compared = pd.DataFrame(comparisons, columns=columns)
    # files need text as names of rows
    return table.set_axis(table.index.astype(str)), compared.set_axis(compared.index.astype(str))


def _summary(draws: np.ndarray) -> tuple[float, float, float]:
    """Return the plain score, and the interval of the draws; NaN where few draws have a score."""
    score, known = float(draws[0]), draws[1:][np.isfinite(draws[1:])]
    # few draws with a score are no sample of the distribution
    if known.size < max(2, (len(draws) - 1) // 2):
        return score, float("nan"), float("nan")
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return score, float(low), float(high)
