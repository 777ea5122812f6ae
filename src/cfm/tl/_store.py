"""What every tool records of its run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cfm._fields import params_of

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.models import PretrainedModel


def refuse_other_model(adata: AnnData, key: str, model: PretrainedModel) -> None:
    """Refuse to replace the result of another model under a name that nobody chose.

    Raises
    ------
    ValueError
        If ``uns[key]`` records other weights.
    """
    former = params_of(adata.uns, key)
    if former.get("model") and former.get("sha256") != model.weights_record()["sha256"]:
        raise ValueError(
            f"{key!r} holds the result of another model ({former['model']}); name the new one by "
            f"key_added=, or replace that one with key_added={key!r}."
        )


def run_record(model: PretrainedModel, adata: AnnData, **arguments: Any) -> dict[str, Any]:
    """Return what made a result: the arguments, model, checksum, device and vocabulary share."""
    return model_record(model, model.vocabulary_share(adata), **arguments)


def model_record(model: PretrainedModel, share: float, **arguments: Any) -> dict[str, Any]:
    """Return what made a result, where the share of the vocabulary is known.

    ``precision`` is the one that was used.
    """
    record = {k: v for k, v in arguments.items() if v is not None}
    used = model.inference_dtype(record.get("precision", "auto"))
    record["precision"] = str(used).removeprefix("torch.")
    record |= {"device": str(model.device), "vocabulary_share": float(share)}
    return record | model.weights_record()
