"""How much of a target can be read off a representation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import settings
from scvi.utils import track

from cfm._arguments import PART
from cfm._fields import (
    COMPARISONS,
    FOLD,
    HIGH_RISK,
    LOW_RISK,
    NO_FEATURES,
    PARAMS,
    PLAIN_EXPRESSION,
    PREDICTIONS,
    PROBABILITIES,
    PROBE_KEY,
    RESULTS,
    RISK_GROUP,
    params_of,
)
from cfm.data._store import check_key, warn_overwritten
from cfm.data._store import target as destination
from cfm.data._takes_anndata import takes_anndata
from cfm.metrics._fold_scores import group_draws
from cfm.tl._probe_cv import Plan, Prediction, make_splits, out_of_fold, trivial
from cfm.tl._probe_features import read_features, recorded_layer
from cfm.tl._probe_heads import choose_heads
from cfm.tl._probe_scores import compare, score, tabulate
from cfm.tl._probe_target import Task, read_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from cfm.tl._probe_target import ProbeTarget

_TRIVIAL = {"classification": "majority", "regression": "mean", "survival": "Kaplan-Meier"}
#: Survival is scored at the times by which these shares of the events were seen.
_HORIZONS = (0.25, 0.5, 0.75)
_SEED_STEP = 7919


@takes_anndata(
    columns=("target", "groups"),
    ranges={"n_folds": 2, "n_inner_folds": 2, "confidence": PART},
)
def probe(
    adata: AnnData,
    target: str | Sequence[str],
    task: Task = "classification",
    *,
    groups: str | None = None,
    train_on: str | Sequence[str] | None = None,
    test_on: str | Sequence[str] | None = None,
    use_rep: str | Sequence[str] | None = None,
    layer: str | None = None,
    heads: str | Sequence[str] | None = None,
    plain_expression: bool = True,
    n_components: int = 50,
    n_folds: int = 5,
    n_inner_folds: int = 3,
    n_repeats: int = 1,
    class_weight: str | None = "balanced",
    horizons: Sequence[float] | None = None,
    n_boot: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    key_added: str = PROBE_KEY,
    copy: bool = False,
) -> AnnData | None:
    """Predict a target from embeddings, from plain expression and from nothing, side by side.

    Nested cross-validation: in each outer fold, small heads are fitted on the other folds, their
    settings chosen by inner folds of those. No group is ever split, between inner folds neither.
    Whatever is estimated (means, variances, principal components, penalties) is estimated on
    training observations alone. The same heads on the same folds get the principal components of
    the expression matrix, and a trivial predictor gets nothing: a score of an embedding means
    something beside these only.

    What ranks (AUROC, C-index, correlations) is compared within folds, because each fold has a
    model of its own; AUROC and C-index are means over the folds, weighted by their groups. With
    as many folds as studies, each study is ranked by itself and counts the same. With several
    targets each is scored by itself; the pooled correlation over targets, which mostly tells that
    targets have different means, is not computed.

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
        ``cfm-tools[survival]``). An event is 1 or ``True`` where it was seen.
    groups
        Column of ``obs`` with what belongs together: patient, donor, study. ``None`` takes each
        observation for a group. With two groups each is predicted by the other.
    train_on, test_on
        Levels of ``groups`` to train on, and to predict; one of them says what the other is.
        There is no cross-validation then but for the settings of the heads.
    use_rep
        ``obsm`` keys of one or more representations; the first one's predictions are stored in
        ``obs``. ``None`` takes the expression of all genes.
    layer
        Layer with the expression instead of ``X``; by default the layer that ``use_rep`` was made
        from, as its record says. Counts are scaled to the median of their sums and get ``log1p``.
    heads
        Of ``"logistic"``, ``"random_forest"``; ``"ridge"``, ``"random_forest"``; ``"cox"`` (ridge
        penalty), ``"random_survival_forest"``, ``"cox_elastic_net"``. By default the first two of
        the task; ridge alone for several targets (a forest predicts them jointly).
    plain_expression
        Also score the heads on principal components of the expression.
    n_components
        Number of these components.
    n_folds, n_inner_folds
        Outer and inner folds; stratified by class or event. Where the training rows are of one
        group, inner folds split observations.
    n_repeats
        Repeat with other folds and average: steadier for small cohorts.
    class_weight
        ``"balanced"`` lets all classes weigh the same in training, ``None`` all observations.
    horizons
        Times at which survival is scored; by default the quartiles of the times of events.
    n_boot
        Bootstrap draws behind each interval: of whole groups; of observations within groups where
        there are two groups or ``train_on`` or ``test_on`` is given.
    confidence
        Confidence level of the intervals.
    seed
        Seed of folds, forests and draws.
    key_added
        Where results go.
    copy
        Return a changed copy instead of writing to ``adata``.

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes

    ``adata.uns[key_added]['results']``
        DataFrame, a row per ``representation``, ``head``, ``target`` and ``metric``: ``score``,
        ``low`` and ``high`` (bootstrap over groups), ``n_obs``, ``n_groups``. Representations are
        those asked for, ``"expression PCA"`` and ``"none"``. Metrics: ``accuracy``,
        ``balanced_accuracy``, ``macro_f1``, ``auroc``; ``pearson``, ``spearman``, ``r2``, ``mae``;
        ``c_index``, ``auroc_t`` (cumulative/dynamic, mean over horizons), ``brier_t`` (smaller =
        better). With several targets also the ``"mean over
        targets"``.
    ``adata.uns[key_added]['comparisons']``
        DataFrame: difference of each representation to plain expression and to the trivial
        predictor with the same head, paired over the draws: ``difference``, ``low``, ``high``.
    ``adata.uns[key_added]['params']``
        Arguments, classes, horizons, counts of observations and groups.
    ``adata.obs[key_added]``
        Out-of-fold prediction of the first representation and head: the class (categorical), the
        value, or the risk as the share of training observations with a lower one (0 to 1). Missing
        where an observation was left out; not written for several targets.
    ``adata.obs[key_added + '_fold']``
        int64, outer fold (of the first repeat), -1 where left out.
    ``adata.obs[key_added + '_risk_group']``
        Survival: ``"high"`` where the risk is above that of half the training observations.
    ``adata.obsm[key_added + '_proba']``
        Classification: DataFrame, observations by classes, of the first representation and head;
        ``"|"`` in place of ``"/"`` in their names.
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
        If a target is not of the kind the task needs.
    ValueError
        If there is one class, a class with fewer members than folds or in one group only, a
        constant target, fewer groups than folds, no events, negative times, or an argument out of
        range; or the expression is missing, or is the representation itself, as in an AnnData
        made of it. Whatever is raised, ``adata`` is left as it was.

    Warns
    -----
    UserWarning
        If observations are left out, features are missing, or a column such as ``patient`` repeats
        while ``groups`` is not given.

    Notes
    -----
    Intervals describe the sampling of groups at given predictions, not the variance of training;
    with less than about ten groups they are too narrow. Results do not depend on the order of the
    observations.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.pp.contrasts(
    ...     cfm.datasets.toy_infection(), "virus", "none", by=["study", "donor"]
    ... )
    >>> cfm.tl.embed(adata, "cellpulse-mini")
    >>> cfm.tl.probe(adata, "virus", groups="study", use_rep="X_cellpulse", n_folds=3, n_boot=50)
    >>> sorted(adata.uns["probe"]["results"]["representation"].unique())
    ['X_cellpulse', 'expression PCA', 'none']
    """
    check_key(key_added)
    found = read_target(adata, target, task, groups, n_folds, (train_on, test_on))
    if layer is None:
        layer = recorded_layer(adata, use_rep)
    chosen = choose_heads(heads, task, len(found.names))
    representations = read_features(adata, use_rep, layer, found.rows, plain_expression)
    times = _horizons(found, horizons)

    plans = [
        Plan(n_inner_folds, times, class_weight, seed + _SEED_STEP * r) for r in range(n_repeats)
    ]
    if found.trains is None:
        splits_of = [
            make_splits(found.strata, found.groups, n_folds, plan.seed, grouped=found.grouped)
            for plan in plans
        ]
    else:
        splits_of = [[(np.flatnonzero(found.trains), np.flatnonzero(~found.trains))]] * n_repeats
    predictions: dict[tuple[str, str], list[Prediction]] = {}
    work = [(name, head) for name in representations for head in chosen]
    silent = settings.verbosity > logging.INFO
    for name, head in track(work, description="Probing", disable=silent):
        components = n_components if name == PLAIN_EXPRESSION else None
        predictions[name, head.name] = [
            out_of_fold(representations[name], found, head, splits, plan, components)
            for plan, splits in zip(plans, splits_of, strict=True)
        ]
    predictions[NO_FEATURES, _TRIVIAL[task]] = [trivial(found, s, times) for s in splits_of]
    n_train = 0 if found.trains is None else int(found.trains.sum())
    if found.trains is not None:  # only what was predicted is scored
        tested = splits_of[0][0][1]
        found = found.part(tested)
        predictions = {m: [p.part(tested) for p in of] for m, of in predictions.items()}
        splits_of = [[(np.empty(0, dtype=np.int64), np.arange(len(tested)))]] * n_repeats
    few = n_train > 0 or (found.grouped and len(np.unique(found.groups)) == 2)
    weights = group_draws(found.groups, n_boot, seed, within=few)
    scores = {
        method: score(found, repeats, splits_of, times, weights)
        for method, repeats in predictions.items()
    }
    results = tabulate(found, scores, confidence)
    comparisons = compare(found, scores, confidence)

    adata = destination(adata, copy=copy)
    first = next(iter(predictions))
    fields = _fields(adata, found, predictions, splits_of[0], key_added)
    warn_overwritten(adata, key_added, {slot: list(new) for slot, new in fields.items()})
    _remove_former(adata, key_added)
    for slot, new in fields.items():
        for name, value in new.items():
            getattr(adata, slot)[name] = value
    record = {
        "target": list(found.names),
        "task": task,
        "groups": groups or "",
        "train_on": _levels(train_on),
        "test_on": _levels(test_on),
        "use_rep": [n for n in representations if n != PLAIN_EXPRESSION],
        "layer": layer or "",
        "heads": [head.name for head in chosen],
        "predictions": "|".join(first),
        "plain_expression": plain_expression,
        "n_components": n_components,
        "n_folds": n_folds,
        "n_inner_folds": n_inner_folds,
        "n_repeats": n_repeats,
        "class_weight": class_weight or "",
        "n_boot": n_boot,
        "confidence": confidence,
        "seed": seed,
        "n_obs": len(found.rows),
        "n_train": n_train,
        "n_left_out": adata.n_obs - n_train - len(found.rows),
        "n_groups": len(np.unique(found.groups)),
        "models": _models(adata, representations),
    }
    if found.classes:
        record["classes"] = found.classes
    if task == "survival":
        record["horizons"] = times
        record["n_events"] = int(found.values[:, 1].sum())
    adata.uns[key_added] = {PARAMS: record, RESULTS: results, COMPARISONS: comparisons}
    return adata if copy else None


def _levels(side: str | Sequence[str] | None) -> list[str]:
    return [side] if isinstance(side, str) else [str(level) for level in side or ()]


def _remove_former(adata: AnnData, key: str) -> None:
    """Remove what an earlier probe of another kind left under this key."""
    former = adata.uns.get(key)
    if not isinstance(former, Mapping) or COMPARISONS not in former:
        return
    slots = {"obs": ("", FOLD, RISK_GROUP), "obsm": (PROBABILITIES, PREDICTIONS)}
    for slot, parts in slots.items():
        for name in (key + part for part in parts):
            if name in getattr(adata, slot):
                del getattr(adata, slot)[name]


def _horizons(found: ProbeTarget, given: Sequence[float] | None) -> np.ndarray:
    if found.task != "survival":
        return np.empty(0)
    time, event = found.values.T
    if given is None:
        return np.unique(np.quantile(time[event == 1], _HORIZONS))
    times = np.unique(np.asarray(given, dtype=np.float64))
    low, high = time[event == 1].min(), time.max()
    if not times.size or times.min() < low or times.max() >= high:
        raise ValueError(
            f"horizons={list(given)}; times from {low:g} (the first event) to below {high:g} (the "
            "end of observation) are expected."
        )
    return times


def _models(adata: AnnData, representations: dict[str, np.ndarray]) -> dict[str, str]:
    """Name and checksum of the model behind each representation that :func:`embed` made."""
    found = {}
    for name in representations:
        record = params_of(adata.uns, name)
        if "model" in record:
            found[name] = f"{record['model']} {record.get('sha256', '')}".strip()
    return found


def _fields(
    adata: AnnData,
    found: ProbeTarget,
    predictions: dict[tuple[str, str], list[Prediction]],
    splits: list[tuple[np.ndarray, np.ndarray]],
    key: str,
) -> dict[str, dict[str, Any]]:
    """Everything that is written beside ``uns``, over all observations."""
    fold: np.ndarray = np.full(adata.n_obs, -1, dtype=np.int64)
    for number, (_, test) in enumerate(splits):
        fold[found.rows[test]] = number
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
        names = [name.replace("/", "|") for name in found.classes]  # no "/" in columns of files
        obsm[key + PROBABILITIES] = pd.DataFrame(spread(main), index=adata.obs_names, columns=names)
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
