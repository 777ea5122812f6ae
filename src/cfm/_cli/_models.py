"""``cfm models``: which checkpoints work offline."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfm._cli._log import RunLog


def add_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command."""
    models = commands.add_parser(
        "models",
        parents=[common],
        help="list the checkpoints that work offline",
        description="List bundled and registered checkpoints.",
    )
    models.set_defaults(run=_models, kept="nothing was written")


def _models(arguments: argparse.Namespace, log: RunLog) -> int:
    from cfm import hub

    table = hub.list_checkpoints()
    if table.empty:
        sys.stdout.write("no checkpoints are bundled or registered\n")
    for name, row in table.iterrows():
        sys.stdout.write(
            f"{name}  {row['model']}, {row['n_parameters'] / 1e6:.1f} M parameters, "
            f"{row['size_mb']:.1f} MB, {row['origin']}\n    {row['description']}\n"
            f"    sha256 {row['sha256']}\n"
        )
    return len(table)
