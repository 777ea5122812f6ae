"""Any model by name."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from cfm.hub import load_checkpoint, resolve
from cfm.hub._checkpoint import read_config
from cfm.hub._resolve import reads_checkpoint
from cfm.models._base import CLASSES, PretrainedModel
from cfm.models._published import published_model

if TYPE_CHECKING:
    from pathlib import Path

#: Where the models are, by the name that checkpoints carry.
_PLACES = {
    "BulkFormer": "bulkformer",
    "CellPulse": "cellpulse",
    "CellVQ": "cellvq",
    "LingshuCell": "lingshu",
    "PerturbationCountModel": "count_model",
    "Pulsar": "pulsar",
    "UCE": "uce",
    "VirtualInstrument": "pulsar",
}


def model_class(name: str) -> type[PretrainedModel]:
    """Return the class of a model by its name; its system is imported with it.

    Raises
    ------
    KeyError
        If neither this package, nor an installed or imported one, has it.
    """
    if name not in _PLACES:
        for point in entry_points(group="cfm.models", name=name):
            point.load()
        return CLASSES[name]
    found: type[PretrainedModel] = getattr(import_module(f"cfm.models.{_PLACES[name]}"), name)
    return found


@reads_checkpoint
def load_model(
    source: str | Path | PretrainedModel, *, device: str | None = None
) -> PretrainedModel:
    """Return a model for what a user passes as ``model=``.

    Parameters
    ----------
    source
        A model, the name of a bundled or registered checkpoint, a local folder (also one with
        weights as the authors of a model publish them), or ``hf://org/name``.
    device
        Where it is to run; ``None`` leaves a model object where it is and is ``"auto"`` otherwise.

    Returns
    -------
    The model, ready for use.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If the checkpoint is damaged or of a model that this version does not know.

    Examples
    --------
    >>> import cfm
    >>> type(cfm.models.load_model("bulkformer-mini")).__name__
    'BulkFormer'
    """
    if isinstance(source, PretrainedModel):
        if device is not None:
            source.to_device(device)
        return source
    if not isinstance(source, str) and not hasattr(source, "__fspath__"):
        raise TypeError(
            f"model= is a {type(source).__name__}; expected a cfm model, the name of a checkpoint, "
            "a folder or hf://org/name."
        )
    path = resolve(source)
    name = _named_in(path)
    if name is None:
        name = published_model(path)
    if name is None:
        name = read_config(path)["model"] if path.is_dir() else load_checkpoint(source).model
    try:
        model = model_class(name)
    except KeyError as error:
        raise ValueError(
            f"Checkpoint {str(source)!r} holds a {name or 'nameless'} model; this version of cfm "
            f"knows {sorted(_PLACES)}. Update cfm-tools, import the package that has the model, or "
            "choose another checkpoint."
        ) from error
    return model.from_pretrained(source, device=device or "auto")


def _named_in(path: Path) -> str | None:
    """Return the name of the model in a checkpoint of this package, ``None`` for other files."""
    try:
        return str(read_config(path)["model"]) if path.is_dir() else None
    except (ValueError, OSError):
        return None  # weights of other projects, or damaged: raised again where none recognises it
