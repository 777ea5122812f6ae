"""Cell type, tissue, disease or any other property that a model has learned to name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._arguments import Range
from cfm._fields import CONFIDENCE, PARAMS, PROBABILITIES, PROPERTY_PREFIX, UNKNOWN
from cfm.data._modality import on_modality
from cfm.data._store import check_key
from cfm.models import CellVQ, load_model
from cfm.models._base import Precision
from cfm.tl._chunks import CHUNK_SIZE, Chunking, ChunkRun
from cfm.tl._store import model_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Literal

    from anndata import AnnData
    from mudata import MuData

    from cfm.tl._chunk_input import Data


@on_modality(columns=("total_counts",), ranges={"unknown": Range(0, 0.5)})
def predict_properties(
    adata: Data,
    model: str | Path | CellVQ = "cellvq-mini",
    *,
    properties: str | Sequence[str] | None = None,
    layer: str | None = None,
    units: Literal["counts", "log1p_cp10k"] = "counts",
    total_counts: str | None = None,
    unknown: float = 0.05,
    key_added: str = PROPERTY_PREFIX,
    batch_size: int = 64,
    precision: Precision = "float32",
    device: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    chunk_size: int = CHUNK_SIZE,
    devices: int | str | list[int] = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    modality: str | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Predict properties of cells by the heads of a model.

    Each cell gets one of the classes that a head was trained on, or ``"unknown"`` where the head is
    less sure than of 95 % of the cells that were held out of its training. Heads trained here read
    expression, by linear discriminant analysis for the genes that are measured, unless the head on
    the embedding named more held-out cells right; published heads read the embedding. Most cells of
    a type that the head was not trained on get the name of the nearest type, with less confidence.
    A larger ``unknown`` leaves more of them open, and more of the known types (page *Trust* of the
    guide has the numbers). To learn a property from your own
    labels, see :func:`cfm.tl.probe`, or train a model with ``labels_keys=``.

    Parameters
    ----------
    adata
        Cells by genes.
        Or one or more paths of ``.h5ad`` and ``.zarr`` files, opened with
        :func:`cfm.data.open_files`.
    model
        A CellVQ with property heads, the name of one, a folder, or ``hf://org/name``.
    properties
        Names of properties, such as ``"cell_type"``. By default those of the model that make sense
        for any cells: not the ``"condition"`` of ``cellvq-mini``, which is a treatment of its
        training data.
    layer
        Layer to read instead of ``X``.
    units
        What is read: ``"counts"``, raw counts, or ``"log1p_cp10k"``, the natural ``log1p`` of
        counts per 10,000. Declared, never guessed.
    total_counts
        Column of ``obs`` with the counts of each cell, for ``"log1p_cp10k"``; without it cells are
        taken to have 10,000.
    unknown
        Share of held-out training cells (of training cells, if ``validation_share=0``) that would
        be called ``"unknown"``, 0 to 0.5; 0 names every cell. Heads of published weights have no
        such record, and name every cell.
    key_added
        Prefix of the results. The default keeps them apart from the columns with the truth.
    batch_size
        Cells at a time; the result does not depend on it.
    precision
        ``"float32"``, by which classes are the same on every machine, ``"bfloat16"``, or
        ``"auto"``; see :meth:`cfm.models.CellVQ.get_latent_representation`.
    device
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
    output
        File to write results to as they are made, ``.zarr`` or ``.h5ad``, instead of ``adata``,
        which is left as it was. A run that was stopped goes on where it was when the same call is
        made again.
    overwrite
        Replace ``output`` if it exists, and what a stopped run of another call left of it.
    chunk_size
        Rows that are read, and written, at a time, with ``output``, paths or several devices; two
        chunks are in memory. For bit-identical results choose a multiple of 2,048 and of
        ``batch_size``.
    devices, num_nodes, strategy
        Processes that share the rows, as of :class:`lightning.fabric.Fabric`: new ones, or those
        that ``torchrun`` or SLURM started. New ones run the program from its first line.
    modality
        Modality of a MuData to read and to write to; may be left out where there is only one.
    copy
        Return a changed copy instead of writing to ``adata``.

    Returns
    -------
    ``None``, or with ``copy=True`` the changed copy. Given paths, an AnnData whose matrices stay
    in the files, with the results in memory. With ``output`` the AnnData of results, opened from
    there: ``obs``, ``var`` and ``uns`` of the input and what is written; no ``X``. Writes for each
    property, such as ``cell_type``, with ``key`` its name behind ``key_added`` (``'predicted_'``):

    ``adata.obs[key]``
        Categorical, the most probable class, or ``"unknown"``; missing for cells that express none
        of the model's genes.
    ``adata.obs[f'{key}_confidence']``
        float32, the largest probability; ``NaN`` where the class is missing. Calibrated on cells
        held out where expression is read, else not.
    ``adata.obsm[f'{key}_proba']``
        DataFrame, cells by classes, float32; rows sum to 1; ``"|"`` in place of ``"/"`` in the
        names of classes.
    ``adata.uns[key]``
        ``params`` (arguments, model, SHA-256, device, share of genes found, and ``unknown_below``,
        the probability below which a cell is unknown) and ``classes``.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData, or ``model`` no CellVQ.
    KeyError
        If the model has no such property, or a layer or column does not exist.
    ValueError
        If the model has no property heads, values are not in the units that are declared, or too
        few of the model's genes are found. Whatever is raised, ``adata`` is left as it was.
    FileExistsError
        If ``output`` exists.
    OSError
        If the disk is full; what is done is kept, and the same call goes on from there.

    Warns
    -----
    UserWarning
        If few of the model's genes are measured, cells express none of them, a head knows a single
        class, or a field that another tool wrote is replaced.

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
    how = Chunking(output, overwrite, chunk_size, devices, num_nodes, strategy)
    if not isinstance(key_added, str):
        raise TypeError(f"key_added is a {type(key_added).__name__}; expected text, a prefix.")
    run = ChunkRun(adata, how, copy=copy)
    model = load_model(model, device=device)
    if not isinstance(model, CellVQ):
        raise TypeError(f"model= is a {type(model).__name__}; expected CellVQ.")
    chosen = model.choose_properties(properties)
    for name in chosen:
        check_key(key_added + name)
    arguments: dict[str, Any] = {
        "layer": layer,
        "units": units,
        "total_counts": total_counts,
        "batch_size": batch_size,
        "precision": precision,
    }
    loaded = model

    def compute(part: AnnData, _: slice) -> dict[str, np.ndarray]:
        tables = loaded.predict_properties(part, chosen, **arguments)
        return {name: table.to_numpy() for name, table in tables.items()}

    def store() -> None:
        made = run.target
        share = run.rows.vocabulary_share(loaded)
        told = arguments | {"modality": modality}
        record = model_record(loaded, share, key_added=key_added, **told)
        for name in chosen:
            key = key_added + name
            columns = [key, key + CONFIDENCE]
            run.warn_overwritten(key, {"obs": columns, "obsm": [key + PROBABILITIES]})
            table = pd.DataFrame(
                run.results.take(name), index=made.obs_names, columns=loaded.properties[name]
            )
            least = loaded.least_confidence(name, unknown)
            call, confidence = _called(table, least)
            made.obs[key] = call
            made.obs[key + CONFIDENCE] = confidence
            classes = table.columns.tolist()
            # no "/" in the names of columns, which no zarr store takes
            table.columns = [str(label).replace("/", "|") for label in classes]
            made.obsm[key + PROBABILITIES] = table
            own = {"property": name, "unknown": unknown, "unknown_below": least}
            made.uns[key] = {PARAMS: record | own, "classes": classes}

    return run.run(
        compute,
        store,
        loaded,
        tool="predict_properties",
        layers=[layer],
        arguments=arguments | {"properties": list(chosen)},
    )


def _called(table: pd.DataFrame, least: float) -> tuple[pd.Categorical, np.ndarray]:
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
