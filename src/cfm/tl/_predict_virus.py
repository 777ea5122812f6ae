"""Which virus a host response looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from cfm._fields import (
    CONFIDENCE,
    INFECTED,
    NOVELTY,
    PARAMS,
    PREDICTION_SET,
    PROBABILITIES,
    SET_SEPARATOR,
    UNKNOWN,
    VIRUS_KEY,
)
from cfm.models import CellPulse, load_model
from cfm.models._base import require_anndata
from cfm.pp import contrasts
from cfm.tl._store import check_key, run_record, target, warn_overwritten

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData


def predict_virus(
    adata: AnnData | MuData,
    model: str | Path | CellPulse = "cellpulse-virus",
    *,
    groupby: str | None = None,
    control: Any = None,
    by: str | Sequence[str] | None = None,
    layer: str | None = None,
    key_added: str = VIRUS_KEY,
    alpha: float = 0.1,
    batch_size: int = 64,
    device: str | None = None,
    copy: bool = False,
    **contrast_kwargs: Any,
) -> AnnData | None:
    """Name the virus behind contrasts of infected against control samples.

    Answers are one of the viruses that the model was trained on, *uninfected* (the profile does
    not look like an infection) or *unknown* (it does, but like none of the trained viruses).
    Research use only; not a diagnostic.

    Parameters
    ----------
    adata
        Contrasts with log2 fold changes (:func:`cfm.pp.contrasts`); or, with ``groupby`` and
        ``control``, counts of samples, whose contrasts are then made first.
    model
        A CellPulse with a classifier, the name of one, a folder, or ``hf://org/name``.
    groupby, control, by
        Condition column of ``obs``, its control level, and columns to match samples on; see
        :func:`cfm.pp.contrasts`. Leave out for contrasts.
    layer
        Layer to read instead of ``X``.
    key_added
        Prefix of the results. The default is not ``"virus"``, because that column usually holds
        the truth.
    alpha
        Miscoverage of the conformal sets: at 0.1 they hold the truth nine times in ten.
    batch_size
        Contrasts at a time; the result does not depend on it.
    device
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
    copy
        Return a changed copy instead of writing to ``adata``.
    **contrast_kwargs
        Further arguments of :func:`cfm.pp.contrasts`, with ``groupby`` only.

    Returns
    -------
    Given contrasts ``None``, or with ``copy=True`` the changed copy; given counts a new AnnData
    of contrasts. Writes, with ``key`` = ``'predicted_virus' | key_added``:

    ``adata.obs[key]``
        Categorical, the call.
    ``adata.obs[f'{key}_confidence']``
        float32, calibrated probability of the call; of the most probable virus where the call is
        ``unknown``.
    ``adata.obs[f'{key}_infected']``
        float32, calibrated probability of an infection.
    ``adata.obs[f'{key}_novelty']``
        float32, share of held-out profiles of known viruses that are less unusual, 0 to 1.
    ``adata.obs[f'{key}_set']``
        str, conformal set of answers, joined by ``|``, most probable first.
    ``adata.obsm[f'{key}_proba']``
        DataFrame, contrasts by viruses and ``uninfected``; rows sum to 1.
    ``adata.uns[key]``
        ``params`` (arguments, model, SHA-256, device, share of genes found) and
        ``classes``.

    Raises
    ------
    TypeError
        If ``adata`` or ``model`` is of another type, or arguments of :func:`cfm.pp.contrasts` are
        given without ``groupby``.
    KeyError
        If a layer or a column does not exist.
    ValueError
        If only one of ``groupby`` and ``control`` is given, the model has no classifier, the
        matrix is not what it should be, or too few genes are found. Whatever is raised,
        ``adata`` is left as it was.

    Warns
    -----
    UserWarning
        If few of the model's genes are found, or a field that another tool wrote is replaced.

    Examples
    --------
    >>> import cfm
    >>> counts = cfm.datasets.blanco_melo()
    >>> calls = cfm.tl.predict_virus(counts, groupby="virus", control="none", by="series")
    >>> sorted(calls.obs["predicted_virus_confidence"].between(0, 1).unique().tolist())
    [True]
    """
    check_key(key_added)
    if (groupby is None) != (control is None):
        raise ValueError(
            f"Found groupby={groupby!r} and control={control!r}; give both to make contrasts of "
            "counts, or neither for contrasts."
        )
    if groupby is None:
        require_anndata(adata)
    caller = load_model(model, device=device)
    if not isinstance(caller, CellPulse):
        raise TypeError(f"model= is a {type(caller).__name__}; expected CellPulse.")
    caller.require_classifier()  # before contrasts are made for nothing
    record: dict[str, Any] = {}
    made = groupby is not None
    if groupby is not None:
        mode = contrast_kwargs.get("mode", "replicates")
        if mode == "pairs":
            raise ValueError(
                "mode='pairs' makes no AnnData; use mode='replicates' or 'test', or call "
                "cfm.pp.contrasts(…, mode='pairs').to_adata(n=…) and predict on that."
            )
        adata = contrasts(adata, groupby, control, by=by, layer=layer, **contrast_kwargs)
        record = {"groupby": groupby, "control": str(control), "mode": mode}
        record["by"] = [] if by is None else [by] if isinstance(by, str) else list(by)
        layer = None
    elif by is not None or contrast_kwargs:
        extra = sorted(contrast_kwargs) + (["by"] if by is not None else [])
        raise TypeError(f"{extra} only go with groupby= and control=.")
    prediction = caller.predict(adata, layer=layer, alpha=alpha, batch_size=batch_size)
    record |= {"key_added": key_added, "layer": layer, "batch_size": batch_size, "alpha": alpha}
    record = run_record(caller, adata, **record)
    adata = adata if made else target(adata, copy=copy)
    columns = [key_added + part for part in ("", CONFIDENCE, INFECTED, NOVELTY, PREDICTION_SET)]
    warn_overwritten(adata, key_added, {"obs": columns, "obsm": [key_added + PROBABILITIES]})
    classes = prediction.proba.columns.astype(str).tolist()
    calls = pd.Categorical(prediction.call, categories=[*classes, UNKNOWN])
    adata.obs[key_added] = calls.remove_unused_categories()
    adata.obs[key_added + CONFIDENCE] = prediction.confidence
    adata.obs[key_added + INFECTED] = prediction.infected
    adata.obs[key_added + NOVELTY] = prediction.novelty
    adata.obs[key_added + PREDICTION_SET] = [
        SET_SEPARATOR.join(names) for names in prediction.prediction_set
    ]
    adata.obsm[key_added + PROBABILITIES] = prediction.proba
    adata.uns[key_added] = {PARAMS: record, "classes": classes}
    return adata if made or copy else None
