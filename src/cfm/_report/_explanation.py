"""Why the model says so: host factors, gene programs and the drug screen of the report."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cfm import datasets, tl
from cfm._fields import (
    DRUG_SCREEN_KEY,
    ENRICHMENT,
    GENE_PROGRAMS_KEY,
    HOST_FACTORS_KEY,
    PARAMS,
    PROGRAM_GENES,
    PROGRAMS,
    RESULTS,
)
from cfm._report import _explanation_figures as figures
from cfm._report import _explanation_words as words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData

logger = logging.getLogger(__name__)

#: Contrasts scored again under a null, all permutations together: what a report can wait for.
_NULL_PROFILES = 400
_MOST_PERMUTATIONS, _FEWEST_PERMUTATIONS = 20, 5
_TABLES = ("host_factors.csv", "gene_programs.csv", "gene_program_sets.csv", "drug_screen.csv")
#: Of numbers in csv files; contrasts.h5ad has them in full.
_DIGITS = "%.6g"
#: What a tool raises for input that it cannot work with.
_REFUSALS = (ValueError, KeyError, TypeError)


@dataclass
class Section:
    """One part of the report.

    Attributes
    ----------
    title
        Heading.
    meaning
        What is shown, in a sentence or two.
    limits
        What must not be read into it.
    refused
        Why it could not be computed; empty if it could.
    readings
        The result in words.
    galleries
        Figures.
    header, rows
        A table.
    files
        Names of the tables that were written.
    step, params
        Tool, and how it was run.
    """

    title: str
    meaning: str
    limits: str
    step: str
    refused: str = ""
    readings: list[str] = field(default_factory=list)
    galleries: list[figures.Gallery] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)


def compute(
    contrasts: AnnData, *, groupby: str, model: str, embedding_model: str
) -> dict[str, str]:
    """Run the three tools on the contrasts, which are changed.

    Returns
    -------
    Why a tool refused, by the key of its result; empty for those that ran.
    """
    permutations = _NULL_PROFILES // max(contrasts.n_obs, 1)
    permutations = min(_MOST_PERMUTATIONS, max(_FEWEST_PERMUTATIONS, permutations))
    logger.info("ranking host factors (%d permutations)", permutations)
    refused = {
        HOST_FACTORS_KEY: _refusal(
            lambda: tl.host_factors(contrasts, groupby, model=model, n_permutations=permutations)
        )
    }
    logger.info("looking for gene programs")
    refused[GENE_PROGRAMS_KEY] = _refusal(
        lambda: tl.gene_programs(contrasts, embedding_model, gene_sets=datasets.hallmark())
    )
    logger.info("screening drugs")
    targets = None if refused[HOST_FACTORS_KEY] else datasets.drug_targets()
    refused[DRUG_SCREEN_KEY] = _refusal(
        lambda: tl.screen_drugs(
            contrasts,
            datasets.cmap_signatures(),
            targets,
            groupby=groupby,
            model=embedding_model,
        )
    )
    for key, why in refused.items():
        if why:
            logger.warning("%s: %s", key, why)
    return refused


def _refusal(run: Callable[[], object]) -> str:
    try:
        run()
    except _REFUSALS as error:
        # str() of a KeyError is the quoted repr of its text
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        return " ".join(str(text).split())
    return ""


def write_up(
    contrasts: AnnData, refused: dict[str, str], folder: Path, *, groupby: str
) -> list[Section]:
    """Write tables and figures to ``folder``, and describe them."""
    pictures = folder / "figures"
    pictures.mkdir(exist_ok=True)
    for name in _TABLES:  # of an earlier run: what is refused now must not be there
        (folder / name).unlink(missing_ok=True)
    found = contrasts.uns
    weak = words.without_response(contrasts, groupby)
    host = Section("Host factors", words.HOST_MEANING, words.HOST_LIMITS, "cfm.tl.host_factors")
    if not (why := refused[HOST_FACTORS_KEY]):
        stored = found[HOST_FACTORS_KEY]
        stored[RESULTS].to_csv(folder / "host_factors.csv", index=False, float_format=_DIGITS)
        host.files = ["host_factors.csv"]
        host.readings = words.host_factors(stored[RESULTS], stored[PARAMS], groupby) + weak
        host.header, host.rows = words.host_factor_rows(stored[RESULTS])
        host.galleries = figures.draw_host_factors(contrasts, pictures)
        host.params = stored[PARAMS]
    host.refused = why

    programs = Section(
        "Gene programs", words.PROGRAM_MEANING, words.PROGRAM_LIMITS, "cfm.tl.gene_programs"
    )
    if not (why := refused[GENE_PROGRAMS_KEY]):
        stored = found[GENE_PROGRAMS_KEY]
        table = stored[PROGRAM_GENES].merge(
            stored[PROGRAMS].add_prefix("program_"), left_on="program", right_index=True
        )
        table.to_csv(folder / "gene_programs.csv", index=False, float_format=_DIGITS)
        programs.files = ["gene_programs.csv"]
        if ENRICHMENT in stored:
            stored[ENRICHMENT].to_csv(
                folder / "gene_program_sets.csv", index=False, float_format=_DIGITS
            )
            programs.files.append("gene_program_sets.csv")
        programs.readings = words.gene_programs(stored, contrasts.n_obs)
        programs.header, programs.rows = words.gene_program_rows(stored)
        programs.galleries = figures.draw_gene_programs(contrasts, pictures, groupby=groupby)
        programs.params = stored[PARAMS]
    programs.refused = why

    drugs = Section("Drug screen", words.DRUG_MEANING, words.DRUG_LIMITS, "cfm.tl.screen_drugs")
    if not (why := refused[DRUG_SCREEN_KEY]):
        stored = found[DRUG_SCREEN_KEY]
        stored[RESULTS].to_csv(folder / "drug_screen.csv", index=False, float_format=_DIGITS)
        drugs.files = ["drug_screen.csv"]
        drugs.readings = words.drug_screen(stored[RESULTS]) + weak
        drugs.header, drugs.rows = words.drug_rows(stored[RESULTS])
        drugs.galleries = figures.draw_drug_screen(contrasts, pictures)
        drugs.params = stored[PARAMS]
    drugs.refused = why
    return [host, programs, drugs]
