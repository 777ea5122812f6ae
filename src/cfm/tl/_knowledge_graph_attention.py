"""What a model attends to in each code: from the cell to its genes, and between genes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm.stats._gene_modules import AttentionMean, attention_excess
from cfm.tl._knowledge_graph_cells import gene_columns

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.models import AttentionModel
    from cfm.tl._knowledge_graph_cells import CodedCells

#: Genes of a code among which relations are looked for: memory grows with the square.
MAX_PANEL = 1000


@dataclass(frozen=True)
class CodeRelations:
    """How strongly genes of a code attend to each other.

    Attributes
    ----------
    genes
        ``(n,)`` columns of the data.
    a, b
        ``(m,)`` places in ``genes`` of the pairs with a value, ``a < b``.
    weight
        ``(m,)`` float64, see :func:`cfm.tl.knowledge_graph`.
    """

    genes: np.ndarray
    a: np.ndarray
    b: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Attended:
    """What came out of the maps of the sampled cells.

    Attributes
    ----------
    attention
        ``(n_codes, n_genes)`` float64, mean attention of the cell to a gene, 1 = as much as to
        each other token of that cell; 0 where the gene is no token.
    known
        ``(n_genes,)`` bool, whether a gene was a token of any cell.
    relations
        Of each code.
    n_cells
        Cells that were read.
    """

    attention: np.ndarray
    known: np.ndarray
    relations: list[CodeRelations]
    n_cells: int


def read_attention(
    model: AttentionModel,
    adata: AnnData,
    cells: CodedCells,
    drawn: list[np.ndarray],
    share: np.ndarray,
    *,
    min_share: float,
    relations: bool,
    options: dict[str, Any],
) -> Attended:
    """Read the attention maps of some cells of each code, one map at a time.

    Parameters
    ----------
    model
        With attention.
    adata
        The data.
    cells
        Codes of the cells.
    drawn
        Row numbers of the cells to read of each code.
    share
        ``(n_codes, n_genes)`` share of cells that express a gene; relations are looked for among
        genes with at least ``min_share`` of a code's cells, at most :data:`MAX_PANEL`.
    min_share
        See above.
    relations
        Whether they are wanted.
    options
        Further arguments of the model's ``get_attention``.

    Raises
    ------
    ValueError
        If no gene of the data is ever a token, or the model leaves out cells.
    """
    rows = np.concatenate(drawn)
    code_of = np.repeat(np.arange(len(drawn)), [len(part) for part in drawn])
    unique, back = np.unique(rows, return_inverse=True)  # files want their rows sorted
    # Genes by name: what a model sums up is then the same to the last digit in any order of theirs.
    by_name = np.argsort(adata.var_names.astype(str).to_numpy(), kind="stable")
    part = adata[unique].to_memory()[back, by_name].copy()
    attention = np.zeros((len(cells.names), adata.n_vars))
    known = np.zeros(adata.n_vars, dtype=bool)
    columns = _TokenColumns(model, adata)
    panels = [
        _panel(own, adata.var_names, min_share)[: MAX_PANEL if relations else 0] for own in share
    ]
    related: list[CodeRelations] = []
    current, mean = -1, AttentionMean(0, 1)
    count = 0
    for code, (tokens, weights) in zip(code_of, model.get_attention(part, **options), strict=False):
        if code != current:
            if current >= 0:
                related.append(_relations(panels[current], mean))
            current, mean = int(code), AttentionMean(len(panels[code]), 1)
        count += 1
        places = columns(tokens[1:])
        weights = weights.reshape(-1, 1, *weights.shape[-2:])
        own = np.asarray(weights[:, 0, 0, 1:], dtype=np.float64).mean(axis=0)
        found = places >= 0
        attention[code, places[found]] += (own * len(own) / max(own.sum(), 1e-12))[found]
        known[places[found]] = True
        at = np.full(adata.n_vars + 1, -1, dtype=np.int64)
        at[panels[code]] = np.arange(len(panels[code]))
        if relations:
            mean.add(0, at[places], attention_excess(weights))
    if count != len(rows):
        raise ValueError(
            f"{type(model).__name__}.get_attention gave maps of {count} of {len(rows)} cells; "
            "expected one for each."
        )
    related.append(_relations(panels[current], mean))
    if not known.any():
        raise ValueError(
            f"None of the {adata.n_vars} genes (such as {', '.join(map(str, adata.var_names[:3]))})"
            f" is among the tokens of {type(model).__name__}; use the names that the model knows."
        )
    attention /= np.array([len(part) for part in drawn])[:, None]
    return Attended(attention, known, related, count)


class _TokenColumns:
    """Columns of the data by the names that the model has for genes."""

    def __init__(self, model: AttentionModel, adata: AnnData) -> None:
        self._adata = adata
        self._seen: dict[str, int] = {}
        vocabulary = getattr(model, "vocabulary", None)
        if vocabulary is not None:
            self._look_up(list(vocabulary.genes))

    def __call__(self, tokens: pd.Index) -> np.ndarray:
        """Return ``(n,)`` columns, −1 for what the data do not have."""
        names = [str(token) for token in tokens]
        new = [name for name in names if name not in self._seen]
        if new:
            self._look_up(new)
        return np.array([self._seen[name] for name in names], dtype=np.int64)

    def _look_up(self, names: list[str]) -> None:
        found = gene_columns(names, self._adata)
        self._seen.update({name: found.get(name, -1) for name in names})


def _panel(share: np.ndarray, names: pd.Index, min_share: float) -> np.ndarray:
    """Return the columns of genes that enough cells express, by name; most cells first to stay."""
    order = np.lexsort((names.astype(str).to_numpy(), -share))
    kept = order[share[order] >= max(min_share, 1e-12)][:MAX_PANEL]
    return kept[np.argsort(names[kept].astype(str).to_numpy(), kind="stable")]


def _relations(genes: np.ndarray, mean: AttentionMean) -> CodeRelations:
    """Return the pairs that meet in at least half of the cells, but in two of them."""
    seen = np.array(mean.present[0], dtype=np.float32).reshape(len(mean.present[0]), len(genes))
    met = seen.T @ seen
    values = mean.mean()
    both = (values + values.T) / 2.0
    a, b = np.nonzero(np.triu(met >= max(2.0, len(seen) / 2), 1))
    return CodeRelations(genes, a, b, both[a, b].astype(np.float64))
