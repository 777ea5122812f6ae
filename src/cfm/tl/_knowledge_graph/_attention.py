"""Attention in each code: from the cell to its genes, and between genes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm.models import AttentionModel, PretrainedModel, load_model
from cfm.stats._gene_modules import AttentionMean, attention_excess
from cfm.tl._knowledge_graph._knowledge import gene_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from scipy import sparse

    from cfm.data._counts import Units

#: Candidate genes for the relations of a code: memory grows with the square.
MAX_PANEL = 1000
#: Names looked up at a time, over all permutations.
_LOOKUPS = 10_000_000
#: Parts of the genes by expression, within which names are permuted.
_STRATA = 10


@dataclass(frozen=True)
class Attended:
    """Attention of the sampled cells.

    Attributes
    ----------
    attention
        ``(n_codes, n_genes)`` float64, mean attention of the cell to a gene, 1 = as much as to
        each other token of that cell; 0 where the gene is no token.
    relations
        ``code``, ``a``, ``b`` (columns of the data, in the order of their names) and ``weight``:
        the pairs of genes of each code that attend to each other most, the strongest first.
    panel
        Columns of the candidate genes for relations, sorted.
    n_cells
        Number of cells.
    """

    attention: np.ndarray
    relations: pd.DataFrame
    panel: np.ndarray
    n_cells: int


def attention_model(model: Any) -> AttentionModel | None:
    """Return the model with attention for ``model=``.

    Raises
    ------
    TypeError
        If it has no attention.
    """
    if model is None:
        return None
    if not isinstance(model, AttentionModel) or isinstance(model, PretrainedModel):
        model = load_model(model)
    if not isinstance(model, AttentionModel):
        raise TypeError(
            f"{type(model).__name__} has no attention (no get_attention method); use a model with "
            "attention, such as cfm.models.CellVQ, or model=None for a graph without one."
        )
    return model


def attention_options(
    model: AttentionModel, layer: str | None, units: Units, total_counts: str | None
) -> dict[str, Any]:
    """Return the arguments of the model's ``get_attention``.

    Raises
    ------
    TypeError
        If it takes no ``units``.
    """
    taken = inspect.signature(model.get_attention).parameters
    options: dict[str, Any] = {"layer": layer}
    if units != "counts":
        if "units" not in taken:
            raise TypeError(
                f"{type(model).__name__}.get_attention takes no units=, and the values are in "
                f"units={units!r}; name a layer with the default values of the model."
            )
        options |= {"units": units, "total_counts": total_counts}
    if "reduce" in taken:  # this model averages its maps itself, which saves memory
        options["reduce"] = "mean"
    return options


def read_attention(
    model: AttentionModel,
    adata: AnnData,
    drawn: list[np.ndarray],
    share: np.ndarray,
    min_share: float,
    n_relations: int,
    options: dict[str, Any],
) -> Attended:
    """Read the attention maps of some cells of each code, one map at a time.

    Parameters
    ----------
    model
        A model with attention.
    adata
        Cells by genes.
    drawn
        Row numbers of the cells to read of each code.
    share
        ``(n_codes, n_genes)`` share of cells that express a gene; relations are looked for among
        genes with at least ``min_share`` of a code's cells, at most :data:`MAX_PANEL`.
    min_share
        See above.
    n_relations
        Largest number of pairs of genes of a code.
    options
        Further arguments of the model's ``get_attention``.

    Raises
    ------
    ValueError
        If no gene of the data is ever a token, or the model leaves out cells.
    """
    unique, back = np.unique(np.concatenate(drawn), return_inverse=True)  # files: sorted rows
    # Genes by name: sums in the model are then the same to the last bit in any order of genes.
    by_name = np.argsort(adata.var_names.astype(str).to_numpy(), kind="stable")
    part = adata[unique].to_memory()[back, by_name].copy()
    maps = iter(model.get_attention(part, **options))
    columns = _TokenColumns(model, adata)
    attention = np.zeros((len(drawn), adata.n_vars))
    known = np.zeros(adata.n_vars, dtype=bool)
    related, panels, count = [], [], 0
    for code, rows in enumerate(drawn):
        panel = _panel(share[code], adata.var_names, min_share)
        at = np.full(adata.n_vars + 1, -1, dtype=np.int64)
        at[panel] = np.arange(len(panel))
        mean = AttentionMean(len(panel), 1)
        for _, (tokens, weights) in zip(rows, maps, strict=False):
            count += 1
            places = columns(tokens[1:])
            weights = weights.reshape(-1, 1, *weights.shape[-2:])
            own = np.asarray(weights[:, 0, 0, 1:], dtype=np.float64).mean(axis=0)
            found = places >= 0
            attention[code, places[found]] += (own * len(own) / max(own.sum(), 1e-12))[found]
            known[places[found]] = True
            mean.add(0, at[places], attention_excess(weights))
        attention[code] /= len(rows)
        related.append(_relations(panel, mean, n_relations).assign(code=code))
        panels.append(panel)
    if count != back.size:
        raise ValueError(
            f"{type(model).__name__}.get_attention gave maps of {count} of {back.size} cells; "
            "expected one for each."
        )
    if not known.any():
        raise ValueError(
            f"None of the {adata.n_vars} genes (such as {', '.join(map(str, adata.var_names[:3]))})"
            f" is among the tokens of {type(model).__name__}; use the gene names of the model."
        )
    relations = pd.concat(related, ignore_index=True)
    return Attended(attention, relations, np.unique(np.concatenate(panels)), count)


class _TokenColumns:
    """Columns of the data by the gene names of the model."""

    def __init__(self, model: AttentionModel, adata: AnnData) -> None:
        self._adata = adata
        self._seen: dict[str, int] = {}
        vocabulary = getattr(model, "vocabulary", None)
        if vocabulary is not None:
            self._look_up(list(vocabulary.genes))

    def __call__(self, tokens: pd.Index) -> np.ndarray:
        """Return ``(n,)`` columns, −1 for genes that the data lack."""
        names = [str(token) for token in tokens]
        new = [name for name in names if name not in self._seen]
        if new:
            self._look_up(new)
        return np.array([self._seen[name] for name in names], dtype=np.int64)

    def _look_up(self, names: list[str]) -> None:
        found = gene_columns(names, self._adata)
        self._seen.update({name: found.get(name, -1) for name in names})


def _panel(share: np.ndarray, names: pd.Index, min_share: float) -> np.ndarray:
    """Return the columns, by name, of the most frequent genes of at least ``min_share``."""
    order = np.lexsort((names.astype(str).to_numpy(), -share))
    kept = order[share[order] >= max(min_share, 1e-12)][:MAX_PANEL]
    return kept[np.argsort(names[kept].astype(str).to_numpy(), kind="stable")]


def _relations(genes: np.ndarray, mean: AttentionMean, n: int) -> pd.DataFrame:
    """Return the strongest pairs that are tokens together in half of the cells, at least two."""
    seen = np.array(mean.present[0], dtype=np.float32).reshape(len(mean.present[0]), len(genes))
    values = mean.mean()
    both = (values + values.T).astype(np.float64) / 2.0
    enough = seen.T @ seen >= max(2.0, len(seen) / 2)
    a, b = np.nonzero(np.triu(enough & (both > 0), 1))
    best = np.lexsort((b, a, -both[a, b]))[:n]
    a, b = a[best], b[best]
    return pd.DataFrame({"a": genes[a], "b": genes[b], "weight": both[a, b]})


def mark_relations(
    attended: Attended,
    networks: Mapping[str, sparse.csr_matrix],
    share: np.ndarray,
    *,
    n_permutations: int,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Add the support of networks to the relations of codes, and test its extent.

    ``share`` is the ``(n_genes,)`` share of cells that express a gene.

    Returns
    -------
    table
        The relations with ``support``: names of networks joined by ``|``, ``""`` for none.
    support
        By network the result of :func:`support_test` for the unique pairs of all codes.
    """
    a, b = (attended.relations[end].to_numpy() for end in ("a", "b"))
    marks = pd.DataFrame(
        {name: np.asarray(network[a, b]).ravel() > 0 for name, network in networks.items()},
        index=attended.relations.index,
    )
    support = ["|".join(marks.columns[row]) for row in marks.to_numpy(dtype=bool)]
    ends = np.unique(np.sort(np.column_stack([a, b]), axis=1), axis=0)
    tests = {
        name: support_test(
            network,
            ends[:, 0],
            ends[:, 1],
            attended.panel,
            level=share[attended.panel],
            n_permutations=n_permutations,
            seed=seed,
        )
        for name, network in networks.items()
    }
    return attended.relations.assign(support=support), tests


def support_test(
    network: sparse.csr_matrix,
    a: np.ndarray,
    b: np.ndarray,
    genes: np.ndarray,
    *,
    level: np.ndarray,
    n_permutations: int,
    seed: int,
) -> dict[str, float | int]:
    """Test whether a network supports more of some edges than of random ones.

    The names of genes that are about as much expressed are permuted, so that the random edges have
    the same hubs, and are between genes as well known: much expressed genes are studied more.

    Parameters
    ----------
    network
        ``(n_genes, n_genes)`` symmetric CSR of 0 and 1.
    a, b
        ``(n,)`` columns of the ends of the edges; each pair once.
    genes
        Columns of the candidate genes for edges, sorted and unique.
    level
        ``(len(genes),)`` expression of each; names are permuted within tenths of it.
    n_permutations
        Number of random edge sets; 0 for none.
    seed
        Seed of the permutations.

    Returns
    -------
    ``n_edges``, ``n_supported``, ``expected`` (the mean over permutations, without them the share
    of all pairs times ``n_edges``) and ``p_value`` (``NaN`` without permutations).
    """
    known = (network[genes][:, genes].toarray() > 0) if len(genes) else np.zeros((0, 0), dtype=bool)
    x, y = np.searchsorted(genes, a), np.searchsorted(genes, b)
    found = int(known[x, y].sum())
    n_pairs = max(1, len(genes) * (len(genes) - 1))
    expected, p_value = len(a) * float(known.sum()) / n_pairs, float("nan")
    if n_permutations and len(a):
        rng = np.random.default_rng(seed)
        counts = []
        step = max(1, _LOOKUPS // max(len(genes), len(a)))
        for start in range(0, n_permutations, step):
            n = min(step, n_permutations - start)
            renamed = np.tile(np.arange(len(genes)), (n, 1))
            for part in np.array_split(np.argsort(level, kind="stable"), _STRATA):
                renamed[:, part] = rng.permuted(renamed[:, part], axis=1)
            counts.append(known[renamed[:, x], renamed[:, y]].sum(axis=1))
        chance = np.concatenate(counts)
        expected = float(chance.mean())
        p_value = float((1 + (chance >= found).sum()) / (1 + n_permutations))
    return {
        "n_edges": len(a),
        "n_supported": found,
        "expected": expected,
        "p_value": p_value,
    }
