"""What tissue a checkpoint was made for, and a warning where data are of another."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cfm.data._warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

#: Words that a tissue of blood has in it.
BLOOD = ("blood", "pbmc")
_COLUMNS = ("tissue", "tissue_general", "tissue_type", "organ")
_EVERY_TISSUE = re.compile(r"all[-_ ]tissue|pan[-_ ]tissue", re.IGNORECASE)
_OF_BLOOD = re.compile(r"pbmc|peripheral blood", re.IGNORECASE)


def scope_of(name: str, card: str | None) -> list[str] | None:
    """Return words of the tissues that a published checkpoint is for; ``None`` for any.

    Parameters
    ----------
    name
        Of the checkpoint, which says more than its card: cards name sister checkpoints.
    card
        Its model card.
    """
    if _EVERY_TISSUE.search(name):
        return None
    if _OF_BLOOD.search(name) or _OF_BLOOD.search(card or ""):
        return list(BLOOD)
    return None


def warn_out_of_scope(adata: AnnData, scope: Sequence[str] | None) -> None:
    """Warn if ``obs`` names a tissue that the model was not made for."""
    if not scope:
        return
    for column in _COLUMNS:
        if column not in adata.obs:
            continue
        tissues = sorted(set(adata.obs[column].dropna().astype(str)))
        others = [t for t in tissues if not any(word in t.lower() for word in scope)]
        if column == "tissue_type":  # CELLxGENE: "tissue", "organoid", "cell culture"
            others = [t for t in others if t.lower() not in ("tissue", "")]
        if others:
            warn_user(
                f"The model was trained on {' and '.join(scope)} only, but adata.obs[{column!r}] "
                f"names {others[:3]}; embeddings of donors by other tissues have not been tested."
            )
            return
