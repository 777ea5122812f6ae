"""Collectives for processes that train together.

Processes that train together share each batch, and their gradients are averaged. So a loss needs in
each process the gradient of its own rows times the number of processes, and the value of the whole
batch. These functions do both; in one process they change nothing.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


def process_number() -> tuple[int, int]:
    """Return rank and number of processes; ``(0, 1)`` without ``torch.distributed``."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def all_gather_int(number: int) -> list[int]:
    """Return the numbers of all processes, by rank; each must call this."""
    own, n_processes = process_number()
    if n_processes == 1:
        return [number]
    found = torch.zeros(n_processes, dtype=torch.int64, device=_collective_device())
    found[own] = number
    distributed.all_reduce(found)
    return [int(n) for n in found]


def means_over_processes(*parts: tuple[Tensor, Tensor | int | float]) -> list[Tensor]:
    """Return means over the rows of all processes; each must pass the same number of parts.

    Parameters
    ----------
    *parts
        Sum over the rows of this process, and their number (or total weight).

    Returns
    -------
    For each part the mean, the same in all processes, and 0 where there are no rows. Gradients are
    those of the sum of this process over the number of all rows, times the number of processes:
    averaged over processes they are the gradient of the mean.
    """
    n_processes = process_number()[1]
    if n_processes == 1:
        return [total / _or_one(count) for total, count in parts]
    sums = [total.detach().to(torch.float64) for total, _ in parts]
    counts = [torch.as_tensor(count, dtype=torch.float64).to(sums[0].device) for _, count in parts]
    found = torch.stack([*sums, *counts]).to(_collective_device(sums[0]))
    distributed.all_reduce(found)
    found = found.to(sums[0].device)
    means = []
    for (total, _), whole, count in zip(parts, *found.split(len(parts)), strict=True):
        count = torch.where(count > 0, count, 1.0)
        own = total * (n_processes / count).to(total.dtype)
        means.append(_Valued.apply(own, (whole / count).to(total.dtype)))
    return means


def gathered(x: Tensor) -> Tensor:
    """Return the rows of all processes, by rank; each must compute the same from them.

    Gradients are not exchanged: each process has those of its own rows, times the number of
    processes because gradients are averaged.

    Parameters
    ----------
    x
        ``(n, …)``; numbers of rows may differ.
    """
    return x if process_number()[1] == 1 else _Gathered.apply(x)


def summed(x: Tensor) -> Tensor:
    """Return the sum over processes.

    Gradients are summed over processes, too, so all must call backward in one order.
    """
    return x if process_number()[1] == 1 else _Summed.apply(x)


@contextmanager
def common_numbers(device: torch.device) -> Iterator[torch.Generator | None]:
    """Yield a generator that is the same in all processes: a copy of that of rank 0.

    Afterwards the state of rank 0 is advanced, that of the others is not. In one process this
    yields ``None``, the global generator of torch.
    """
    number, n_processes = process_number()
    if n_processes == 1:
        yield None
        return
    on_gpu = device.type == "cuda"
    state = torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state()
    sent = state.to(_collective_device())
    distributed.broadcast(sent, 0)
    generator = torch.Generator(device=device).set_state(sent.cpu())
    yield generator
    if number == 0:
        if on_gpu:
            torch.cuda.set_rng_state(generator.get_state(), device)
        else:
            torch.set_rng_state(generator.get_state())


def offset_seed_by_rank() -> None:
    """Offset the seed of torch by the rank, so that processes draw different dropout."""
    number = process_number()[0]
    if number:
        torch.manual_seed((torch.initial_seed() + number * 0x9E3779B97F4A7C15) % 2**63)


def on_rank_zero(action: Callable[[], T]) -> T:
    """Call a function on rank 0 while the others wait; all return its result.

    Raises
    ------
    Exception
        The error of rank 0, on all ranks.
    """
    number, n_processes = process_number()
    if n_processes == 1:
        return action()
    outcome: list[Any] = []
    if number == 0:
        try:
            outcome = [action(), None]
        finally:  # the other ranks wait for it, also after an error
            _broadcast(outcome or [None, sys.exception()])
    else:
        outcome = _broadcast([None, None])
        if outcome[1] is not None:
            raise outcome[1]
    made: T = outcome[0]
    return made


def _broadcast(what: list[Any]) -> list[Any]:
    """Return the objects of rank 0."""
    distributed.broadcast_object_list(what, src=0, device=_collective_device())
    return what


def _collective_device(x: Tensor | None = None) -> torch.device:
    """Return the device of collectives: that of the tensor if the backend allows it, or the CPU."""
    backend = distributed.get_backend()
    if "nccl" in backend and "gloo" not in backend:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if x is None or "nccl" not in backend else x.device


def _or_one(count: Tensor | int | float) -> Tensor | int | float:
    if isinstance(count, Tensor):
        return torch.where(count > 0, count, torch.ones_like(count))
    return count if count > 0 else 1


class _Valued(torch.autograd.Function):
    """A number with the gradients of another one."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        number, n_processes = process_number()
        sizes = all_gather_int(len(x))
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        home, place = x.device, _collective_device(x)
        found = [torch.empty_like(padded, device=place) for _ in sizes]
        distributed.all_gather(found, padded.to(place).contiguous())
        start = sum(sizes[:number])
        ctx.own = slice(start, start + len(x))
        ctx.n_processes = n_processes
        return torch.cat([f[:n] for f, n in zip(found, sizes, strict=True)]).to(home)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0][ctx.own] * ctx.n_processes


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_reduced(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _all_reduced(gradients[0])


def _all_reduced(x: Tensor) -> Tensor:
    found = x.detach().to(_collective_device(x), copy=True).contiguous()
    distributed.all_reduce(found)
    return found.to(x.device)
