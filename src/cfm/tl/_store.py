"""What every tool does with its input and records of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cfm._fields import PARAMS
from cfm.data._warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from cfm.models import PretrainedModel


def target(adata: AnnData, *, copy: bool) -> AnnData:
    """Return the AnnData to write to: a copy in memory if asked for."""
    if not copy:
        return adata
    return adata.to_memory() if adata.isbacked else adata.copy()


def check_key(key_added: str) -> None:
    """Check that a name can be stored in h5ad and zarr files, before anything is computed.

    Raises
    ------
    TypeError, ValueError
        If it is no text, empty, or holds a ``/``.
    """
    if not isinstance(key_added, str):
        raise TypeError(f"key_added is a {type(key_added).__name__}; expected text.")
    if not key_added or "/" in key_added:
        raise ValueError(
            f"key_added={key_added!r} cannot be stored in a file; use a name without '/'."
        )


def warn_overwritten(adata: AnnData, key: str, fields: Mapping[str, Sequence[str]]) -> None:
    """Warn if fields that this tool did not write are about to be replaced.

    Parameters
    ----------
    adata
        Where they would be written.
    key
        ``uns[key]`` holds the tool's record if it wrote them.
    fields
        Names by slot: ``{"obs": [...], "obsm": [...]}``.
    """
    record = adata.uns.get(key)
    taken = [
        f"{slot}[{name!r}]"
        for slot, names in fields.items()
        for name in names
        if name in getattr(adata, slot)
    ]
    # A record without any of the fields is another tool's, such as uns["contrasts"].
    if taken and isinstance(record, Mapping) and PARAMS in record:
        return
    if record is not None:
        taken.append(f"uns[{key!r}]")
    if taken:
        warn_user(
            f"{', '.join(taken)} was not written by this tool and is replaced; pass another "
            "key_added= to keep it."
        )


def run_record(model: PretrainedModel, adata: AnnData, **arguments: Any) -> dict[str, Any]:
    """Return what made a result: the arguments, model, checksum, device and vocabulary share."""
    return model_record(model, model.vocabulary_share(adata), **arguments)


def model_record(model: PretrainedModel, share: float, **arguments: Any) -> dict[str, Any]:
    """Return what made a result, where the share of the vocabulary is known."""
    record = {k: v for k, v in arguments.items() if v is not None}
    return record | {
        "device": str(model.device),
        "model": model.checkpoint_name or type(model).__name__,
        "sha256": model.checkpoint_sha256,
        "vocabulary_share": float(share),
    }
