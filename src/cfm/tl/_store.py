"""Shared by the tools: texts of their docstrings, and the record of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cfm._fields import params_of

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.models import PretrainedModel

#: Texts of the docstrings of the tools, for :func:`cfm._docs.fill_docs`.
TEXTS = {
    "paths": """
Or one or more paths of ``.h5ad`` and ``.zarr`` files, opened with
:func:`cfm.data.open_files`.""",
    "load": """
Or the name of a checkpoint, a folder, or ``hf://org/name``; see
:func:`cfm.models.load_model`.""",
    "layer": """
layer
    Layer to read instead of ``X``.""",
    "key_added": """
key_added
    Name of the result.""",
    "device": """
device
    Device of the model: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …""",
    "output": """
output
    File for the results, ``.zarr`` or ``.h5ad``, written chunk by chunk; ``adata`` stays
    unchanged. The same call continues a stopped run.""",
    "overwrite": """
overwrite
    Replace ``output`` if it exists, and the finished chunks of another call.""",
    "copy": """
copy
    Return a changed copy; ``adata`` stays unchanged.""",
    "returns": """
``None``, or with ``copy=True`` the changed copy. Given paths, an AnnData with the results in
memory, and with its matrices in the files. With ``output``, the AnnData in that file: the
results and ``obs``, ``var`` and ``uns`` of the input, without ``X``.""",
    "output_errors": """
FileExistsError
    If ``output`` exists.
OSError
    If the disk is full. Finished chunks are kept; the same call continues with the next one.""",
    "few_genes": """
UserWarning
    If few of the model's genes are found, or a field of another tool is replaced.""",
}


def refuse_other_model(adata: AnnData, key: str, model: PretrainedModel) -> None:
    """Refuse to replace the result of another model under the default name.

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
    """Return the record of a run: arguments, model, checksum, device and vocabulary share."""
    return model_record(model, model.vocabulary_share(adata), **arguments)


def model_record(model: PretrainedModel, share: float, **arguments: Any) -> dict[str, Any]:
    """Return the record of a run with a given vocabulary share.

    ``precision`` is that of the computation.
    """
    record = {k: v for k, v in arguments.items() if v is not None}
    used = model.inference_dtype(record.get("precision", "auto"))
    record["precision"] = str(used).removeprefix("torch.")
    record |= {"device": str(model.device), "vocabulary_share": float(share)}
    return record | model.weights_record()
