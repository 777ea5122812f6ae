"""Where results are written, under which names, and when what they replace is warned of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from anndata import AnnData

from cfm.data._warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

#: ``cfm._fields.PARAMS``, which stands on this floor as well.
_PARAMS = "params"


def target(adata: AnnData, *, copy: bool) -> AnnData:
    """Return the AnnData to write to: a copy in memory with ``copy=True``."""
    if not copy:
        return adata
    return adata.to_memory() if adata.isbacked else adata.copy()


def keep_genes(adata: AnnData, columns: np.ndarray) -> None:
    """Keep some genes, by their number, in place; a view becomes an AnnData of its own."""
    AnnData.__init__(adata, adata[:, columns].copy())


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


def warn_overwritten(
    adata: AnnData,
    key: str,
    fields: Mapping[str, Sequence[str]],
    remedy: str = "pass another key_added= to keep it",
) -> None:
    """Warn if fields that this tool did not write are about to be replaced.

    Parameters
    ----------
    adata
        Where they would be written.
    key
        ``uns[key]`` holds the tool's record if it wrote them.
    fields
        Names by slot: ``{"obs": [...], "obsm": [...]}``.
    remedy
        What to do about it.
    """
    record = adata.uns.get(key)
    taken = [
        f"{slot}[{name!r}]"
        for slot, names in fields.items()
        for name in names
        if name in getattr(adata, slot)
    ]
    # A record without any of the fields is another tool's, such as uns["contrasts"].
    if taken and isinstance(record, Mapping) and _PARAMS in record:
        return
    if record is not None:
        taken.append(f"uns[{key!r}]")
    if taken:
        warn_user(f"{', '.join(taken)} was not written by this tool and is replaced; {remedy}.")
