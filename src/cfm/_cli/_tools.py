"""The tools as commands that read files and write files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfm._cli._options import (
    add_device,
    add_inputs,
    add_log,
    add_output,
    add_precision,
    add_reading,
    add_sharing,
    number_or_all,
)
from cfm._cli._run_tool import Tool, run_tool
from cfm._cli._status import EXIT_STATUS

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfm._cli._log import RunLog

_KEPT = "what is done is kept; run the same command again to go on from there"


_SHARED = (
    "model", "key_added", "batch_size", "device", "overwrite", "chunk_size", "devices",
    "num_nodes", "strategy",
)  # fmt: skip
_CHUNKED = (*_SHARED, "layer")
_DONORS = ("donor_key", "use_rep", "layer", "n_cells", "n_draws", "seed", "precision")
_CONTRASTS = (
    "groupby", "control", "by", "mode", "sample_key", "min_cells", "prior_count",
)  # fmt: skip
_CODES = (
    "groupby", "units", "total_counts", "reference", "n_groups", "n_markers", "min_cells",
    "n_neighbors",
)  # fmt: skip

TOOLS = {
    "embed": Tool("embed", (*_CHUNKED, "precision", "units", "total_counts", "pooling")),
    "predict-virus": Tool("predict_virus", (*_CHUNKED, "names", "n_matches", *_CONTRASTS)),
    "impute": Tool("impute", (*_CHUNKED, "mask", "absent_genes"), tables=False),
    "cell-codes": Tool("cell_codes", (*_CHUNKED, *_CODES)),
    "embed-donors": Tool("embed_donors", (*_SHARED, *_DONORS), keeps_rows=False),
}


def add_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the commands."""
    for name, fill in _PARSERS.items():
        summary, description, examples = _WORDS[name]
        parser = commands.add_parser(
            name,
            parents=[common],
            help=summary,
            description=description,
            epilog=f"examples:\n{examples}\n\n{EXIT_STATUS}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_inputs(parser)
        add_output(parser, tables=TOOLS[name].tables, keeps_rows=TOOLS[name].keeps_rows)
        fill(parser)
        add_device(parser)
        if name == "embed-donors":
            add_sharing(parser, "donors", 64)
        else:
            add_sharing(parser, "rows", 8192)
        add_log(parser)
        parser.set_defaults(run=_run, kept=_KEPT)


_WORDS = {
    "embed": (
        "embed the observations of files",
        "Embed cells, samples or contrasts with a model. OUT gets the embedding as obsm "
        "(X_<model>), obs, var and uns of the input.",
        """\
  cfm embed cells.h5ad -o cells.emb.h5ad --model cellvq-mini
  cfm embed batch1.h5ad batch2.zarr -o all.zarr --model cellvq-mini --log run.jsonl
  cfm embed contrasts.h5ad -o embedding.csv
  cfm embed cells.h5ad -o cells.with.h5ad --model hf://org/name --keep-input
  srun cfm embed big.zarr -o big.emb.zarr --devices 4 --num-nodes 2""",
    ),
    "predict-virus": (
        "tell the kind of response, and the virus where studies support it",
        "Tell the kind of response of contrasts (log2 fold changes), the public contrasts that are "
        "most like it, and the virus where studies support a name. With --groupby and --control "
        "contrasts are made of counts of samples. Research use only; not a diagnostic.",
        """\
  cfm predict-virus contrasts.h5ad -o calls.csv
  cfm predict-virus counts.h5ad -o calls.h5ad --groupby virus --control none --by study time
  cfm predict-virus cells.h5ad -o calls.csv --groupby virus --control none --sample-key donor""",
    ),
    "impute": (
        "fill in missing expression",
        "Fill in missing values (NaN or -10) of log TPM with a BulkFormer; what was observed stays "
        "as it is. OUT gets the layer 'imputed'.",
        """\
  cfm impute samples.h5ad -o filled.h5ad --model path/to/bulkformer
  cfm impute samples.zarr -o filled.zarr --model path/to/bulkformer --layer log_tpm""",
    ),
    "cell-codes": (
        "give each cell a code of a fixed set",
        "Give each cell a code of a fixed set, and say what the cells of a code have in common.",
        """\
  cfm cell-codes cells.h5ad -o codes.h5ad --groupby cell_type donor
  cfm cell-codes query.h5ad -o query.codes.h5ad --reference codes.h5ad
  cfm cell-codes cells.zarr -o codes.csv --units log1p_cp10k --total-counts n_counts""",
    ),
    "embed-donors": (
        "embed donors by their cells",
        "Embed donors, each by its cells, which need a representation in obsm (cfm embed --model "
        "... --keep-input makes one). OUT has a row per donor.",
        """\
  cfm embed-donors cells.h5ad -o donors.h5ad --donor-key donor_id
  cfm embed-donors cells.zarr -o donors.csv --model path/to/pulsar --use-rep X_uce --n-draws 10""",
    ),
}


def _embed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="cellpulse-mini",
        help="name, folder or hf://org/name (default: cellpulse-mini)",
    )
    add_reading(parser)
    parser.add_argument(
        "--units", choices=["counts", "log1p_cp10k"], help="of the values, for CellVQ"
    )
    parser.add_argument(
        "--total-counts", metavar="COLUMN", help="counts of a cell, for --units log1p_cp10k"
    )
    parser.add_argument(
        "--pooling", choices=["mean", "max", "median"], help="of gene embeddings, for BulkFormer"
    )
    add_precision(parser)


def _predict_virus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="cellpulse-virus",
        help="a CellPulse with a classifier (default: cellpulse-virus)",
    )
    add_reading(parser)
    parser.add_argument(
        "--names",
        choices=["supported", "always"],
        help="name a virus where studies left out of training support it (default), or always",
    )
    parser.add_argument(
        "--n-matches", type=int, help="similar public contrasts to list for each (default: 5)"
    )
    counts = parser.add_argument_group("for counts")
    counts.add_argument("--groupby", metavar="COLUMN", help="tells cases from controls")
    counts.add_argument("--control", metavar="LEVEL", help="its control level")
    counts.add_argument(
        "--by",
        nargs="+",
        metavar="COLUMN",
        help="compare only samples that agree in these columns, such as study, tissue, time",
    )
    counts.add_argument(
        "--mode",
        choices=["replicates", "test"],
        help="shrunken difference of means, or PyDESeq2 (default: replicates)",
    )
    counts.add_argument(
        "--sample-key", metavar="COLUMN", help="of single cells: their sample; counts are summed"
    )
    counts.add_argument("--min-cells", type=int, help="least cells of a sample (default: 10)")
    counts.add_argument("--prior-count", type=float, help="shrinks low counts (default: 2)")


def _impute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a BulkFormer: name, folder or hf://")
    add_reading(parser)
    parser.add_argument("--mask", metavar="LAYER", help="entries to hide and predict as well")
    parser.add_argument(
        "--absent-genes",
        action="store_true",
        default=None,
        help="also predict the model's genes that IN does not have",
    )


def _cell_codes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="cellvq-mini", help="a model with codes (default: cellvq-mini)"
    )
    add_reading(parser)
    parser.add_argument(
        "--units", choices=["counts", "log1p_cp10k"], help="of the values (default: counts)"
    )
    parser.add_argument(
        "--total-counts", metavar="COLUMN", help="counts of a cell, for --units log1p_cp10k"
    )
    parser.add_argument(
        "--groupby", nargs="+", metavar="COLUMN", help="annotations to describe codes by"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="cells with codes of the same model, to look codes up in",
    )
    parser.add_argument("--n-groups", type=int, help="merge codes into so many groups")
    parser.add_argument("--n-markers", type=int, help="marker genes of a code (default: 10)")
    parser.add_argument("--min-cells", type=int, help="for markers (default: 10)")
    parser.add_argument("--n-neighbors", type=int, help="neighbouring codes (default: 5)")


def _embed_donors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="pulsar-mini",
        help="a Pulsar: name, folder or hf:// (default: pulsar-mini)",
    )
    parser.add_argument(
        "--donor-key",
        default="donor_id",
        metavar="COLUMN",
        help="column with the donor (default: donor_id)",
    )
    parser.add_argument(
        "--use-rep",
        metavar="NAME",
        help="obsm of the cells, for a model that reads one (default: that of the model)",
    )
    parser.add_argument(
        "--n-cells",
        type=number_or_all,
        metavar="N",
        default=1024,
        help="cells to draw of a donor, or all (default: 1024)",
    )
    parser.add_argument("--n-draws", type=int, help="draws to average over (default: 1)")
    parser.add_argument("--seed", type=int, help="of the draws (default: 0)")
    add_reading(parser)
    add_precision(parser)


_PARSERS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "embed": _embed,
    "predict-virus": _predict_virus,
    "impute": _impute,
    "cell-codes": _cell_codes,
    "embed-donors": _embed_donors,
}


def tool_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what is passed to the tool: the options that were given."""
    found = {name: getattr(arguments, name) for name in TOOLS[arguments.command].arguments}
    given = {name: value for name, value in found.items() if value is not None}
    if "n_cells" in found:  # None means all
        given["n_cells"] = found["n_cells"]
    return given


def _run(arguments: argparse.Namespace, log: RunLog) -> int | None:
    return run_tool(arguments, TOOLS[arguments.command], tool_arguments(arguments), log)
