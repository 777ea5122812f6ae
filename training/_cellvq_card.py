"""Model card of ``cellvq-mini``."""

from __future__ import annotations

import json
from io import StringIO

import pandas as pd

from benchmarks._report import markdown_table
from cfm.hub import Checkpoint

_NEW_CELLS = "Zheng 2017"


def new_cells(scores: pd.DataFrame, name: str) -> str:
    """Return the table of the cells that the checkpoint never saw, its codes beside clusters."""
    theirs = scores["model"].str.startswith(name) | (scores["model"] == "–")
    table = scores[scores["cells"].str.startswith(_NEW_CELLS) & theirs]
    return markdown_table(table.drop(columns="model"), {"groups": 0}) + "\n\n" + verdict(table)


def verdict(table: pd.DataFrame) -> str:
    """Put codes beside clusters, by the adjusted mutual information."""
    codes = table["method"].str.startswith("codes")
    parts = []
    for cells, part in table.groupby("cells", sort=False):
        ours, theirs = (part.loc[m, "AMI"].max() for m in (codes[part.index], ~codes[part.index]))
        parts.append(f"{cells}: AMI {ours:.2f} of codes, {theirs:.2f} of clusters")
    return "; ".join(parts) + ". Clusters are made anew for each dataset, codes are not."


def _listed(sources: list[str]) -> str:
    return "".join(f"- {source}\n" for source in sources)


def cellvq_card(checkpoint: Checkpoint, scores: pd.DataFrame, types: pd.DataFrame) -> str:
    """Write the card from the checkpoint and the tables of two benchmarks: codes, and types."""
    config = checkpoint.config
    size = config["size"]
    n_genes = len(checkpoint.files["genes.txt"].split())
    curve = pd.read_csv(StringIO(checkpoint.files["history.csv"]), index_col=0)
    last = curve.ffill().iloc[-1]  # training stops within an epoch
    unlabelled, labelled = config["n_cells"]
    first_steps, more_steps = config["max_steps"]
    classes = ", ".join(json.loads(checkpoint.files["properties.json"])["cell_type"])
    mean = types.set_index("label").loc["mean of the types"]
    right, linear = mean["cellvq-mini"], mean["logistic regression on expression"]
    return f"""\
# cellvq-mini

A small CellVQ: one of {2 ** size["n_bits"]} codes for a human blood cell by {n_genes:,} genes, with
its cell type and whether it answers interferon. It is for trying out cell codes and the knowledge
graph without a download.

## Intended use

`cfm.tl.cell_codes`, `cfm.tl.knowledge_graph`, `cfm.tl.predict_properties` and `cfm.tl.embed` on
blood cells, and as an example of the training recipe. For other tissues train a model on your own
cells (minutes), or load the authors' weights. Research use only.

## What it cannot do

- **Blood only, eight types** ({classes}). A cell of
  another type or tissue gets one of these names, or `unknown` where the head is less sure than of
  95 % of the cells of a study left out. In another laboratory's blood it names {right:.0%} right as
  a mean over types; logistic regression on expression, fitted to the genes that both have,
  {linear:.0%} (table below). Types are read from expression, not from the embedding.
- Cells of Hao 2021, by which it knows NK cells, dendritic cells and platelets, were named by marker
  genes of their clusters and not by their authors.
- **Codes are coarse, and linear.** A code is a cluster of the {unlabelled:,} cells without labels,
  and is found in other cells by linear discriminant analysis of expression; the network has no part
  in it, because codes that a network of this size learned agreed less with cell types than k-means
  on a PCA. A code is no cell state that anybody has confirmed, and states that these cells do not
  have (an answer to interferon, say) have no code of their own. Where they matter, cluster.
- `condition` (`ctrl`, `stim`), which is only predicted when asked for by name, means
  interferon-beta for six hours in the cells of Kang 2018. It is
  no test for infection.
- It has the layers of CellVQ at {size["dim"]} instead of 768 numbers, {size["n_layers"]} of 12, and
  what theirs has not: two linear terms (`code_term`, `expression_term`) and the codes above
  (`expression_codes`) in place of its quantiser. It has no relations between genes.

## Input

Raw counts, or log1p of counts per 10,000 (`units="log1p_cp10k"`). Symbols or Ensembl ids; genes
that are absent are taken as not measured.

## Training

`{config["training_command"]} --data DATA --output FOLDER`, seed {config["training_seed"]}, on one
CPU core: {first_steps:,} steps on {unlabelled:,} cells without labels, then {more_steps:,} steps
on {labelled:,} cells with cell type and condition; weights stored in float16. Perplexity of the
codes of held-out cells in the last epoch {last["perplexity"]:.1f}. The head of cell types is a
linear discriminant analysis of the expression of all of these cells, with a factor model of the
covariance, for whichever genes are measured; its probabilities are calibrated on the study left
out.

## Scores

Codes of this checkpoint on cells that it never saw, in another laboratory's data with other types
(Zheng 2017, 700 cells; on log values, and on counts), beside groups that were made from these cells
themselves:

{new_cells(scores, "cellvq-mini")}

Types of these cells, labels of their authors, beside simple methods:

{markdown_table(types, 2)}

`python -m benchmarks.cell_codes` has the same for models trained on one donor and scored on the
other.

## Data

{_listed(config["training_data"])}
The counts are public (GEO); the packages that hold these subsets are GPL-2 or later and GPL-3.

## Independent weights

The architecture is that of CellVQ (Nature Communications 2026) as far as its code tells; the
training recipe is ours, and its authors trained none of these weights.
"""
