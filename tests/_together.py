"""Threads that stand for processes that train together: quick, and all in one test."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

#: A thread waits for the others so long; then something is wrong.
_TIMEOUT = 60


def together(n: int, work: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let ``n`` threads do some work at the same time, each as process ``i`` of ``n``.

    Returns
    -------
    What each of them returned.
    """
    local, barrier = threading.local(), threading.Barrier(n, timeout=_TIMEOUT)
    sent: list[Any] = [None] * n

    def exchanged(x: Any) -> list[Any]:
        sent[local.number] = x
        barrier.wait()
        received = list(sent)
        barrier.wait()
        return received

    def all_reduce(x: torch.Tensor) -> None:
        x.copy_(torch.stack(exchanged(x.clone())).sum(0))

    def all_gather(out: list[torch.Tensor], x: torch.Tensor) -> None:
        for place, part in zip(out, exchanged(x.clone()), strict=True):
            place.copy_(part)

    def broadcast(x: torch.Tensor, source: int) -> None:
        x.copy_(exchanged(x.clone())[source])

    def broadcast_object_list(x: list[Any], src: int, device: torch.device) -> None:
        x[:] = exchanged(list(x))[src]

    def run(number: int) -> Any:
        local.number = number
        try:
            return work(number)
        except BaseException:
            barrier.abort()  # nobody waits for this one
            raise

    with monkeypatch.context() as patch:
        replaced: dict[str, Any] = {
            "is_initialized": lambda: hasattr(local, "number"),
            "get_rank": lambda: local.number,
            "get_world_size": lambda: n,
            "get_backend": lambda: "gloo",
        }
        for function in (all_reduce, all_gather, broadcast, broadcast_object_list):
            replaced[function.__name__] = function
        for name, function in replaced.items():
            patch.setattr(torch.distributed, name, function)
        with ThreadPoolExecutor(n) as pool:
            futures = [pool.submit(run, number) for number in range(n)]
        broken = (threading.BrokenBarrierError,)
        failed = [f.exception() for f in futures]
        first = [e for e in failed if e is not None and not isinstance(e, broken)]
        for error in [*first, *(e for e in failed if e is not None)]:
            raise error
        return [f.result() for f in futures]
