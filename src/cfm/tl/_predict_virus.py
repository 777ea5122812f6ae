"""Which virus a host response looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._arguments import PART
from cfm._fields import (
    CONFIDENCE,
    INFECTED,
    NOVELTY,
    PARAMS,
    PREDICTION_SET,
    PROBABILITIES,
    SET_SEPARATOR,
    UNINFECTED,
    UNKNOWN,
    VIRUS_KEY,
)
from cfm.data._modality import on_modality
from cfm.data._result_store import check_output
from cfm.data._store import check_key
from cfm.models import CellPulse, load_model
from cfm.pp import contrasts
from cfm.tl._chunk_input import Rows
from cfm.tl._chunks import CHUNK_SIZE, Chunking, ChunkRun
from cfm.tl._store import model_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData

    from cfm.tl._chunk_input import Data


@on_modality(made_from="groupby", ranges={"alpha": PART})
def predict_virus(
    adata: Data,
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
    output: str | Path | None = None,
    overwrite: bool = False,
    chunk_size: int = CHUNK_SIZE,
    devices: int | str | list[int] = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    modality: str | None = None,
    copy: bool = False,
    **contrast_kwargs: Any,
) -> AnnData | MuData | None:
    """Name the virus behind contrasts of infected against control samples.

    Answers are one of the viruses that the model was trained on, *uninfected* (the profile does
    not look like an infection) or *unknown* (it does, but like none of the trained viruses).
    Research use only; not a diagnostic.

    Parameters
    ----------
    adata
        Contrasts with log2 fold changes (:func:`cfm.pp.contrasts`); or, with ``groupby`` and
        ``control``, counts of samples, whose contrasts are then made first.
        Or one or more paths of ``.h5ad`` and ``.zarr`` files, which are opened with
        :func:`cfm.data.open_files`.
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
    **contrast_kwargs
        Further arguments of :func:`cfm.pp.contrasts`, with ``groupby`` only.

    Returns
    -------
    Given contrasts ``None``, or with ``copy=True`` the changed copy; given counts a new AnnData
    of contrasts; given paths of contrasts an AnnData whose matrices stay in the files, with the
    results in memory. With ``output`` the AnnData of results, opened from there: ``obs``, ``var``
    and ``uns`` of the contrasts and what is written; no ``X``. Writes, with
    ``key`` = ``'predicted_virus' | key_added``:

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
    FileExistsError
        If ``output`` exists.
    OSError
        If the disk is full; what is done is kept, and the same call goes on from there.

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
    how = Chunking(output, overwrite, chunk_size, devices, num_nodes, strategy)
    # before contrasts are made for nothing
    if output is not None:
        check_output(output, adata, overwrite=overwrite)
    data: Any = adata
    if groupby is None or not hasattr(adata, "obs"):
        data = Rows.of(data)
    caller = load_model(model, device=device)
    if not isinstance(caller, CellPulse):
        raise TypeError(f"model= is a {type(caller).__name__}; expected CellPulse.")
    classes = [str(name) for name in caller.require_classifier().classes] + [UNINFECTED]
    record: dict[str, Any] = {}
    made = groupby is not None
    if groupby is not None:
        mode = contrast_kwargs.get("mode", "replicates")
        if mode == "pairs":
            raise ValueError(
                "mode='pairs' makes no AnnData; use mode='replicates' or 'test', or call "
                "cfm.pp.contrasts(…, mode='pairs').to_adata(n=…) and predict on that."
            )
        counts = data.whole if isinstance(data, Rows) else data
        contrast_kwargs["modality"] = modality
        data = contrasts(counts, groupby, control, by=by, layer=layer, **contrast_kwargs)
        record = {"groupby": groupby, "control": str(control), "mode": mode}
        record["by"] = [] if by is None else [by] if isinstance(by, str) else list(by)
        layer = None
    elif by is not None or contrast_kwargs:
        extra = sorted(contrast_kwargs) + (["by"] if by is not None else [])
        raise TypeError(f"{extra} only go with groupby= and control=.")
    run = ChunkRun(data, how, copy=copy)

    def compute(part: AnnData, _: slice) -> dict[str, np.ndarray]:
        found = caller.predict(part, layer=layer, alpha=alpha, batch_size=batch_size)
        sets = [SET_SEPARATOR.join(names) for names in found.prediction_set]
        return {
            "call": np.asarray(found.call, dtype=str),
            "confidence": found.confidence,
            "infected": found.infected,
            "novelty": found.novelty,
            "set": np.asarray(sets, dtype=str),
            "proba": found.proba.to_numpy(),
        }

    def store() -> None:
        into = run.target
        parts = {CONFIDENCE: "confidence", INFECTED: "infected", NOVELTY: "novelty"}
        columns = [key_added + part for part in ("", *parts, PREDICTION_SET)]
        run.warn_overwritten(key_added, {"obs": columns, "obsm": [key_added + PROBABILITIES]})
        calls = pd.Categorical(run.results.take("call"), categories=[*classes, UNKNOWN])
        into.obs[key_added] = calls.remove_unused_categories()
        for suffix, name in parts.items():
            into.obs[key_added + suffix] = run.results.take(name)
        into.obs[key_added + PREDICTION_SET] = run.results.take("set").astype(object)
        into.obsm[key_added + PROBABILITIES] = pd.DataFrame(
            run.results.take("proba"), index=into.obs_names, columns=classes
        )
        told: dict[str, Any] = {"key_added": key_added, "layer": layer, "modality": modality}
        told |= {"batch_size": batch_size, "alpha": alpha}
        share = run.rows.vocabulary_share(caller)
        params = model_record(caller, share, **(record | told))
        into.uns[key_added] = {PARAMS: params, "classes": classes}

    found = run.run(
        compute,
        store,
        caller,
        tool="predict_virus",
        layers=[layer],
        arguments=record | {"layer": layer, "alpha": alpha, "batch_size": batch_size},
    )
    return run.whole if made and found is None else found
