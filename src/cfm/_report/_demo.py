"""The main job: counts, contrasts, embedding, calls, host factors, programs, drugs, report."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import pandas as pd

from cfm import datasets, get, hub, pp, tl
from cfm._adata import text_is_written
from cfm._fields import (
    DRUG_SCREEN_KEY,
    ENRICHMENT,
    GENE_PROGRAMS_KEY,
    HOST_FACTORS_KEY,
    MAP_GENES,
    MATCHES,
    PROGRAM_GENES,
    PROGRAMS,
    RESULTS,
    VIRAL,
    VIRUS_KEY,
)
from cfm._report._page import write_page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

logger = logging.getLogger(__name__)

_BASIS = "X_cellpulse"
#: Contrasts scored again under a null, all permutations together: what a report can wait for.
_NULL_PROFILES = 400
_MOST_PERMUTATIONS, _FEWEST_PERMUTATIONS = 20, 5
#: Of numbers in csv files; contrasts.h5ad has them in full.
_DIGITS = "%.6g"


def run_demo(
    read: Callable[[], AnnData],
    folder: Path,
    *,
    source: Mapping[str, str],
    groupby: str = "virus",
    control: str = "none",
    by: Sequence[str] | None = None,
    mode: Literal["replicates", "test"] = "replicates",
    units: Literal["counts", "log"] = "counts",
    sample_key: str | None = None,
    organism: Literal["auto", "human", "mouse"] = "auto",
    model: str = "cellpulse-virus",
    embedding_model: str = "cellpulse-mini",
) -> AnnData:
    """Run the whole chain and write ``report.html``, tables, ``contrasts.h5ad`` and figures.

    Files of the same names in ``folder`` are replaced.

    Parameters
    ----------
    read
        Returns the samples by genes; what it warns of is in the report.
    folder
        Where files go; it exists.
    source
        The input in the report: ``name``, and ``sha256`` if it is a file.
    groupby, control, by, mode, units, sample_key
        See :func:`cfm.pp.contrasts`.
    organism
        See :func:`cfm.pp.map_genes`.
    model, embedding_model
        Of :func:`cfm.tl.predict_virus`, and of :func:`cfm.tl.embed`, programs and drugs.

    Returns
    -------
    The contrasts with all that the tools stored.

    Raises
    ------
    OSError
        If the disk is full.
    ValueError, KeyError, TypeError
        From the step that refused its input.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        counts = read()
        logger.info("%d samples by %d genes read", *counts.shape)
        mapped = cast(
            "AnnData",
            pp.map_genes(
                counts,
                organism=organism,
                aggregate="mean" if units == "log" else "sum",
                copy=True,
            ),
        )
        if groupby in mapped.obs:  # a command line has only text
            levels = {str(level): level for level in mapped.obs[groupby].unique()}
            control = levels.get(control, control)
        contrasts = cast(
            "AnnData",
            pp.contrasts(
                mapped, groupby, control, by=by, mode=mode, units=units,
                sample_key=sample_key,
            ),
        )  # fmt: skip
        contrasts.uns.setdefault(MAP_GENES, mapped.uns[MAP_GENES])
        logger.info("%d contrasts made; embedding and calling them", contrasts.n_obs)
        tl.embed(contrasts, embedding_model, key_added=_BASIS)
        tl.predict_virus(contrasts, model, key_added=VIRUS_KEY)
        refused = _explain(contrasts, groupby, model, embedding_model)
    notes = _own_notes(caught)
    for note in notes:
        logger.warning("warning: %s", note)
    logger.info("drawing figures and writing the report to %s", folder)
    checkpoint = hub.load_checkpoint(model)
    _write_contrasts(contrasts, folder / "contrasts.h5ad")
    _write_tables(contrasts, folder)
    write_page(
        contrasts,
        folder,
        source={
            **source,
            "samples": str(counts.n_obs),
            "genes": str(counts.n_vars),
            "citation": str(counts.uns.get("source", "")),
        },
        groupby=groupby,
        basis=_BASIS,
        refused=refused,
        notes=notes,
        checkpoint=checkpoint,
    )
    return contrasts


def _explain(contrasts: AnnData, groupby: str, model: str, embedding_model: str) -> dict[str, str]:
    """Run the tools that explain the calls; return why one refused, by the key of its result."""
    permutations = _NULL_PROFILES // max(contrasts.n_obs, 1)
    permutations = min(_MOST_PERMUTATIONS, max(_FEWEST_PERMUTATIONS, permutations))
    refused: dict[str, str] = {}

    def attempt(key: str, run: Callable[[], object]) -> None:
        logger.info("%s", key.replace("_", " "))
        try:
            run()
        except (ValueError, KeyError, TypeError) as error:
            # str() of a KeyError is the quoted repr of its text
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            refused[key] = " ".join(str(text).split())
            logger.warning("%s: %s", key, refused[key])

    attempt(
        HOST_FACTORS_KEY,
        # the fastest of the rankings; the others find the hits of screens no better
        lambda: tl.host_factors(
            contrasts, groupby, "reversal", model=model, n_permutations=permutations
        ),
    )
    attempt(
        GENE_PROGRAMS_KEY,
        lambda: tl.gene_programs(contrasts, embedding_model, gene_sets=datasets.hallmark()),
    )
    targets = None if HOST_FACTORS_KEY in refused else datasets.drug_targets()
    attempt(
        DRUG_SCREEN_KEY,
        lambda: tl.screen_drugs(contrasts, datasets.cmap_signatures(), targets, groupby=groupby),
    )
    return refused


def _write_tables(contrasts: AnnData, folder: Path) -> None:
    """Write every result as csv; one of an earlier run that this one has not is removed."""
    kinds = get.virus_probabilities(contrasts, level="response").add_prefix("P(").add_suffix(")")
    viruses = get.virus_probabilities(contrasts).add_prefix("P(").add_suffix(f" | {VIRAL})")
    calls = pd.concat([contrasts.obs, kinds, viruses], axis=1)
    calls.to_csv(folder / "calls.csv", index_label="contrast")
    contrasts.uns[VIRUS_KEY][MATCHES].to_csv(folder / "matches.csv", index=False)
    tables: dict[str, pd.DataFrame | None] = {}
    for key in (HOST_FACTORS_KEY, DRUG_SCREEN_KEY):
        tables[key] = contrasts.uns[key][RESULTS] if key in contrasts.uns else None
    found = contrasts.uns.get(GENE_PROGRAMS_KEY)
    tables["gene_programs"] = tables["gene_program_sets"] = None
    if found is not None:
        numbers = found[PROGRAMS].add_prefix("program_")
        tables["gene_programs"] = found[PROGRAM_GENES].merge(
            numbers, left_on="program", right_index=True
        )
        tables["gene_program_sets"] = found.get(ENRICHMENT)
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        path.unlink(missing_ok=True)
        if table is not None:
            table.to_csv(path, index=False, float_format=_DIGITS)


def _own_notes(caught: list[warnings.WarningMessage]) -> list[str]:
    """Keep the warnings of this package; those of others are for developers."""
    here = str(Path(__file__).resolve().parent.parent)
    found = [
        str(w.message)
        for w in caught
        if issubclass(w.category, UserWarning) and str(Path(w.filename).resolve()).startswith(here)
    ]
    return list(dict.fromkeys(found))


def _write_contrasts(contrasts: AnnData, path: Path) -> None:
    """Write the file in full, or leave what was there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with text_is_written():
            contrasts.write_h5ad(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def writable(folder: Path) -> Path:
    """Make the folder and try to write there, before minutes of work are lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder} ({os.strerror(error.errno or 0)}); "
            "choose another one with --output."
        ) from error
    return folder
