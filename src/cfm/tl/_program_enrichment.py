"""What programs mean: gene sets that they hold, and how active they are in each observation."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import false_discovery_control

from cfm._fields import SET_SEPARATOR
from cfm.data._matrix import row_blocks, to_dense

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Least number of measured genes of a program for its activity to be said.
MIN_ACTIVITY_GENES = 3

_ENRICHMENT_COLUMNS = {
    "program": "object",
    "term": "object",
    "overlap": "int64",
    "term_size": "int64",
    "odds_ratio": "float64",
    "p_value": "float64",
    "fdr": "float64",
    "genes": "object",
}


def read_gene_sets(
    gene_sets: Mapping[str, Iterable[str]] | str | os.PathLike[str],
) -> dict[str, list[str]]:
    """Return gene sets by name, from a mapping or a gmt file.

    Raises
    ------
    TypeError
        If it is neither, or a set is a text instead of a list of genes.
    FileNotFoundError
        If the file does not exist.
    ValueError
        If there is no set, or none has a gene.
    """
    if isinstance(gene_sets, Mapping):
        texts = [name for name, genes in gene_sets.items() if isinstance(genes, str)]
        if texts:
            raise TypeError(
                f"gene_sets[{texts[0]!r}] is a text; expected a list of gene names for each set."
            )
        sets = {str(name): [str(gene) for gene in genes] for name, genes in gene_sets.items()}
    elif isinstance(gene_sets, str | os.PathLike):
        path = Path(gene_sets)
        if not path.is_file():
            raise FileNotFoundError(
                f"gene_sets={str(gene_sets)!r} is no file; give the path of a gmt file or a "
                "dictionary of gene lists (nothing is downloaded)."
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"gene_sets={str(gene_sets)!r} is no text file; expected a gmt file, unpacked: a "
                "set in each line, its name, a note and genes, separated by tabs."
            ) from error
        rows = [line.split("\t") for line in text.splitlines()]
        sets = {row[0]: [gene for gene in row[2:] if gene] for row in rows if row[0]}
    else:
        raise TypeError(
            f"gene_sets is a {type(gene_sets).__name__}; expected a dictionary of gene lists or "
            "the path of a gmt file."
        )
    filled = {name: list(dict.fromkeys(genes)) for name, genes in sets.items() if genes}
    if not filled:
        raise ValueError(
            f"gene_sets holds {len(sets)} sets and none with a gene; give at least one set of gene "
            "names."
        )
    return filled


def enrichment(
    programs: Mapping[str, Sequence[str]],
    background: Mapping[str, Sequence[str]],
    gene_sets: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Test which gene sets programs hold (hypergeometric, :func:`gseapy.enrich`).

    Parameters
    ----------
    programs
        Genes by name of the program.
    background
        Genes that could have been in it, by name of the program.
    gene_sets
        Genes by name of the set.

    Returns
    -------
    A row per program and set that share a gene: ``program``, ``term``, ``overlap``,
    ``term_size`` (genes of the set in the background), ``odds_ratio``, ``p_value``, ``fdr``
    (Benjamini-Hochberg over all sets that share a gene with the background, in one program) and
    ``genes`` joined by ``|``; by program in the order given, then by p-value.
    """
    import gseapy

    tables = [pd.DataFrame({c: pd.Series(dtype=t) for c, t in _ENRICHMENT_COLUMNS.items()})]
    for name, genes in programs.items():
        # gseapy turns names to upper case where it guesses that they are meant so (C1orf21 would
        # be lost), hence numbers in their place.
        universe = sorted(set(background[name]) | set(genes))
        code = {gene: f"G{i}" for i, gene in enumerate(universe)}
        coded = {t: [code[g] for g in listed if g in code] for t, listed in gene_sets.items()}
        sets = {term: listed for term, listed in coded.items() if listed}
        own = {code[gene] for gene in genes}
        if not any(own.intersection(listed) for listed in sets.values()):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = gseapy.enrich(
                sorted(own), sets, background=list(code.values()), outdir=None, no_plot=True
            ).results
        p_value = found["P-value"].to_numpy(float)
        shared = [sorted(universe[int(c[1:])] for c in g.split(";")) for g in found["Genes"]]
        table = pd.DataFrame(
            {
                "program": name,
                "term": found["Term"].astype(str),
                "overlap": [len(g) for g in shared],
                "term_size": [len(sets[term]) for term in found["Term"]],
                "odds_ratio": found["Odds Ratio"].to_numpy(float),
                "p_value": p_value,
                # gseapy returns, and corrects for, only the sets that share a gene
                "fdr": benjamini_hochberg(p_value, n_tests=len(sets)),
                "genes": [SET_SEPARATOR.join(g) for g in shared],
            }
        )
        tables.append(table.sort_values(["p_value", "term"], kind="stable"))
    filled = [table for table in tables if len(table)] or tables
    out = pd.concat(filled, ignore_index=True).astype(_ENRICHMENT_COLUMNS)
    return out.set_axis(out.index.astype(str))


def benjamini_hochberg(p_values: np.ndarray, *, n_tests: int | None = None) -> np.ndarray:
    """Return false-discovery rates; ``NaN`` stays ``NaN`` and counts as no test.

    Parameters
    ----------
    p_values
        ``(n,)``.
    n_tests
        Number of tests, if more were made than are given; those left out had p-value 1.
    """
    out = np.full(len(p_values), np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    if not len(known):
        return out
    others = np.ones((n_tests or len(known)) - len(known))
    out[known] = false_discovery_control(np.append(p_values[known], others))[: len(known)]
    return out


def activities(matrix: Any, weights: np.ndarray) -> np.ndarray:
    """Score how active programs are in observations by decoupler's univariate linear model.

    Parameters
    ----------
    matrix
        ``(n_obs, n_genes)``: numpy, sparse, dask or on disk; ``NaN`` = not measured.
    weights
        ``(n_genes, n_programs)`` signed weights, 0 outside.

    Returns
    -------
    ``(n_obs, n_programs)`` float32 t-values of the slope of an observation's measured effects on
    the weights: 0 where nothing moves, ``NaN`` where fewer than :data:`MIN_ACTIVITY_GENES` genes
    of a program are measured.
    """
    out = np.full((matrix.shape[0], weights.shape[1]), np.nan, dtype=np.float32)
    for rows, block in row_blocks(matrix):
        values = np.asarray(to_dense(block, np.float32))
        known = np.isfinite(values)
        # Observations that measure the same genes are fitted together.
        patterns, which = np.unique(np.packbits(known, axis=1), axis=0, return_inverse=True)
        part = out[rows]
        for i in range(len(patterns)):
            members = np.flatnonzero(which.ravel() == i)
            columns = np.flatnonzero(known[members[0]])
            part[members] = _fit(values[np.ix_(members, columns)], weights[columns])
    return out


def _fit(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the activities of observations without missing values."""
    import decoupler

    out = np.full((len(values), weights.shape[1]), np.nan, dtype=np.float32)
    if values.shape[1] < MIN_ACTIVITY_GENES:
        return out
    gene, program = np.nonzero(weights)
    enough = np.bincount(program, minlength=weights.shape[1]) >= MIN_ACTIVITY_GENES
    out[:, enough] = 0.0
    moving = np.flatnonzero(values.std(axis=1) > 0)
    kept = enough[program]
    if not len(moving) or not kept.any():
        return out
    net = pd.DataFrame(
        {
            "source": program[kept].astype(str),
            "target": gene[kept].astype(str),
            "weight": weights[gene, program][kept].astype(np.float64),
        }
    )
    names = np.arange(values.shape[1]).astype(str)
    data = pd.DataFrame(values[moving], index=moving.astype(str), columns=names)
    n_threads = torch.get_num_threads()
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores, _ = decoupler.mt.ulm(data, net, tmin=MIN_ACTIVITY_GENES, empty=False)
    # numba's start changes OpenMP's threads for all: on a busy machine later models would crawl.
    torch.set_num_threads(n_threads)
    scores = scores.loc[moving.astype(str)]
    out[np.ix_(moving, scores.columns.astype(int))] = scores.to_numpy(np.float32)
    return out
