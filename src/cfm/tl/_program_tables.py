"""Tables that :func:`cfm.tl.gene_programs` stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm.tl._program_enrichment import benjamini_hochberg
from cfm.tl._program_statistics import centrality, concordance, direction, mean_effects

if TYPE_CHECKING:
    from cfm.tl._program_run import FoundPrograms

#: Name of the one group where there is no ``groupby``.
ALL = "all"


def program_names(prefix: str, found: FoundPrograms) -> list[str]:
    """Name programs by their order: P1 is the first."""
    return [f"{prefix}P{i + 1}" for i in range(len(found.programs))]


def program_table(prefix: str, group: str, found: FoundPrograms) -> pd.DataFrame:
    """Return a row per program of a group, indexed by its name."""
    table = pd.DataFrame(
        {
            "group": pd.Series([group] * len(found.programs), dtype=object),
            "size": np.array([len(m) for m in found.programs], dtype=np.int64),
            "direction": pd.Series(
                [direction(found.signs()[m]) for m in found.programs], dtype=object
            ),
            "effect": found.effect,
            "coherence": np.array(
                [concordance(found.effects[:, m]) for m in found.programs], dtype=np.float64
            ),
            "stability": found.stability,
            "cohesion": found.cohesion,
            "p_value": found.p_value,
            "fdr": benjamini_hochberg(found.p_value),
        }
    )
    return table.set_axis(pd.Index(program_names(prefix, found), dtype=object))


def gene_table(prefix: str, found: FoundPrograms, var_names: pd.Index) -> pd.DataFrame:
    """Return a row per program and gene, the genes of a program by falling weight, then name."""
    effect, signs = mean_effects(found.effects), found.signs()
    names = var_names[found.columns].astype(str).to_numpy(dtype=object)
    parts = []
    for program, members in zip(program_names(prefix, found), found.programs, strict=True):
        weight = centrality(found.edges, members)
        order = np.lexsort((names[members].astype(str), -weight))
        nodes = members[order]
        parts.append(
            pd.DataFrame(
                {
                    "program": program,
                    "gene": names[nodes],
                    "weight": weight[order],
                    "sign": signs[nodes],
                    "effect": effect[nodes],
                    "rank": np.arange(1, len(nodes) + 1, dtype=np.int64),
                }
            )
        )
    return pd.concat(parts) if parts else pd.DataFrame()


def edge_table(prefix: str, group: str, found: FoundPrograms, var_names: pd.Index) -> pd.DataFrame:
    """Return a row per edge of which both ends are in a program."""
    names = var_names[found.columns].astype(str).to_numpy(dtype=object)
    program = np.full(len(names), "", dtype=object)
    for name, members in zip(program_names(prefix, found), found.programs, strict=True):
        program[members] = name
    kept = (program[found.edges.a] != "") & (program[found.edges.b] != "")
    a, b = found.edges.a[kept], found.edges.b[kept]
    return pd.DataFrame(
        {
            "gene_a": names[a],
            "gene_b": names[b],
            "weight": found.edges.weight[kept],
            "program_a": program[a],
            "program_b": program[b],
            "group": np.full(len(a), group, dtype=object),
        }
    )
