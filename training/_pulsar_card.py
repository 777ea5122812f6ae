"""Model card of ``pulsar-mini``."""

from __future__ import annotations

from io import StringIO

import pandas as pd

from cfm.hub import Checkpoint


def pulsar_card(checkpoint: Checkpoint, scores: str, unknown: str) -> str:
    """Write the card from the checkpoint, a table of scores, and one of unknown cells."""
    config = checkpoint.config
    size = config["size"]
    n_genes = len(checkpoint.files["genes.txt"].splitlines())
    curve = pd.read_csv(StringIO(checkpoint.files["history.csv"]), index_col=0)
    first, last = curve.iloc[0], curve.iloc[-1]
    sources = "\n".join(f"- {source}" for source in config["training_data"])
    return f"""\
# pulsar-mini

A small PULSAR: one vector of {2 * size["input_dim"] + size["dim"]} numbers for the blood cells
of a donor, from raw counts: the mean and the log variance of each of {size["input_dim"]} components
of the cells, times two, and the {size["dim"]} numbers of the network (`pooling="both"`).

## Intended use

`cfm.tl.embed_donors(cells, "donor")`, `cfm.tl.cell_importance`, `cfm.tl.map_reference` and
`cfm.tl.probe` on human blood cells without a download, and as an example of the training recipe. To
study donors, train a model on their own cells (seconds to minutes), or load the authors' weights.
Research use only.

## What it cannot do

- **Its donors were never donors.** It learned from {config["n_donors"]} pseudo-donors, drawn from
  {config["n_cells"]:,} cells of two studies with random shares of clusters, studies and interferon
  response. How people differ it has not seen.
- **Two laboratories, blood, interferon β.** Cells of another laboratory are often *unknown*
  (`obs["X_pulsar_unknown"]`, table below). Differences between laboratories are not removed.
- **In a laboratory that it has not seen the network adds nothing**: the moments alone
  (`pooling="moments"`) are ahead by .01 there, and the network alone (`pooling="cls"`) is far
  behind.
- **Not a classifier**, and not a reference of donors: no label was used and none is stored.
- It has the layers of PULSAR at {size["dim"]} instead of 512 numbers, {size["encoder_layers"]} of 8
  in the encoder and {size["decoder_layers"]} of 6 in the decoder.

## Input

Raw counts of single cells in `X` or a layer; human gene symbols or Ensembl ids. A projection that
is stored with the weights makes {size["input_dim"]} principal components of them: counts of its
{n_genes:,} genes, those that both studies measure, are brought to 10,000 a cell, `log1p` is taken,
and each gene is scaled by the mean and standard deviation that it has in the two studies (each
brought to the same mean before the components were fitted). Genes that are not measured are
missing, not zero: the components are a ridge fit to the others. At least a tenth is needed.
Logarithms, scaled values and bulk samples are refused, and so is another representation
(`use_rep=`).

## Training

`{config["training_command"]} --data DATA --output FOLDER`, seed {config["training_seed"]},
{config["max_steps"]} steps on one CPU core; weights stored in float16. Masked cell modelling (15 %
of 100 cells seen, 85 % of the elements of the others hidden) and agreement of two draws of a
pseudo-donor, without labels. Mean squared error of hidden elements, in variances of a component,
{first["train_reconstruction"]:.3f} in the first and {last["train_reconstruction"]:.3f} in the last
step; contrastive loss {first["train_contrastive"]:.3f} and {last["train_contrastive"]:.3f} nats.
These are training losses.

## Scores

Pseudo-donors with a planted difference, of cells of a donor of Kang 2018 whom the encoder has not
seen: encoders trained by the same script without the donor, and simple methods. AUROC, mean and
standard deviation over 2 donors and 10 draws. *Has seen* says what a method knows of the
laboratory: another donor of it, or nothing (fitted to Hao 2021 alone, without any interferon
response: what to expect of cells that are mostly unknown). Real donors differ in more ways. That
both parts are joined was chosen with these scores in sight.

{scores}

Share of cells that are unknown, of projections fitted in the same way:

{unknown}

## Data

{sources}

## Independent weights

The architecture is that of PULSAR (Pang et al., bioRxiv 2025.11.24.685470), whose authors published
no training code and trained none of these weights. The representation is not theirs either: they
read UCE embeddings.
"""
