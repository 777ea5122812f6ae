"""Writes the model cards of the bundled checkpoints.

``python -m training.write_cards --data DATA`` takes scores from ``benchmarks/results`` and data
sources from the manifest, so that a card says only what was measured.
"""

from __future__ import annotations

import argparse
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks._report import RESULTS, data_folder, markdown_table
from cfm.datasets import list_datasets
from cfm.hub import load_checkpoint
from training._cellvq_card import cellvq_card
from training._pulsar_card import pulsar_card

CHECKPOINTS = Path(__file__).resolve().parents[1] / "src" / "cfm" / "hub" / "checkpoints"

INDEPENDENT = """\
## Independent implementation, patent application

Of the published CellPulse (bioRxiv 2026, Wuhan Institute of Virology and Institute of Software,
Chinese Academy of Sciences) only the abstract is public. This is an independent implementation of
what the abstract states; its authors wrote none of it, and its numbers are not theirs. They declare
a patent application on their method ("method for disease diagnosis and drug discovery based on
modeling of large-scale gene expression data"); nothing here grants a right to it.
"""

SETS = """\
Signed gene sets: ImmuneSigDB pairs with an up and a down list (MSigDB C7 2024.1, CC-BY 4.0) and
CytoSig 0.0.3 response weights (GPL-3).
"""


def results(name: str) -> dict[str, Any]:
    """Read what a benchmark wrote with ``--write``."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing; run python -m benchmarks.{name} --write first.")
    return json.loads(path.read_text())


def scores(name: str, table: str, digits: int = 3) -> str:
    """Return a table of a benchmark as markdown."""
    return markdown_table(pd.DataFrame(results(name)[table]), digits)


def signature_sources(folder: Path, studies: list[str]) -> str:
    """List the studies of the signature tables with source and licence."""
    manifest = pd.read_csv(folder / "virus_signatures" / "manifest.csv")
    rows = manifest[manifest["study"].isin(studies)].fillna("")
    table = rows.groupby("study", as_index=False).agg(
        viruses=("virus", lambda v: ", ".join(sorted(set(v)))),
        host=("host", lambda v: ", ".join(sorted(set(v)))),
        contrasts=("signature", "size"),
        source=("source_repository", lambda v: ", ".join(sorted(set(v) - {""}))),
        licence=("licence", lambda v: ", ".join(sorted(set(v) - {""})) or "not stated"),
    )
    return markdown_table(table)


def count_sources(studies: list[str]) -> str:
    """List the count tables with accession and licence."""
    table = list_datasets().reset_index()
    table = table[table["study"].isin(studies)]
    return markdown_table(table[["name", "accession", "citation", "licence"]])


def mini_card(folder: Path) -> str:
    """Card of ``cellpulse-mini``."""
    checkpoint = load_checkpoint(CHECKPOINTS / "cellpulse-mini")
    studies = checkpoint.config["training_studies"]
    return f"""\
# cellpulse-mini

Pretrained CellPulse, the smallest size: embeds differential-expression profiles (contrasts of case
against control) and predicts the direction and size of hidden effects. A linear gene-gene term and
a direction-aware transformer of one layer.

## Intended use

Embedding bulk or pseudobulk contrasts of infection and other perturbations, filling in effects that
were not measured, and as the encoder under a classifier. Research use only.

## Limits

- Human gene symbols; mouse and monkey genes through the names of their orthologues.
- Trained on {len(studies)} studies, most of them viral infections; profiles of other biology are
  known only through signed gene sets.
- For directions the linear term does nearly all the work: held-out studies chose to use
  {checkpoint.tensors["module.correction_weight"].item():.0%} of the transformer's correction in
  this checkpoint. The table shows both.

## Training

`{checkpoint.config["training_command"]} --data DATA --output FOLDER`, seed
{checkpoint.config["training_seed"]}, on a CPU in a few minutes.
Masked direction (cross-entropy), masked magnitude (Huber) and recall of
directions from the summary token; every profile is predicted without the factors of its own study.

## Scores

Half of the 1,000 largest effects of each contrast hidden, in studies left out of training (models
trained by the same command without them; this checkpoint has seen all):

{scores("masked_direction", "scores")}

Paired over studies, 95 % bootstrap interval:

{scores("masked_direction", "paired")}

## Data

{SETS}
Contrasts (log2 fold changes):

{signature_sources(folder, studies)}

{INDEPENDENT}"""


def virus_card(folder: Path) -> str:
    """Card of ``cellpulse-virus``."""
    checkpoint = load_checkpoint(CHECKPOINTS / "cellpulse-virus")
    config = checkpoint.config
    per_virus = config["studies_per_virus"]
    several = ", ".join(f"{v} ({n})" for v, n in per_virus.items() if n >= 2)
    single = ", ".join(v for v, n in per_virus.items() if n < 2)
    counts = config["n_contrasts"]
    studies = config["classifier_studies"]
    support = pd.DataFrame(config["classifier"]["support"])
    return f"""\
# cellpulse-virus

CellPulse with a classifier that tells the kind of response of a contrast (none, viral, interferon
I/III, interferon II, bacterial, other), and the virus where studies support a name.

## Intended use

Exploring what a host response resembles, together with the public contrasts that are most like it
(`cfm.tl.predict_virus`, `cfm.tl.search_signatures`). **Research use only; not a diagnostic.**

## Limits

- **No virus is named by default.** In studies left out, whether or not their virus has another,
  most names were wrong, and no score told which (tables). With `names="always"` the most probable
  of {len(config["classes"])} viruses is given. Studies by virus: {several}; one each: {single}.
- Kinds of response are mostly not supported either: read the support beside each answer (table).
  *Viral* is right most often; interferon I/III and viral responses are taken for each other.
- *none* means "like one group of controls against another". Early and weak infections look so.
- Infections and other stimuli are told apart little above chance (AUROC below).
- Contrasts of very few samples, and of blood from unmatched donors, are the least certain.

## Training

`{config["training_command"]} --data DATA --output FOLDER`: {counts.get("infection", 0)} contrasts
and gene sets of infections, {counts.get("stimulus", 0)} of other stimuli and
{counts.get("null", 0)} contrasts of controls against controls. Convex problems, no seed. GSE147507,
the study of the demonstration, was left out of the classifier; the encoder, which makes the
embedding, has seen its effects without labels.

## Support

Share of answers that were right in studies left out, mean over studies; what the model stores:

{markdown_table(support, digits=2)}

## Scores

Kind of response, one study left out (this checkpoint has seen all but GSE147507):

{scores("response", "all_contrasts")}

The same within contrasts made from counts by the same code:

{scores("response", "from_counts")}

Names of viruses, the world open:

{scores("virus", "named")}

## Data

Encoder: see cellpulse-mini. Contrasts from published tables:

{signature_sources(folder, studies)}

Contrasts made from count tables:

{count_sources(studies)}

Pairs of gene sets: ImmuneSigDB of MSigDB 2024.1 (Godec et al. 2016, CC-BY 4.0).

{INDEPENDENT}"""


#: Tables of ``bulk/``; the others are among the datasets.
BULK_SOURCES = """\
| name | source | repository and its licence |
|---|---|---|
| lcl_rnaseq_pickrell | Pickrell et al. 2010, Nature | bioc/tweeDEseqCountData, MIT |
| lcl_rnaseq_montgomery | Montgomery et al. 2010, Nature | bioc/tweeDEseqCountData, MIT |
| gtex_brain, gtex_heart, gtex_liver | GTEx, TPM | calebji123/MultiCoex, MIT |
| tcga_small5_rsem | TCGA, five small cancers | RTCGA.rnaseq.20160128, TCGA open access |
| GSE50244_islets | Fadista et al. 2014 | meichendong/SCDC, not stated |
| TB_HIV_blood | GSE107104 (inferred) | compbiomed/TBSignatureProfiler, MIT |
"""


def bulkformer_card() -> str:
    """Card of ``bulkformer-mini``."""
    checkpoint = load_checkpoint(CHECKPOINTS / "bulkformer-mini")
    config = checkpoint.config
    tables = config["training_tables"]
    known = list_datasets()
    sources = known[known.index.isin(tables)].reset_index()
    measured = "Not written yet: `python -m benchmarks.imputation --write`, then this script."
    if (RESULTS / "imputation.json").is_file():
        measured = f"""\
Vocabulary and linear term as here, fitted without the samples that are scored (this checkpoint has
seen all counts and TPM). 15 % of the genes hidden; `centred` takes the training mean of each gene
off:

{scores("imputation", "scores")}

Minus the best baseline on the centred score, paired over donors, 95 % bootstrap interval:

{scores("imputation", "paired")}

Embeddings of cohorts whose studies were left out, beside principal components; ours minus these,
paired over groups, 95 % bootstrap interval:

{scores("beside_pca", "scores")}

{scores("beside_pca", "paired")}"""
    return f"""\
# bulkformer-mini

A small BulkFormer: fills in expression that was not measured and embeds bulk samples (log1p TPM).
The published architecture at its smallest (width {config["size"]["dim"]},
{config["size"]["n_layers"]} Performer layer, a co-expression graph), and beside it a linear
gene-gene term in closed form with {config["linear_term"]["n_factors"]} factors.

## Intended use

Trying out `cfm.tl.impute` and `cfm.tl.embed` on bulk RNA-seq of human samples without a download.
For research on embeddings load the authors' checkpoints. Research use only.

## Limits

- {len(checkpoint.files["genes.txt"].splitlines()):,} genes, those that vary in most of the training
  tables: genes of a single tissue are missing. Human only. Not for arrays or single cells as they
  are: bring each gene to the mean that it has here first.
- {config["n_samples"]:,} samples of {len(config["training_studies"])} studies. Imputation is good
  for samples like them (lymphoblastoid lines, blood, GTEx brain, heart and liver); a sample of a
  new kind is predicted with far larger errors.
- **Imputation and embedding are the linear term's alone.** A network of so few samples made both
  worse. It is there to be tried: `pooling="mean"`. An embedding has 128 factors: principal
  components of the training samples within their groups. In a tissue that the corpus lacks,
  components of your own samples may be better (HbA1c of islets, with the islets left out); and
  plain components of the corpus separate infected or control samples of a new study better (tables
  below).

## Training

`{config["training_command"]} --data DATA --output FOLDER`, seed {config["training_seed"]}, on a CPU
in some minutes; two runs give the same weights. The linear term is in closed form. The network:
hidden expression (mean squared error), {config["max_steps"]} steps, studies drawn with a weight of
one over the root of their size.

## Scores

{measured}

## Data

Counts as log1p TPM of all genes of a table, RSEM too; FPKM brought to a sum of a million; GTEx
subsets as their TPM are. Libraries of fewer than 200,000 reads are left out.

{BULK_SOURCES}
{markdown_table(sources[["name", "accession", "citation", "licence"]])}

## Independent weights

The architecture is that of BulkFormer (KangBoming/BulkFormer, Cell Systems 17(7) 101657, 2026). Its
authors trained none of these weights, and the linear term is not part of their model.
"""


def lingshu_card() -> str:
    """Card of ``lingshu-pbmc-mini``."""
    checkpoint = load_checkpoint(CHECKPOINTS / "lingshu-pbmc-mini")
    config = checkpoint.config
    levels = config["levels"]
    curve = pd.read_csv(StringIO(checkpoint.files["history.csv"]), index_col=0)
    loss = curve["validation_loss"].dropna()
    n_genes = len(checkpoint.files["genes.txt"].splitlines())
    return f"""\
# lingshu-pbmc-mini

A small Lingshu-Cell: makes counts of blood cells with and without interferon-beta, and turns
control cells into stimulated ones. {n_genes:,} genes; cell types
{", ".join(levels["sources"])}; conditions {levels["control"]} and
{", ".join(levels["perturbations"])}; donors {", ".join(levels["covariates"]["donor"])}.

## Intended use

Trying out `LingshuCell.generate` and `cfm.tl.simulate_perturbation` on counts of human blood cells
without a download. To study a screen, train on that screen. Research use only.

## Limits

- {config["n_cells"]:,} cells of two donors and one experiment: it knows no other stimulus, dose,
  time, tissue or disease, and its cells vary as those did.
- {n_genes:,} genes, chosen by the package that the data come from. Others are not generated.
- It gives no embeddings of cells: a PCA of log counts tells types and stimulation better apart.
- What it says of a cell type follows from the registered label; a cell of another type has none.
- The network adds little to the count term on so few cells (validation loss
  {loss.iloc[0]:.4f} after the first pass, {loss.iloc[-1]:.4f} at the end, in nats per gene): within
  a cell type and condition, generated genes vary more independently than real ones.

## Training

`{config["training_command"]} --data DATA --output FOLDER`, seed {config["training_seed"]},
{config["max_steps"]:,} steps on one CPU core; two runs give the same weights. The count term, then
the network beside it. The count term was fitted by version 0.1.0, which took effects as measured;
later versions shrink them by what chance explains.

## Scores

Not of this checkpoint, which has seen all cells, but of the count model alone, the term that stands
beside its network, trained without the stimulated cells of the cell type that is scored. Half of
the type's controls are kept from all methods, and effects measured against those. The count model
was designed with these scores in sight. Means over the cell types:

{scores("perturbation", "interferon")}

## Data

{config["training_data"]}. The counts are public (GEO); the package that holds this subset is GPL-3.
Ensembl ids that it appended to some symbols are dropped.

## Independent weights

The architecture is that of Lingshu-Cell (DAMO Academy, arXiv 2603.25240) with a count term beside
it, which is not part of their model. Its authors trained none of these weights.
"""


def main() -> None:
    """Write the cards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--only", help="name of one checkpoint")
    args = parser.parse_args()
    folder = data_folder(args.data)
    cards = {
        "bulkformer-mini": lambda _: bulkformer_card(),
        "cellpulse-mini": mini_card,
        "cellpulse-virus": virus_card,
        "cellvq-mini": lambda _: cellvq_card(
            load_checkpoint(CHECKPOINTS / "cellvq-mini"),
            pd.DataFrame(results("cell_codes")["scores"]),
            pd.DataFrame(results("cell_types")["types"]),
        ),
        "lingshu-pbmc-mini": lambda _: lingshu_card(),
        "pulsar-mini": lambda _: pulsar_card(
            load_checkpoint(CHECKPOINTS / "pulsar-mini"),
            scores("pseudo_donors", "scores"),
            scores("pseudo_donors", "unknown", digits=2),
        ),
    }
    for name, make in cards.items():
        if args.only in (None, name):
            (CHECKPOINTS / name / "README.md").write_text(make(folder), encoding="utf-8")


if __name__ == "__main__":
    main()
