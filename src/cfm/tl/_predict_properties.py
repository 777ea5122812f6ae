"""Cell type, tissue, disease and other properties that a model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._adata import check_key, takes_anndata
from cfm._arguments import Range
from cfm._docs import fill_docs
from cfm._fields import CONFIDENCE, PARAMS, PROBABILITIES, PROPERTY_PREFIX, UNKNOWN
from cfm.models import CellVQ, load_model
from cfm.tl._run import TEXTS, Run, model_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from cfm.tl._run import Data


@takes_anndata(others=True, columns=("total_counts",), ranges={"unknown": Range(0, 0.5)})
@fill_docs(TEXTS)
def predict_properties(
    adata: Data,
    model: str | Path | CellVQ = "cellvq-mini",
    *,
    properties: str | Sequence[str] | None = None,
    layer: str | None = None,
    unknown: float = 0.05,
    key_added: str = PROPERTY_PREFIX,
    device: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
    **model_kwargs: Any,
) -> AnnData | None:
    """Predict cell type, tissue and other properties of each cell by the heads of a model.

    Each cell gets one of the classes of a head's training, or ``"unknown"`` if the probability is
    below that of 95 % of the held-out training cells. Heads trained here read expression, by linear
    discriminant analysis on the measured genes, unless the head on the embedding was right for more
    held-out cells; published heads read the embedding. Most cells of a new type get the nearest
    type of the training, with a lower probability. A larger ``unknown`` marks more of them as
    unknown, and more cells of known types (see page *Trust* of the guide). For your own labels use
    :func:`cfm.tl.probe`, or train a model with ``labels_keys=``.

    Parameters
    ----------
    adata
        Cells by genes.
        %(paths)s
    model
        A :class:`cfm.models.CellVQ` with property heads.
        %(load)s
    properties
        Names of properties, such as ``"cell_type"``. By default those of the model that apply to
        any cells, which excludes ``"condition"`` of ``cellvq-mini``, a treatment of its training
        data.
    %(layer)s
    unknown
        Share of held-out training cells (of training cells, if ``validation_share=0``) below the
        limit for ``"unknown"``, 0 to 0.5. With 0 every cell gets a class, as always with published
        weights, which lack this record.
    key_added
        Prefix of the results; by default one that true labels seldom have.
    %(device)s
    %(output)s
    %(overwrite)s
    %(copy)s
    **model_kwargs
        Further arguments of :meth:`cfm.models.CellVQ.predict_properties`: ``units``,
        ``total_counts``, ``batch_size`` and ``precision``.

    Returns
    -------
    %(returns)s
    Writes for each property, such as ``cell_type``, with ``key`` = ``key_added`` + its name
    (``'predicted_cell_type'``):

    ``adata.obs[key]``
        Categorical, the most probable class, or ``"unknown"``; missing for cells that express none
        of the model's genes.
    ``adata.obs[f'{key}_confidence']``
        float32, the largest probability; ``NaN`` where the class is missing. Calibrated on
        held-out cells if the head reads expression.
    ``adata.obsm[f'{key}_proba']``
        DataFrame, cells by classes, float32; rows sum to 1; class names have ``"|"`` for ``"/"``.
    ``adata.uns[key]``
        ``params`` (arguments, model, SHA-256, device, share of genes found, and ``unknown_below``,
        the probability below which a cell is unknown) and ``classes``.

    Raises
    ------
    TypeError
        If ``adata`` or ``model`` is of another type.
    KeyError
        If the model has no such property, or a layer or column does not exist.
    ValueError
        If the model has no property heads, values are not in the declared units, or too few of the
        model's genes are found. ``adata`` stays unchanged.
    %(output_errors)s

    Warns
    -----
    UserWarning
        If few of the model's genes are measured, cells express none of them, a head has a single
        class, or a field of another tool is replaced.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_infection_cells()[::20].copy()
    >>> model = cfm.models.CellVQ(
    ...     vocabulary=cells.var_names, n_layers=1, properties={"tissue": ["blood", "lung"]}
    ... )
    >>> cfm.tl.predict_properties(cells, model)  # untrained, so it guesses
    >>> cells.obsm["predicted_tissue_proba"].columns.tolist()
    ['blood', 'lung']
    """
    if not isinstance(key_added, str):
        raise TypeError(f"key_added is a {type(key_added).__name__}; expected text, a prefix.")
    run = Run(adata, output, overwrite=overwrite, copy=copy)
    model = load_model(model, device=device)
    if not isinstance(model, CellVQ):
        raise TypeError(f"model= is a {type(model).__name__}; expected CellVQ.")
    chosen = model.choose_properties(properties)
    for name in chosen:
        check_key(key_added + name)
    # float32 gives the same classes on every machine
    arguments: dict[str, Any] = {
        "layer": layer,
        "units": "counts",
        "batch_size": 64,
        "precision": "float32",
    } | model_kwargs
    loaded = model

    def compute(part: AnnData, _: slice) -> dict[str, np.ndarray]:
        tables = loaded.predict_properties(part, chosen, **arguments)
        return {name: table.to_numpy() for name, table in tables.items()}

    with run.compute(
        compute,
        loaded,
        tool="predict_properties",
        layers=[layer],
        arguments=arguments | {"properties": list(chosen)},
    ) as results:
        made = run.target
        share = run.rows.vocabulary_share(loaded)
        record = model_record(loaded, share, key_added=key_added, **arguments)
        for name in chosen:
            key = key_added + name
            columns = [key, key + CONFIDENCE]
            run.warn_overwritten(key, {"obs": columns, "obsm": [key + PROBABILITIES]})
            table = pd.DataFrame(
                results.take(name), index=made.obs_names, columns=loaded.properties[name]
            )
            least = loaded.least_confidence(name, unknown)
            call, confidence = _call_classes(table, least)
            made.obs[key] = call
            made.obs[key + CONFIDENCE] = confidence
            classes = table.columns.tolist()
            # zarr takes no "/" in the names of columns
            table.columns = [str(label).replace("/", "|") for label in classes]
            made.obsm[key + PROBABILITIES] = table
            own = {"property": name, "unknown": unknown, "unknown_below": least}
            made.uns[key] = {PARAMS: record | own, "classes": classes}
    return run.result


def _call_classes(table: pd.DataFrame, least: float) -> tuple[pd.Categorical, np.ndarray]:
    """Return the most probable class of each cell, and its probability."""
    values = table.to_numpy()
    known = ~np.isnan(values).any(axis=1)
    best = np.where(known, np.nan_to_num(values).argmax(axis=1), -1)
    confidence = np.where(known, values.max(axis=1), np.nan).astype(np.float32)
    classes: list[Any] = list(table.columns)
    if UNKNOWN not in classes:
        classes.append(UNKNOWN)
    best[confidence < least] = classes.index(UNKNOWN)
    call: Any = pd.Categorical.from_codes(best, categories=pd.Index(classes))
    return call.remove_unused_categories(), confidence
