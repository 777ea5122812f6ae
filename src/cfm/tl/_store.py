"""What every tool records of its run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.models import PretrainedModel


def run_record(model: PretrainedModel, adata: AnnData, **arguments: Any) -> dict[str, Any]:
    """Return what made a result: the arguments, model, checksum, device and vocabulary share."""
    return model_record(model, model.vocabulary_share(adata), **arguments)


def model_record(model: PretrainedModel, share: float, **arguments: Any) -> dict[str, Any]:
    """Return what made a result, where the share of the vocabulary is known."""
    record = {k: v for k, v in arguments.items() if v is not None}
    record |= {"device": str(model.device), "vocabulary_share": float(share)}
    return record | model.weights_record()
