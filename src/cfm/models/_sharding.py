"""Weights dealt out to the processes that train together, where one cannot hold them all."""

from __future__ import annotations

from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.distributed.device_mesh import DeviceMesh


#: Where a module notes which of its weights are single numbers.
_NUMBERS = "_single_numbers"


def shard(plan: nn.Module, readers: Sequence[str] = (), mesh: DeviceMesh | None = None) -> None:
    """Give each process a part of every weight, layer by layer.

    While ``training_step`` runs, the weights of a layer are put together as long as the layer
    needs them, those outside of layers until the gradients are there.

    Parameters
    ----------
    plan
        Holds the network; has the method ``training_step``.
    readers
        Methods of the plan that compute without gradients: all weights are there meanwhile.
    mesh
        The processes; by default all.
    """
    for module in plan.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.ndim:  # single numbers cannot be dealt out
                listed = nn.Parameter(parameter.detach().view(1), parameter.requires_grad)
                module.register_parameter(name, listed)
                module.__dict__.setdefault(_NUMBERS, []).append(name)
    for layer in _layers(plan):
        fully_shard(layer, mesh=mesh)
    fully_shard(plan, mesh=mesh)
    register_fsdp_forward_method(plan, "training_step")
    for name in readers:
        setattr(plan, name, _with_whole_weights(plan, getattr(plan, name)))


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
        numbers = module.__dict__.pop(_NUMBERS, [])
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                whole = parameter.full_tensor()
                whole = whole.view(()) if name in numbers else whole
                module.register_parameter(name, nn.Parameter(whole, parameter.requires_grad))
    for part in parts:
        _undo(part)


def _with_whole_weights(plan: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with whole_weights(plan):
            return method(*args, **kwargs)

    return wrapped


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
