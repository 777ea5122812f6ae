"""Which genes set a code apart: by what the model attends to, and by expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from cfm.stats._enrichment import benjamini_hochberg

if TYPE_CHECKING:
    from cfm.tl._knowledge_graph_attention import Attended
    from cfm.tl._knowledge_graph_cells import CodeExpression

Importance = Literal["expression", "attention", "combined"]
#: Added to attention before the ratio is taken: a gene that one cell in ten attends to as to any.
_PRIOR = 0.1


def attention_lift(attention: np.ndarray) -> np.ndarray:
    """Return the log2 ratio of a code's attention to the mean of the other codes'.

    Parameters
    ----------
    attention
        ``(n_codes, n_genes)``.
    """
    n = len(attention)
    if n < 2:
        return np.zeros_like(attention)
    others = (attention.sum(axis=0) - attention) / (n - 1)
    return np.log2((attention + _PRIOR) / (others + _PRIOR))


def importance(
    expression: CodeExpression,
    attended: Attended | None,
    names: np.ndarray,
    *,
    measure: Importance,
    n_genes: int,
    min_share: float,
    max_fdr: float,
) -> pd.DataFrame:
    """Return the most important genes of each code.

    Parameters
    ----------
    expression, attended
        Of the codes; ``attended`` is ``None`` without a model.
    names
        ``(n_genes,)`` names, which order ties.
    measure
        What the weight is.
    n_genes
        Genes of a code at most.
    min_share
        Least share of the cells of the code that express a gene.
    max_fdr
        Largest false discovery rate of the expression, unless ``measure`` is ``"attention"``.

    Returns
    -------
    A row per code and gene, those of the largest weight first: ``code``, ``gene`` (column),
    ``weight``, ``attention``, ``attention_lift`` (``NaN`` without a model), ``log2_fold_change``,
    ``share``, ``p_value``, ``fdr``.
    """
    change = expression.log2_fold_change
    attention = np.full_like(change, np.nan) if attended is None else attended.attention
    lift = attention_lift(attention)
    tables = []
    for code in range(len(change)):
        fdr = benjamini_hochberg(expression.p_value[code])
        weight = {
            "expression": change[code],
            "attention": lift[code],
            "combined": change[code] + lift[code],
        }[measure]
        usable = (weight > 0) & (expression.share[code] >= max(min_share, 1e-12))
        if measure != "attention":
            usable &= fdr <= max_fdr
        places = np.flatnonzero(usable)
        best = places[np.lexsort((names[places], -weight[places]))][:n_genes]
        tables.append(
            pd.DataFrame(
                {
                    "code": code,
                    "gene": best,
                    "weight": weight[best],
                    "attention": attention[code, best],
                    "attention_lift": lift[code, best],
                    "log2_fold_change": change[code, best],
                    "share": expression.share[code, best],
                    "p_value": expression.p_value[code, best],
                    "fdr": fdr[best],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
