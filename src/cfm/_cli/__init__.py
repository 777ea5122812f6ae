"""The command ``cfm``: the tools on files."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cfm import __version__
from cfm._cli._ending import EXIT_STATUS, Ending, bars, leave
from cfm._cli._run import Tool, contrast_design, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

__all__ = ["app", "main"]

app = typer.Typer(
    name="cfm",
    help="Transcriptome foundation models for scverse.",
    epilog=EXIT_STATUS,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

#: Type and help of each option, and its flags if these are others than its name; what is not given
#: is ``None``, and the tool's default holds.
_OPTIONS: dict[str, tuple[Any, ...]] = {
    "model": (str, "name, folder or hf://org/name"),
    "groupby": (str, "column with cases and controls"),
    "control": (str, "its control level"),
    "by": (list[str], "compare only samples that agree in this column, as study; repeatable"),
    "mode": (Literal["replicates", "test"], "shrunken difference of means, or PyDESeq2"),
    "sample_key": (str, "of single cells: column with their sample; counts are summed"),
    "min_cells": (int, "fewest cells that count (10)"),
    "prior_count": (float, "shrinks low counts (2)"),
    "names": (Literal["supported", "always"], "name a virus where studies support it, or always"),
    "n_matches": (int, "similar public contrasts to list for each (5)"),
    "units": (str, "of the values: counts or log1p_cp10k"),
    "total_counts": (str, "column with counts of a cell, for --units log1p_cp10k"),
    "pooling": (
        Literal["auto", "factors", "mean", "max", "median"],
        "of gene embeddings, for BulkFormer",
    ),
    "precision": (Literal["auto", "float32", "bfloat16"], "of the computation"),
    "mask": (str, "layer with entries to hide and predict as well"),
    "absent_genes": (bool, "also predict the model's genes that IN lacks"),
    "describe_by": (list[str], "column to describe codes by; repeatable", "--groupby"),
    "reference": (Path, "cells with codes of the same model, to look codes up"),
    "n_groups": (int, "merge codes into so many groups"),
    "donor_key": (str, "column with the donor"),
    "use_rep": (str, "obsm of the cells, for a model that reads one"),
    "n_cells": (str, "cells to draw of a donor, or all"),
    "n_draws": (int, "draws to average over (1)"),
    "seed": (int, "of the draws (0)"),
    "library": (Path, "contrasts to search, .h5ad or .zarr, or lists in .gmt (public ones)"),
    "method": (str, "similarity (auto)"),
    "n": (int, "matches of each (10)"),
    "direction": (Literal["similar", "opposite"], "of the matches (similar)"),
    "study_key": (str, "column with the study, whose contrasts are left out of matches"),
    "exclude_studies": (list[str], "study to leave out; repeatable"),
    "gene_lengths": (str, "column of var, in base pairs (a table of genes)"),
    "missing_length": (Literal["one_kb", "error"], "genes without length: 1,000 bp, or refuse"),
    "counts": (Path, "raw counts: .h5ad, .zarr, .h5mu or a table (bundled data)"),
    "organism": (Literal["auto", "human", "mouse"], "of the gene names"),
    "embedding_model": (str, "model of the embedding"),
    "value_units": (Literal["counts", "log"], "log: log2 expression already", "--units"),
    "folder": (Path, "where files go", "--output", "-o"),
    "output": (Path, "OUT: .h5ad, .zarr, .csv or .tsv (a table on stdout)", "--output", "-o"),
    "metadata": (Path, "table with a line per sample, first column its name"),
    "sample_column": (str, "column of the metadata with the sample names"),
    "orientation": (Literal["genes-in-rows", "samples-in-rows"], "of a table (found by names)"),
    "modality": (str, "modality to read of an .h5mu"),
    "layer": (str, "layer to read instead of X"),
    "key_added": (str, "name of the result"),
    "batch_size": (int, "rows that the model takes at a time"),
    "device": (str, "auto (a GPU if there is one), cpu, cuda"),
    "chunk_size": (int, "rows that are read and written at a time"),
    "scheduler": (str, "address of a Dask scheduler, whose workers share the rows"),
    "overwrite": (bool, "replace OUT if it exists"),
    "skip_existing": (bool, "do nothing, successfully, if OUT exists"),
    "keep_input": (bool, "make OUT a copy of IN, of the same kind, with the results in it"),
    "log": (Path, "append a log in JSON lines to this file"),
    "quiet": (bool, "no messages on progress"),
    "debug": (bool, "show the traceback of an error"),
}
#: Tools that are commands, with their own options.
_TOOLS: dict[str, tuple[Tool, list[str]]] = {}
_READING = "metadata sample_column orientation modality"
_FILES = f"output {_READING} layer key_added overwrite skip_existing keep_input log quiet debug"
_MODEL = f"device chunk_size scheduler {_FILES}"
_CONTRASTS = "groupby control by mode sample_key"
_INPUTS = typer.Argument(
    metavar="IN...", help=".h5ad or .zarr, one or several; or one table (.csv, .tsv) or .h5mu"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; ``None`` reads those of the process.

    Returns
    -------
    The exit status: 0, 2 when the input or the command was refused (the reason is on stderr), 75
    when the same command may work later (disk full, no memory, no network), 130 after Ctrl-C, or
    143 after SIGTERM.
    """
    status = 0
    try:
        app(None if argv is None else list(argv), prog_name="cfm")
    except SystemExit as end:
        status = int(end.code or 0)
    if argv is None:
        leave(status)
    return status


def _add(
    name: str,
    options: str,
    run: Callable[[SimpleNamespace], int | None],
    text: str,
    **defaults: Any,
) -> None:
    """Add a command.

    Parameters
    ----------
    name
        Of the command.
    options
        Names in ``_OPTIONS``.
    run
        Takes the options, and returns rows.
    text
        What it does, and after ``--`` examples.
    defaults
        Of options; ``...`` for one that has to be given.
    """
    annotations: dict[str, Any] = {}
    if "output" in options.split():
        annotations["inputs"] = Annotated[list[Path], _INPUTS]
        defaults["inputs"] = ...
    for option in options.split():
        kind, shown, *flags = _OPTIONS[option]
        defaults.setdefault(option, False if kind is bool else None)
        flags = flags or [f"--{option.replace('_', '-')}"]
        kind = kind | None if defaults[option] is None else kind
        annotations[option] = Annotated[kind, typer.Option(*flags, help=shown)]
    parameters = [
        inspect.Parameter(
            option,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotation,
            default=inspect.Parameter.empty if defaults[option] is ... else defaults[option],
        )
        for option, annotation in annotations.items()
    ]

    def command(**values: Any) -> None:
        # typer has an empty list where an option that may be repeated was not given
        given = SimpleNamespace(
            command=name, **{n: None if v == [] else v for n, v in values.items()}
        )
        with Ending(given) as ending:
            ending.rows = run(given)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    what, _, examples = text.partition("\n--\n")
    shown = f"\b\nexamples:\n{examples}\n\n" if examples else ""
    app.command(name, help=what, epilog=shown + EXIT_STATUS)(command)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"cfm {__version__}\n")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="and exit")
    ] = False,
) -> None:
    pass


def _add_tool(name: str, tool: Tool, options: str, text: str, **defaults: Any) -> None:
    shared = _MODEL if tool.streams else _FILES
    own = options.split()
    _TOOLS[name] = tool, own
    _add(
        name,
        f"{options} {shared}",
        lambda given: run_tool(given, own, tool),
        text,
        **({"device": "auto"} if tool.streams else {}),
        **defaults,
    )


def _n_cells(data: Any, given: SimpleNamespace) -> dict[str, Any]:
    if given.n_cells != "all" and not given.n_cells.isdecimal():
        raise ValueError(f"--n-cells is {given.n_cells!r}; expected a number, or all.")
    return {"n_cells": None if given.n_cells == "all" else int(given.n_cells)}


def _codes(data: Any, given: SimpleNamespace) -> dict[str, Any]:
    from cfm.data import open_files

    changed: dict[str, Any] = {"groupby": given.describe_by or None, "describe_by": None}
    if given.reference is not None:
        changed["reference"] = open_files(given.reference)
    return changed


def _library(data: Any, given: SimpleNamespace) -> dict[str, Any]:
    from cfm.data import open_files

    is_store = given.library is not None and given.library.suffix in (".h5ad", ".zarr")
    return {"library": open_files(given.library)} if is_store else {}


def _summary(results: AnnData, key: str | None) -> Any:
    from cfm._report import calls_table

    return calls_table(results, key or "predicted_virus")


_add_tool(
    "calls",
    Tool("cfm.tl", "predict_virus", contrast_design, summary=_summary),
    f"model {_CONTRASTS} min_cells prior_count names n_matches",
    """\
Tell the kind of response, and the virus where studies support it.

IN has contrasts (log2 fold changes), or counts of samples, of which --groupby and --control make
contrasts. With --metadata the column and the level may be left out where one column only has a
level such as "mock" or "control". The answers are the kind of response, the public contrasts that
are most like it, and a virus where studies support a name. Research use only; not a diagnostic.
--
  cfm calls counts.csv --metadata samples.csv
  cfm calls contrasts.h5ad -o calls.csv
  cfm calls counts.h5ad -o calls.h5ad --groupby virus --control none --by study
  cfm calls cells.h5ad -o calls.csv --groupby virus --control none --sample-key donor""",
    model="cellpulse-virus",
)
_add_tool(
    "embed",
    Tool("cfm.tl", "embed"),
    "model units total_counts pooling precision batch_size",
    """\
Embed cells, samples or contrasts with a model.

OUT gets the embedding as obsm (X_<model>), and obs, var and uns of the input.
--
  cfm embed cells.h5ad -o cells.emb.h5ad --model cellvq-mini
  cfm embed batch1.h5ad batch2.zarr -o all.zarr --model cellvq-mini --log run.jsonl
  cfm embed contrasts.h5ad -o embedding.csv
  cfm embed cells.h5ad -o cells.with.h5ad --model hf://org/name --keep-input
  cfm embed big.zarr -o big.emb.zarr --scheduler tcp://host:8786""",
    model="cellpulse-mini",
)
_add_tool(
    "codes",
    Tool("cfm.tl", "cell_codes", _codes),
    "model units total_counts describe_by reference n_groups min_cells batch_size",
    """\
Give each cell a code of a fixed set, with what the cells of a code have in common.
--
  cfm codes cells.h5ad -o codes.h5ad --groupby cell_type --groupby donor
  cfm codes query.h5ad -o query.codes.h5ad --reference codes.h5ad
  cfm codes cells.zarr -o codes.csv --units log1p_cp10k --total-counts n_counts""",
    model="cellvq-mini",
)
_add_tool(
    "impute",
    Tool("cfm.tl", "impute"),
    "model mask absent_genes batch_size",
    """\
Fill in missing expression.

Fill in missing values (NaN or -10) of log TPM with a BulkFormer; what was observed stays as it is.
OUT gets the layer "imputed".
--
  cfm impute samples.h5ad -o filled.h5ad --model bulkformer-mini
  cfm impute samples.zarr -o filled.zarr --model path/to/bulkformer --layer log_tpm""",
    model=...,
)
_add_tool(
    "donors",
    Tool("cfm.tl", "embed_donors", _n_cells, keeps_rows=False),
    "model donor_key use_rep n_cells n_draws seed precision batch_size",
    """\
Embed donors by their cells.

Cells have counts, or a representation in obsm (cfm embed --keep-input makes one). OUT has a row
per donor.
--
  cfm donors cells.h5ad -o donors.h5ad --donor-key donor_id
  cfm donors cells.zarr -o donors.csv --model path/to/pulsar --use-rep X_uce --n-draws 10""",
    model="pulsar-mini",
    donor_key="donor_id",
    n_cells="1024",
)
_add_tool(
    "search",
    Tool(
        "cfm.tl", "search_signatures", _library, streams=False,
        table=lambda results, key: results.uns[key or "signature_search"]["results"],
    ),
    "library method n direction study_key exclude_studies",
    """\
Find the contrasts of a library that are most like each contrast.

A table is of the matches; .h5ad and .zarr have it in uns.
--
  cfm search contrasts.h5ad -o matches.csv
  cfm search contrasts.csv --library my_contrasts.h5ad --n 20""",
)  # fmt: skip
_add_tool(
    "tpm",
    Tool("cfm.pp", "tpm", streams=False),
    "gene_lengths missing_length",
    """\
Turn counts into log transcripts per million, the input of BulkFormer.

OUT gets the layer "log_tpm".
--
  cfm tpm counts.csv -o log_tpm.csv
  cfm tpm counts.h5ad -o with_tpm.h5ad --keep-input""",
)


def _models(given: SimpleNamespace) -> int:
    from cfm import hub

    table = hub.list_checkpoints()
    for name, row in table.iterrows():
        sys.stdout.write(
            f"{name}  {row['model']}, {row['n_parameters'] / 1e6:.1f} M parameters, "
            f"{row['size_mb']:.1f} MB, {row['origin']}\n    {row['description']}\n"
            f"    sha256 {row['sha256']}\n"
        )
    return len(table)


def _demo(given: SimpleNamespace) -> int:
    os.environ.setdefault("MPLBACKEND", "agg")  # figures go to files; no window may open
    from cfm import datasets, hub
    from cfm._cli._files import read_inputs, sha256_of
    from cfm._report import calls_table, run_demo, writable
    from cfm.data import open_files

    folder = writable(given.folder)
    for model in (given.model, given.embedding_model):
        hub.resolve(model)  # a misspelt name is noticed before the work, not after it

    def read() -> AnnData:
        if given.counts is None:
            return datasets.blanco_melo()
        data = read_inputs(given, [given.counts])
        return open_files(data).to_memory() if isinstance(data, list) else data

    source = {"name": "GSE147507, bundled (cfm.datasets.blanco_melo)", "sha256": ""}
    if given.counts is not None:
        if not given.counts.exists():
            raise FileNotFoundError(f"{given.counts} does not exist (seen from {Path.cwd()}).")
        source = {"name": given.counts.name, "sha256": sha256_of(given.counts)}
    own = f"{_CONTRASTS} organism model embedding_model".split()
    options = {name: getattr(given, name) for name in own}
    if given.counts is None and not given.by:
        options["by"] = ["series"]
    with bars(not given.quiet):
        contrasts = run_demo(read, folder, source=source, units=given.value_units, **options)
    calls = calls_table(contrasts, "predicted_virus")
    sys.stdout.write(f"{calls.drop(columns='similar_to').round(2).to_string(index=False)}\n")
    sys.stdout.write(f"report: {folder / 'report.html'}\n")
    return len(calls)


_add("models", "quiet debug", _models, "List the checkpoints that work offline.")
_add(
    "demo",
    f"counts {_CONTRASTS} value_units organism model embedding_model folder {_READING} "
    "log quiet debug",
    _demo,
    """\
Make a report of a count table: responses, viruses, host factors, programs, drugs.

Makes one profile per contrast and writes report.html, calls.csv, matches.csv, contrasts.h5ad and
figures; files of these names in the folder are replaced. Without --counts it runs on bundled data,
within its series.
--
  cfm demo --output demo
  cfm demo --counts counts.csv --metadata samples.csv --by study --output report""",
    groupby="virus",
    control="none",
    mode="replicates",
    value_units="counts",
    organism="auto",
    model="cellpulse-virus",
    embedding_model="cellpulse-mini",
    folder=Path("demo"),
)
