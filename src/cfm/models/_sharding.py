"""Weights dealt out to the processes that train together, where one cannot hold them all."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.distributed.device_mesh import DeviceMesh


def shard(plan: nn.Module, steps: Sequence[str], mesh: DeviceMesh | None = None) -> None:
    """Give each process a part of every weight, layer by layer.

    Parameters
    ----------
    plan
        Holds the network.
    steps
        Methods of the plan that need whole weights, such as ``"training_step"``: they are put
        together while it runs, those of a layer while the layer does.
    mesh
        The processes; by default all.
    """
    for layer in _layers(plan):
        fully_shard(layer, mesh=mesh)
    fully_shard(plan, mesh=mesh)
    for step in steps:
        register_fsdp_forward_method(plan, step)


def is_sharded(plan: nn.Module) -> bool:
    """Whether weights are dealt out."""
    return isinstance(plan, FSDPModule)


@contextmanager
def whole_weights(plan: nn.Module) -> Iterator[None]:
    """Put all weights together for a while, to read them; all processes must."""
    parts = [m for m in plan.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def join(plan: nn.Module) -> None:
    """Give every process all weights again, for good; all processes must call this."""
    parts = [m for m in plan.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.reshard()
    for module in plan.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                whole = nn.Parameter(parameter.full_tensor(), parameter.requires_grad)
                module.register_parameter(name, whole)
    for part in parts:
        _undo(part)


def _layers(plan: nn.Module) -> list[nn.Module]:
    """Return the layers that follow each other, the innermost ones."""
    lists = [m for m in plan.modules() if isinstance(m, nn.ModuleList)]
    layers = [layer for layers in lists for layer in layers if any(True for _ in layer.children())]
    return [
        layer
        for layer in layers
        if not any(inner in layers for inner in layer.modules() if inner is not layer)
    ]


def _undo(module: Any) -> None:
    """Take from a module what :func:`torch.distributed.fsdp.fully_shard` put on it."""
    state = module._get_fsdp_state()
    for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
        handle.remove()
    for name in [n for n in vars(module) if n.startswith("__composable_api")]:
        delattr(module, name)
    kind = type(module)
    module.__class__ = kind.__mro__[kind.__mro__.index(FSDPModule) + 1]
