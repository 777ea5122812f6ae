"""Response of cell lines to drugs, predicted from both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm._adata import check_key, takes_anndata, warn_overwritten, warn_user
from cfm._adata import target as destination
from cfm._docs import fill_docs
from cfm._fields import NO_FEATURES, PARAMS, PLAIN_EXPRESSION, PROBE_DRUGS_KEY, RESULTS
from cfm.data._matrix import in_memory_frame
from cfm.tl._probe._cross_validation import N_INNER_FOLDS, make_splits, preprocessing
from cfm.tl._probe._data import read_features, read_target, recorded_layer
from cfm.tl._run import TEXTS

if TYPE_CHECKING:
    from cfm.tl._representation import LatentModel

#: What is left out of training: lines, drugs, or the lines and the drugs of a test pair.
LEFT_OUT = ("line", "drug", "both")
#: Candidate penalties; rows of features have a root mean square length of 1.
_PENALTIES = (1000.0, 100.0, 10.0, 1.0, 0.1)
_MEANS = ("drug mean", "line mean", "drug + line mean")
_HEADS = ("additive ridge", "bilinear ridge")
_N_BOOT, _N_SWEEPS = 1000, 20

#: Training and test rows of lines, and of drugs.
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@takes_anndata(columns=("groups",), ranges={"n_folds": 2})
@fill_docs(TEXTS)
def probe_drugs(
    adata: AnnData,
    target: str,
    drug_features: pd.DataFrame,
    *,
    left_out: str | Sequence[str] = LEFT_OUT,
    groups: str | None = None,
    use_rep: str | LatentModel | Sequence[str | LatentModel] | None = None,
    layer: str | None = None,
    n_folds: int = 5,
    seed: int = 0,
    key_added: str = PROBE_DRUGS_KEY,
    copy: bool = False,
) -> AnnData | None:
    r"""Score predictions of drug response from cell lines and drugs, and from means.

    The response of line :math:`i` to drug :math:`j` is
    :math:`\mu + a_i + b_j + x_i^\top W d_j`, with features :math:`x` of lines and :math:`d` of
    drugs. Effects :math:`a, b` of lines and drugs in training are their means; those of others are
    predicted by ridge regression. The last term is a ridge regression of the residuals on both
    sides (two-step kernel ridge, Stock et al. 2018); lines and drugs in training also have an
    effect of their own in it. Missing responses are residuals of 0. Inner folds, which leave out
    what the outer ones do, choose the penalties of the effects and of the last term. All
    estimates come from training lines and drugs.

    Parameters
    ----------
    adata
        Cell lines (or samples) with expression on a log scale or representations.
    target
        ``obsm`` key of a DataFrame, lines by drugs, such as ln IC50; ``NaN`` = not tested.
    drug_features
        Drugs (index, as the columns of the target) by features: fingerprints, indicators of
        targets or pathways. Drugs without a row are left out.
    left_out
        Of ``"line"`` (known drugs, new lines), ``"drug"`` (the reverse) and ``"both"``.
    groups
        Column of ``obs`` with groups of lines that stay together, such as tissue or patient.
    use_rep
        Representations of the lines, as in :func:`cfm.tl.probe`; ``None`` is all genes.
    layer
        Layer with the expression instead of ``X``.
    n_folds
        Folds of lines, and of drugs; ``"both"`` has the square of them.
    seed
        Seed of folds and draws.
    %(key_added)s
    %(copy)s

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Writes

    ``adata.uns['probe_drugs' | key_added]['results']``
        DataFrame, a row per ``left_out``, ``representation``, ``head`` and ``metric``: ``score``,
        ``low`` and ``high`` (95 % of 1,000 bootstrap draws of drugs or of lines) and ``n``, the
        drugs or lines. Representations are those of ``use_rep``, ``"expression PCA"`` and
        ``"none"``, whose heads are ``"drug mean"``, ``"line mean"`` and ``"drug + line mean"``;
        others have ``"additive ridge"`` (without the last term) and ``"bilinear ridge"``.
        Metrics: ``pearson_within_drug``, the mean over drugs of the correlation over lines;
        ``pearson_within_line``, over drugs; both of values centred within folds, and 0 if a
        prediction is constant; ``rmse``.
    ``adata.uns['probe_drugs' | key_added]['params']``
        The arguments, and the numbers of lines, drugs and pairs.
    ``adata.obsm[key_added + '_' + left_out]``
        DataFrame, lines by drugs: out-of-fold predictions of the bilinear ridge on the first
        representation.

    Raises
    ------
    KeyError
        If a column, layer or representation does not exist.
    TypeError
        If the target or the features are no DataFrame of numbers.
    ValueError
        If lines or drugs are too few for the folds, or an argument is out of range. ``adata``
        stays unchanged.

    Warns
    -----
    UserWarning
        If lines have no response, drugs have no features, or features are missing.

    Notes
    -----
    A correlation over all pairs mostly reflects that some drugs are more toxic than others, and is
    not reported: compare within drugs.

    Examples
    --------
    >>> import cfm, numpy as np, pandas as pd
    >>> lines = cfm.datasets.toy_bulk_cohort()
    >>> cfm.pp.tpm(lines)
    >>> rng = np.random.default_rng(0)
    >>> drugs = pd.DataFrame(rng.normal(size=(8, 3)), index=[f"drug{i}" for i in range(8)])
    >>> lines.obsm["ln_ic50"] = pd.DataFrame(
    ...     rng.normal(size=(lines.n_obs, 8)), index=lines.obs_names, columns=drugs.index
    ... )
    >>> cfm.tl.probe_drugs(
    ...     lines, "ln_ic50", drugs, layer="log_tpm", left_out="line", groups="study", n_folds=3
    ... )
    >>> lines.uns["probe_drugs"]["results"]["metric"].unique().tolist()
    ['pearson_within_drug', 'pearson_within_line', 'rmse']
    """
    check_key(key_added)
    asked = [left_out] if isinstance(left_out, str) else list(left_out)
    if not asked or not set(asked) <= set(LEFT_OUT):
        raise ValueError(f"left_out={left_out!r}; expected some of {', '.join(LEFT_OUT)}.")
    response = adata.obsm.get(target)
    if not hasattr(response, "columns"):  # a DataFrame in memory or in a file
        raise TypeError(
            f"adata.obsm[{target!r}] is a {type(response).__name__}; expected a DataFrame, lines "
            "by drugs."
        )
    if not isinstance(drug_features, pd.DataFrame):
        raise TypeError(
            f"drug_features is a {type(drug_features).__name__}; expected a DataFrame by drug."
        )
    table = drug_features.set_axis(drug_features.index.astype(str))
    if not table.index.is_unique:
        raise ValueError("drug_features names a drug more than once.")
    obs = in_memory_frame(adata.obs).drop(columns=target, errors="ignore")
    alone = AnnData(obs=obs, obsm={target: in_memory_frame(response)})
    found = read_target(alone, target, "regression", groups, n_folds)
    given: Any = [] if use_rep is None else use_rep
    reps: list[str | LatentModel] = list(given) if isinstance(given, list | tuple) else [given]
    layer = recorded_layer(adata, reps) if layer is None else layer
    has = np.isin(found.names, table.index)
    drugs = np.array(found.names)[has]
    if len(drugs) < max(n_folds, N_INNER_FOLDS):
        raise ValueError(f"{len(drugs)} drugs have features, too few for {n_folds} folds.")
    if not has.all():
        warn_user(f"{(~has).sum()} of {len(has)} drugs have no features and are left out.")
    try:
        d = table.loc[drugs].to_numpy(dtype=np.float64)
    except ValueError as error:
        raise TypeError(f"drug_features holds values that are no numbers: {error}.") from error
    y = found.values[:, has]
    representations = read_features(adata, reps, layer, found.rows)
    parts = [
        make_splits(np.zeros(len(of), dtype=np.int64), of, n_folds, seed, grouped=grouped)
        for of, grouped in ((found.groups, found.grouped), (drugs, False))
    ]
    members = found.groups if found.grouped else None
    rows, predictions = [], {}
    for kind in asked:
        splits, folds = _splits(kind, parts, y.shape)
        made = {(NO_FEATURES, head): np.full(y.shape, np.nan) for head in _MEANS}
        for split in splits:
            train, test = np.ix_(split[0], split[2]), np.ix_(split[1], split[3])
            mean, a, b = _effects(y[train])
            of_line = a if kind == "drug" else np.zeros(len(split[1]))
            of_drug = b if kind == "line" else np.zeros(len(split[3]))
            parts_of = (of_drug[None], of_line[:, None], of_line[:, None] + of_drug[None])
            for head, part in zip(_MEANS, parts_of, strict=True):
                made[NO_FEATURES, head][test] = mean + part
        for name, x in representations.items():
            made |= {(name, head): np.full(y.shape, np.nan) for head in _HEADS}
            of_lines = _Operators(x, seed, reduce=name == PLAIN_EXPRESSION)
            of_drugs = _Operators(d, seed, reduce=True)
            for split in splits:
                best = _tune(kind, of_lines, of_drugs, y, members, split, seed)
                grid = _predict(of_lines, of_drugs, y, split, [best[0]], [best[1]])
                for head, values in zip(_HEADS, grid[0, 0], strict=True):
                    made[name, head][np.ix_(split[1], split[3])] = values
        for (name, head), predicted in made.items():
            for metric, score in _scores(y, predicted, folds, seed).items():
                rows.append((kind, name, head, metric, *score))
        first = made[next(iter(representations)), _HEADS[1]]
        wide = np.full((adata.n_obs, len(drugs)), np.nan)
        wide[found.rows] = first
        predictions[f"{key_added}_{kind}"] = pd.DataFrame(
            wide, index=adata.obs_names, columns=drugs
        )
    columns = ["left_out", "representation", "head", "metric", "score", "low", "high", "n"]
    results = pd.DataFrame(rows, columns=columns)
    adata = destination(adata, copy=copy)
    warn_overwritten(adata, key_added, {"obsm": list(predictions)})
    for name, frame in predictions.items():
        adata.obsm[name] = frame
    record = {
        "target": target, "left_out": asked, "groups": groups or "", "layer": layer or "",
        "use_rep": [name for name in representations if name != PLAIN_EXPRESSION],
        "n_folds": n_folds, "seed": seed, "n_lines": len(y), "n_drugs": len(drugs),
        "n_pairs": int(np.isfinite(y).sum()),
    }  # fmt: skip
    adata.uns[key_added] = {PARAMS: record, RESULTS: results.set_axis(results.index.astype(str))}
    return adata if copy else None


def _splits(
    kind: str, parts: list[list[tuple[np.ndarray, np.ndarray]]], shape: tuple[int, ...]
) -> tuple[list[Split], list[np.ndarray]]:
    """Return the splits, and the fold of each line and of each drug (0 if not left out)."""
    of = [[(np.arange(n), np.arange(n))] for n in shape]
    used = [parts[i] if kind in (LEFT_OUT[i], "both") else of[i] for i in (0, 1)]
    folds = [np.zeros(n, dtype=np.int64) for n in shape]
    for fold, cuts in zip(folds, used, strict=True):
        for number, (_, test) in enumerate(cuts):
            fold[test] = number
    return [(*line, *drug) for line in used[0] for drug in used[1]], folds


def _effects(y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the mean, and effects of lines and drugs (least squares; 0 without a response)."""
    mean, a, b = float(np.nanmean(y)), np.zeros(len(y)), np.zeros(y.shape[1])
    known = np.isfinite(y)
    left = np.where(known, y - mean, 0.0)
    for _ in range(_N_SWEEPS):
        b = (left - np.where(known, a[:, None], 0.0)).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        a = (left - np.where(known, b, 0.0)).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return mean, a, b


class _Operators:
    """Ridge regressions on the features of one side, as matrices from training to test rows.

    Parameters
    ----------
    features
        ``(n, n_features)`` of lines or of drugs.
    seed
        Seed of the principal components.
    reduce
        Whether features are reduced to principal components.
    """

    def __init__(self, features: np.ndarray, seed: int, *, reduce: bool) -> None:
        self.features, self.seed, self.reduce = features, seed, reduce
        self._made: dict[tuple[bytes, bytes], tuple[list[np.ndarray], list[np.ndarray]]] = {}

    def __call__(
        self, train: np.ndarray, test: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return by penalty the ``(test, train)`` matrices of the effects, and of residuals."""
        key = train.tobytes(), test.tobytes()
        if key not in self._made:
            shape = (len(train), self.features.shape[1])
            steps = preprocessing("ridge", shape, self.reduce, self.seed)
            x, z = steps.fit_transform(self.features[train]), steps.transform(self.features[test])
            x, z = x - x.mean(axis=0), z - x.mean(axis=0)
            value, vector = np.linalg.eigh(x @ x.T)
            value, own = np.maximum(value, 0.0), (test[:, None] == train[None]).astype(np.float64)
            across, known = z @ x.T @ vector, bool(own.any())
            joint = across + own @ vector  # features, and what is a line's or a drug's own
            self._made[key] = (
                [own if known else (across / (value + p)) @ vector.T for p in _PENALTIES],
                [(joint / (value + known + p)) @ vector.T for p in _PENALTIES],
            )
        return self._made[key]


def _predict(
    of_lines: _Operators,
    of_drugs: _Operators,
    y: np.ndarray,
    split: Split,
    of_effects: Sequence[int],
    of_residuals: Sequence[int],
) -> np.ndarray:
    """Predict the test pairs without and with residuals, by the numbers of the penalties.

    Returns ``(len(of_effects), len(of_residuals), 2, test lines, test drugs)``.
    """
    lines, test_lines, drugs, test_drugs = split
    own = y[np.ix_(lines, drugs)]
    mean, a, b = _effects(own)
    residuals = np.nan_to_num(own - mean - a[:, None] - b[None])
    line_effects, line_parts = of_lines(lines, test_lines)
    drug_effects, drug_parts = of_drugs(drugs, test_drugs)
    additive = np.stack(
        [mean + (line_effects[p] @ a)[:, None] + (drug_effects[p] @ b)[None] for p in of_effects]
    )
    last = np.stack([line_parts[p] @ residuals @ drug_parts[p].T for p in of_residuals])
    both = additive[:, None] + last[None]
    return np.stack([np.broadcast_to(additive[:, None], both.shape), both], axis=2)


def _tune(
    kind: str,
    of_lines: _Operators,
    of_drugs: _Operators,
    y: np.ndarray,
    groups: np.ndarray | None,
    split: Split,
    seed: int,
) -> tuple[int, int]:
    """Choose both penalties by the squared error of inner folds of the training part."""
    lines, _, drugs, _ = split
    parts = []
    for rows, of in ((lines, groups), (drugs, None)):
        own = rows if of is None else of[rows]
        grouped = of is not None and len(np.unique(own)) > 1
        cuts = make_splits(np.zeros(len(rows), int), own, N_INNER_FOLDS, seed, grouped=grouped)
        parts.append([(rows[train], rows[test]) for train, test in cuts])
    used = [
        parts[i] if kind in (LEFT_OUT[i], "both") else [(rows, rows)]
        for i, rows in enumerate((lines, drugs))
    ]
    every = range(len(_PENALTIES))
    error = np.zeros((len(_PENALTIES),) * 2)
    for line in used[0]:
        for drug in used[1]:
            made = _predict(of_lines, of_drugs, y, (*line, *drug), every, every)[:, :, 1]
            error += np.nansum((made - y[np.ix_(line[1], drug[1])]) ** 2, axis=(2, 3))
    best = np.unravel_index(error.argmin(), error.shape)
    return int(best[0]), int(best[1])


def _scores(
    truth: np.ndarray, predicted: np.ndarray, folds: list[np.ndarray], seed: int
) -> dict[str, tuple[float, float, float, int]]:
    """Return by metric the score, its interval, and the number of units."""
    units = {
        "pearson_within_drug": _within(truth, predicted, folds[0]),
        "pearson_within_line": _within(truth.T, predicted.T, folds[1]),
        "rmse": np.nanmean((truth - predicted) ** 2, axis=1),
    }
    out = {}
    rng = np.random.default_rng(seed)
    for name, values in units.items():
        values = values[np.isfinite(values)]
        if not len(values):
            out[name] = (np.nan, np.nan, np.nan, 0)
            continue
        drawn = values[rng.integers(0, len(values), (_N_BOOT, len(values)))].mean(axis=1)
        means = np.array([values.mean(), *np.quantile(drawn, [0.025, 0.975])])
        score, low, high = (np.sqrt(means) if name == "rmse" else means).tolist()
        out[name] = (score, low, high, len(values))
    return out


def _within(truth: np.ndarray, predicted: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Correlate columns of values centred within folds; ``NaN`` with a constant truth."""
    known = np.isfinite(truth)
    both = []
    for values in (truth, predicted):
        frame = pd.DataFrame(np.where(known, values, np.nan))
        both.append(np.nan_to_num((frame - frame.groupby(fold).transform("mean")).to_numpy()))
    lengths = [np.linalg.norm(part, axis=0) for part in both]
    found = (both[0] * both[1]).sum(axis=0) / np.maximum(lengths[0] * lengths[1], 1e-12)
    found = np.where(lengths[1] > 1e-9 * np.sqrt(len(truth)), found, 0.0)
    return np.where(lengths[0] > 1e-9, found, np.nan)
