"""What every tool does with its input and records of its run."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.models import PretrainedModel


def target(adata: AnnData, *, copy: bool) -> AnnData:
    """Return the AnnData to write to: a copy if asked for, or if it is a view."""
    if not copy:
        return adata
    return adata.to_memory() if adata.isbacked else adata.copy()


def warn_overwritten(adata: AnnData, key: str, *, of_tool: bool) -> None:
    """Warn that a field which this tool did not write is about to be replaced."""
    if not of_tool:
        warnings.warn(
            f"{key} exists and was not written by this tool; it is replaced. Pass key_added= to "
            "keep both.",
            UserWarning,
            stacklevel=4,
        )


def run_record(model: PretrainedModel, adata: AnnData, **arguments: Any) -> dict[str, Any]:
    """Return what made a result: the arguments, the model, its checksum and vocabulary share."""
    record = {k: v for k, v in arguments.items() if v is not None}
    return record | {
        "model": model.checkpoint_name or type(model).__name__,
        "sha256": model.checkpoint_sha256,
        "vocabulary_share": float(model.vocabulary_share(adata)),
    }
