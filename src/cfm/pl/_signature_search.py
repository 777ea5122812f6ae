"""Matches of a signature search beside the genes that make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._arguments import checks_arguments
from cfm._fields import EVIDENCE, RESULTS, SIGNATURE_SEARCH_KEY, params_of
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish, new_figure
from cfm.pl._labels import shorten
from cfm.pl._palette import SIGNIFICANT
from cfm.pl._stored import stored_table

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

_RESULTS = ("query", "match", "rank", "similarity", "p_value", "fdr")
_EVIDENCE = ("query", "match", "gene", "query_effect", "match_effect")
#: Columns of the library that say what a match is, the first ones that are there.
_DESCRIBED = ("stimulus", "compound", "tissue", "time_h", "study")


@checks_arguments()
def signature_search(
    adata: AnnData,
    query: str | None = None,
    *,
    key: str = SIGNATURE_SEARCH_KEY,
    n_matches: int = 10,
    n_genes: int = 30,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw a query and its matches as a heat map of their evidence genes.

    The first row is the query, the rows below are its matches by rank, with similarity and a star
    where the false discovery rate is at most 0.05. Columns are the evidence genes of most matches.
    Red and ``+`` is up, blue and ``-`` down, relative to the strongest effect of the row; a gene
    that is no evidence of a match is empty there.

    Parameters
    ----------
    adata
        Contrasts with the fields written by :func:`cfm.tl.search_signatures`.
    query
        Name of the contrast (``obs_names``); the first that has matches by default.
    key
        Where they are stored (``key_added`` of that call).
    n_matches
        Matches at most, the best ones.
    n_genes
        Genes at most: those that are evidence of most matches, weighed by their place.
    ax
        Draw here instead of into a new figure.
    show
        Show the figure. ``False`` closes it; the returned Axes can still be saved.
    save
        File to write the figure to.

    Returns
    -------
    The Axes drawn on.

    Raises
    ------
    KeyError
        If :func:`cfm.tl.search_signatures` was not run, or has no matches of the query.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.blanco_melo(), "virus", "none", by="series")
    >>> cfm.tl.search_signatures(contrasts)
    >>> ax = cfm.pl.signature_search(contrasts, n_matches=5, show=False)
    >>> len(ax.get_yticklabels())
    6
    """
    require_anndata(adata)
    tool = "search_signatures"
    results = stored_table(adata, key, RESULTS, tool=tool, columns=_RESULTS)
    evidence = stored_table(adata, key, EVIDENCE, tool=tool, columns=_EVIDENCE)
    names = results["query"].unique()
    name = names[0] if query is None else str(query)
    if name not in names:
        raise KeyError(
            f"query={name!r} has no matches in uns[{key!r}]['results']; it has {list(names[:5])}."
        )
    matches = results[results["query"] == name].sort_values("rank").head(n_matches)
    proof = evidence[(evidence["query"] == name) & evidence["match"].isin(matches["match"])]
    # The first gene of a match weighs 1, the tenth a tenth.
    place = proof.groupby("match").cumcount() + 1
    weight = (1 / place).groupby(proof["gene"]).sum().sort_values(ascending=False, kind="stable")
    genes = weight.index[:n_genes]
    own = proof.drop_duplicates("gene").set_index("gene")["query_effect"].reindex(genes)
    theirs = proof.pivot_table(index="match", columns="gene", values="match_effect")
    values = np.vstack([own, theirs.reindex(index=matches["match"], columns=genes).to_numpy()])
    # Rows are in units of their own: fold changes, or relative effects.
    largest = [own.abs().max(), *proof.groupby("match")["match_effect"].agg(_largest)
               .reindex(matches["match"])]  # fmt: skip
    values = values / np.maximum(np.nan_to_num(np.array(largest, dtype=float)), 1e-12)[:, None]
    labels = [f"{shorten(name, 44)}  (query)", *(_described(row) for _, row in matches.iterrows())]
    if ax is None:
        width = 2.2 + 0.065 * max(map(len, labels)) + 0.2 * len(genes)
        panel = new_figure(width, 1.4 + 0.21 * len(labels)).subplots()
    else:
        panel = ax
    image = panel.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for row, column in zip(*np.nonzero(np.nan_to_num(values)), strict=True):
        sign = "+" if values[row, column] > 0 else "−"
        color = "white" if abs(values[row, column]) > 0.6 else "#3C3C3C"
        panel.text(column, row, sign, ha="center", va="center", fontsize=6, color=color)
    panel.axhline(0.5, color="black", linewidth=1.2)
    panel.set_xticks(range(len(genes)), [shorten(g, 14) for g in genes], rotation=90, fontsize=7)
    panel.set_yticks(range(len(labels)), labels, fontsize=7.5)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    bar = figure_of(panel).colorbar(image, ax=panel, shrink=min(1.0, 8 / len(labels)), pad=0.01)
    bar.set_label("effect / largest of the row", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    opposite = params_of(adata.uns, key).get("direction") == "opposite"
    kind = "opposed" if opposite else "similar"
    plural = "" if len(matches) == 1 else "s"
    panel.set_title(
        f"{len(matches)} most {kind} contrast{plural} (* FDR ≤ {SIGNIFICANT:g})", fontsize=9
    )
    finish(figure_of(panel), owned=ax is None, show=show, save=save)
    return panel


def _largest(values: pd.Series) -> float:
    return float(values.abs().max())


def _described(row: pd.Series) -> str:
    """Return what a match is, its similarity, and a star where it is significant."""
    parts = []
    for name in _DESCRIBED:
        value = row.get(name, "")
        if isinstance(value, float | np.floating):
            value = f"{value:g} h" if np.isfinite(value) else ""
        if value and str(value) not in parts:
            parts.append(shorten(str(value), 30))
    text = ", ".join(parts) if parts else shorten(str(row["match"]), 44)
    star = " *" if row["fdr"] <= SIGNIFICANT else ""
    return f"{shorten(text, 60)}  {row['similarity']:.2f}{star}"
