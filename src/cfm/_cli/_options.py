"""Options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add ``IN``."""
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="IN",
        help=".h5ad or .zarr, one or several; read a part at a time, of any size",
    )


def add_output(parser: argparse.ArgumentParser, *, tables: bool, keeps_rows: bool) -> None:
    """Add where results go."""
    kinds = ".h5ad or .zarr" + ("; .csv or .tsv: a table of obs and embeddings" if tables else "")
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="OUT", help=f"results: {kinds}"
    )
    exists = parser.add_mutually_exclusive_group()
    exists.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    exists.add_argument(
        "--skip-existing", action="store_true", help="do nothing, successfully, if OUT exists"
    )
    if keeps_rows:
        parser.add_argument(
            "--keep-input",
            action="store_true",
            help="make OUT a copy of IN, a single file of the same kind, with the results in it",
        )
    else:
        parser.set_defaults(keep_input=False)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add what is read and how results are named."""
    parser.add_argument("--layer", help="layer to read instead of X")
    parser.add_argument("--key-added", metavar="NAME", help="name of the result")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add where the model runs."""
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="rows that the model takes at a time"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda (default: auto)"
    )


def add_sharing(parser: argparse.ArgumentParser, what: str, at_once: int) -> None:
    """Add how rows are shared."""
    parser.add_argument(
        "--chunk-size",
        type=int,
        metavar="N",
        help=f"{what} that are read and written at a time (default: {at_once})",
    )
    parser.add_argument(
        "--devices",
        type=number_or_text,
        metavar="N",
        help=f"devices, or processes on a CPU, that share the {what}",
    )
    parser.add_argument("--num-nodes", type=int, metavar="N", help="machines that share them")
    parser.add_argument("--strategy", help="of Lightning Fabric, such as ddp (default: auto)")


def add_log(parser: argparse.ArgumentParser) -> None:
    """Add the log."""
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="append a log in JSON lines to this file"
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the precision of the computation."""
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        help="of the computation (default: auto)",
    )


def number_or_text(text: str) -> int | str:
    """Read a number, or something else such as ``auto`` or ``0,2``."""
    return int(text) if text.isdecimal() else text


def number_or_all(text: str) -> int | None:
    """Read a number, or ``all`` as ``None``."""
    return None if text == "all" else int(text)
