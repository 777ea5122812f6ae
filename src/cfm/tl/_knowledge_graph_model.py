"""The model behind :func:`cfm.tl.knowledge_graph`, ours or not."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from cfm.models import AttentionModel, PretrainedModel, load_model
from cfm.tl._store import run_record

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.data._counts import Units


def attention_model(model: Any, device: str | None) -> AttentionModel | None:
    """Return a model with attention for what a user passes as ``model=``.

    Raises
    ------
    TypeError
        If it has none.
    """
    if model is None:
        return None
    if not isinstance(model, AttentionModel) or isinstance(model, PretrainedModel):
        model = load_model(model, device=device)
    if not isinstance(model, AttentionModel):
        raise TypeError(
            f"{type(model).__name__} has no attention (no get_attention method); use a model that "
            "has, such as cfm.models.CellVQ, or model=None for a graph without one."
        )
    return model


def attention_options(
    model: AttentionModel, layer: str | None, units: Units, total_counts: str | None
) -> dict[str, Any]:
    """Return the arguments of the model's ``get_attention``.

    Raises
    ------
    TypeError
        If it does not take the units or totals that were given.
    """
    taken = inspect.signature(model.get_attention).parameters
    options: dict[str, Any] = {"layer": layer}
    wanted = {"units": units if units != "counts" else None, "total_counts": total_counts}
    for name, value in wanted.items():
        if value is None:
            continue
        if name not in taken:
            raise TypeError(
                f"{type(model).__name__}.get_attention takes no {name}=, but {name}={value!r} was "
                "given; give it the values that it reads by default."
            )
        options[name] = value
    if "reduce" in taken:  # such a model averages its maps as it goes, and holds few
        options["reduce"] = "mean"
    return options


def graph_record(
    model: AttentionModel | None, adata: AnnData, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return what made a graph."""
    if isinstance(model, PretrainedModel):
        return run_record(model, adata, **arguments)
    record = {name: value for name, value in arguments.items() if value is not None}
    return record | {"model": "none" if model is None else type(model).__name__}
