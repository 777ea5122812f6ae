"""Which model a checkpoint or a published file belongs to, and any model by name."""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple, cast

import pandas as pd

from cfm.hub import load_checkpoint, resolve
from cfm.hub._checkpoint import (
    FORMAT,
    LARGEST_JSON,
    WEIGHTS_NAME,
    find_file,
    read_config,
    read_limited,
)
from cfm.hub._resolve import CONFIG_NAME, reads_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cfm.models._base import PretrainedModel


class Layout(NamedTuple):
    """Names of the files in which the weights of a system are published.

    Attributes
    ----------
    file
        Pattern of the name of the file of weights; ``""`` if a file alone is not enough.
    in_folder
        Pattern of the name of that file in a folder.
    model_type
        ``model_type`` in the ``config.json`` beside ``model.safetensors``.
    """

    file: str = ""
    in_folder: str = ""
    model_type: str = ""


#: By the name of the model; the first that fits.
PUBLISHED = {
    "VirtualInstrument": Layout(file=r".*instrument.*\.(pt|pth|ckpt|safetensors)"),
    "BulkFormer": Layout(
        file=r"bulkformer.*\.pt", in_folder=r"(bulkformer|G_tcga).*\.pt|gene_vocab\.csv"
    ),
    "CellVQ": Layout(file=r".*\.ckpt", in_folder=r"models\.ckpt"),
    "UCE": Layout(
        file=r"(?!all_tokens\.torch$).*\.torch", in_folder=r"(?!all_tokens\.torch$).*\.torch"
    ),
    "Pulsar": Layout(model_type="PULSAR"),
}
#: Layouts of models of other packages, by name; they come first.
FROM_OUTSIDE: dict[str, Layout] = {}
#: All model classes that are imported, by name.
CLASSES: dict[str, type[PretrainedModel]] = {}
#: Folder of each model of this package, by the name in its checkpoints.
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


def published_model(path: Path) -> str | None:
    """Return the name of the model whose authors publish such a folder or file, or ``None``."""
    names, model_type = [path.name], ""
    if path.is_dir():
        names = [found.name for found in path.iterdir() if found.is_file()]
        if WEIGHTS_NAME in names:
            names, model_type = [], _model_type(path)
    elif not path.is_file():
        return None
    for model, layout in (FROM_OUTSIDE | PUBLISHED).items():
        pattern = layout.file if path.is_file() else layout.in_folder
        if any(re.fullmatch(pattern, name, re.IGNORECASE) for name in names if pattern):
            return model
        if model_type and model_type == layout.model_type:
            return model
    return None


def _model_type(folder: Path) -> str:
    """Return ``model_type`` of the ``config.json`` of another project, ``""`` without one."""
    try:
        config = json.loads(read_limited(folder / CONFIG_NAME, LARGEST_JSON).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""  # load_checkpoint raises the error
    if not isinstance(config, dict) or config.get("format") == FORMAT:
        return ""
    return str(config.get("model_type", "")).upper()


def weights_file(path: Path, model: str, patterns: Sequence[str] = ()) -> Path:
    """Return the file of weights that the authors of a model publish: ``path``, or the one in it.

    Parameters
    ----------
    path
        The file, or its folder.
    model
        Name of the model.
    patterns
        Patterns of the name in a folder, the first that fits; by default that of the layout.

    Raises
    ------
    ValueError
        If there is none, or more than one, or it is a link out of the folder.
    """
    found = [path]
    if not path.is_file():
        files = sorted(p for p in path.iterdir() if p.is_file())
        for pattern in patterns or [PUBLISHED[model].in_folder]:
            found = [p for p in files if re.fullmatch(pattern, p.name, re.IGNORECASE)]
            if found:
                break
    if len(found) != 1:
        raise ValueError(
            f"{path} holds {len(found)} files of weights {[p.name for p in found]}; expected one: "
            "pass the path of the file, or keep each size in a folder of its own."
        )
    return find_file(found[0].parent, found[0].name)


def read_gene_list(path: Path, column: str, n_genes: int, sep: str = ",") -> list[str]:
    """Return the genes of published weights, in order, from a column of a text table.

    Raises
    ------
    ValueError
        If the file is no such table, or does not list ``n_genes`` different genes.
    """
    find_file(path.parent, path.name)
    try:
        table = pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False)
    except ValueError as error:  # also errors of the parser
        kind = "comma" if sep == "," else "tab"
        raise ValueError(f"{path} is no table of {kind}-separated values ({error}).") from error
    if column not in table:
        raise ValueError(
            f"{path} has the columns {table.columns.tolist()}; expected {column!r}, a gene a row."
        )
    genes: list[str] = table[column].str.strip().tolist()
    if len(genes) != n_genes or len(set(genes)) != n_genes or "" in genes:
        raise ValueError(
            f"{path} lists {len(genes)} genes, {len(set(genes))} of them different; the weights "
            f"have {n_genes}: the two belong to different releases."
        )
    return genes


def model_class(name: str) -> type[PretrainedModel]:
    """Return the class of a model by its name; its system is imported with it.

    Raises
    ------
    KeyError
        If neither this package nor an installed or imported one has the class.
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
        Device of the model; ``None`` leaves a model object where it is and is ``"auto"`` otherwise.

    Returns
    -------
    The model, ready for use.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If the checkpoint is damaged or of a model that this version does not have.

    Examples
    --------
    >>> import cfm
    >>> type(cfm.models.load_model("bulkformer-mini")).__name__
    'BulkFormer'
    """
    if isinstance(source, tuple(CLASSES.values())):
        source = cast("PretrainedModel", source)
        if device is not None:
            source.to_device(device)
        return source
    if not isinstance(source, str) and not hasattr(source, "__fspath__"):
        raise TypeError(
            f"model= is a {type(source).__name__}; expected a cfm model, the name of a checkpoint, "
            "a folder or hf://org/name."
        )
    path = resolve(source)
    name = _named_in(path) or published_model(path)
    if name is None:
        name = read_config(path)["model"] if path.is_dir() else load_checkpoint(source).model
    try:
        model = model_class(name)
    except KeyError as error:
        raise ValueError(
            f"Checkpoint {str(source)!r} holds a {name or 'nameless'} model; this version of cfm "
            f"has {sorted(_PLACES)}. Update cfm-tools, import the package that has the model, or "
            "choose another checkpoint."
        ) from error
    return model.from_pretrained(source, device=device or "auto")


def _named_in(path: Path) -> str | None:
    """Return the name of the model in a checkpoint of this package, ``None`` for other files."""
    try:
        return str(read_config(path)["model"]) if path.is_dir() else None
    except (ValueError, OSError):
        return None  # of another project, or damaged: read again, and refused, by load_model
