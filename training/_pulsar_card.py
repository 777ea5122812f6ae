"""Model card of ``pulsar-mini``."""

from __future__ import annotations

from io import StringIO

import pandas as pd

from cfm.hub import Checkpoint


def pulsar_card(checkpoint: Checkpoint, measured: str) -> str:
    """Write the card from the checkpoint and a table of scores."""
    config = checkpoint.config
    size = config["size"]
    curve = pd.read_csv(StringIO(checkpoint.files["history.csv"]), index_col=0)
    first, last = curve.iloc[0], curve.iloc[-1]
    return f"""\
# pulsar-mini

A small PULSAR: one vector of {size["dim"]} numbers for the blood cells of a donor, each cell given
by {size["input_dim"]} standardised principal components. Its input space is that of one data set:
it is for trying out the donor tools without a download.

## Intended use

`cfm.tl.embed_donors`, `cfm.tl.cell_importance`, `cfm.tl.map_reference` and `cfm.tl.probe` on donors
without a download, and as an example of the training recipe. To study donors, train a model on
their own cells (seconds to minutes), or load the authors' weights. Research use only.

## What it cannot do

- **Its input space is that of one data set.** A principal component of other data is another
  direction of gene expression. On them the network still summarises cells, but nothing that it
  learned about blood carries over, and vectors of two data sets may not be compared. It does not
  read UCE embeddings, scVI spaces or genes.
- **Not a classifier**, and not a reference of donors: no label was used and none is stored.
- {config["n_donors"]} donors of one study, {config["n_cells"]:,} cells, blood only, one disease.
  Site and batch of the donors are not in the file that it was trained on.
- It has the layers of PULSAR at {size["dim"]} instead of 512 numbers, {size["encoder_layers"]} of 8
  in the encoder and {size["decoder_layers"]} of 6 in the decoder.

## Input

`obsm` with {size["input_dim"]} columns, each brought to mean 0 and variance 1 over the cells of
your own data, donors weighing the same where they have very different numbers of cells:
`(x - x.mean(axis=0)) / x.std(axis=0)`. The model remembers the names `{config["use_rep"]}` and
`{config["donor_key"]}`; others are given with `use_rep=` and `donor_key=`.

## Training

`{config["training_command"]} --data DATA --output FOLDER`, seed {config["training_seed"]},
{config["max_steps"]} steps on one CPU core; weights stored in float16. Masked cell modelling (15 %
of 100 cells seen, 85 % of the elements of the others hidden) and agreement of two draws of a donor,
without labels. Mean squared error of hidden elements, in variances of a column,
{first["train_reconstruction"]:.3f} in the first and {last["train_reconstruction"]:.3f} in the last
step; contrastive loss {first["train_contrastive"]:.3f} and {last["train_contrastive"]:.3f} nats.
These are training losses: no donor was kept out of this checkpoint.

## Scores

COVID-19 against healthy, donors left out: encoders trained by the same script without the donors
that are scored, this checkpoint, which has seen all donors without labels, and simple methods. Four
healthy donors: every interval is wide.

{measured}

## Data

{config["training_data"]}.
The components are as the package ships them; it has no genes.

## Independent weights

The architecture is that of PULSAR (Pang et al., bioRxiv 2025.11.24.685470), whose authors published
no training code and trained none of these weights. The representation is not theirs either: they
read UCE embeddings.
"""
