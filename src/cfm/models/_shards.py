"""Inference in several processes, each on its share of the data."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import distributed

from cfm.models._training import quiet_lightning
from cfm.nn._distributed import process_number

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

#: Processes wait for each other after each chunk, which may take hours on a CPU.
_PATIENCE = timedelta(days=1)


class Stopped:
    """Record an exception for the other ranks, then re-raise it.

    Attributes
    ----------
    by
        Type and message of the exception, ``None`` without one.
    """

    by: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.by = f"{type(error).__name__}: {error}"


class Processes:
    """The processes that share some work; one process if none were started.

    Parameters
    ----------
    together
        Whether the processes that were started share this work.

    Attributes
    ----------
    number
        Number of this process, from 0.
    n
        How many there are.
    """

    def __init__(self, *, together: bool = False) -> None:
        self.number, self.n = process_number() if together else (0, 1)
        # gloo: numbers and arrays are on CPUs, whatever device the models run on
        many = self.n > 1
        self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE) if many else None

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank; each must call this."""
        if self.n == 1:
            return [value]
        found: list[Any] = [None] * self.n
        distributed.all_gather_object(found, value, group=self._group)
        return found

    def from_first(self, make: Callable[[], Result]) -> Result:
        """Call a function on rank 0 and return its result, or raise its error, on all ranks."""
        if self.n == 1:
            return make()
        made: list[Any] = [None, None]
        stopped = Stopped()
        try:
            with stopped:
                if self.number == 0:
                    made[0] = make()
        finally:  # the other ranks wait for it, also after an error
            made[1] = stopped.by
            distributed.broadcast_object_list(made, src=0, group=self._group)
        if made[1] is not None:
            raise RuntimeError(f"Process 0 stopped: {made[1]}")
        result: Result = made[0]
        return result

    def close(self) -> None:
        """Close the process group of this work."""
        if self._group is not None:
            distributed.destroy_process_group(self._group)
            self._group = None


def share_work(
    function: Callable[[Processes], Result],
    model: Any,
    *,
    devices: int | str | list[int] = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
) -> Result:
    """Call a function in as many processes as there are devices.

    Processes are those that train together in this program, those that ``torchrun`` or SLURM
    started, or new ones, which run the same program from its first line, as in Lightning.

    Parameters
    ----------
    function
        Takes the processes; in each the model is on a device of its own.
    model
        A :class:`cfm.models.PretrainedModel`; its device is the kind of device of all processes.
    devices, num_nodes, strategy
        As of :class:`lightning.fabric.Fabric`.

    Returns
    -------
    The result of the function in this process.

    Raises
    ------
    RuntimeError
        If another number of processes was started before.
    """
    if devices in (1, "1") and num_nodes == 1:
        return function(Processes())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _check_number(devices, num_nodes)
        return _together(function)
    from lightning.fabric import Fabric

    kind = model.device.type
    fabric = Fabric(
        accelerator="cuda" if kind == "cuda" else kind,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
    )

    with quiet_lightning():
        fabric.launch()
    model.to_device(fabric.device)
    return _together(function) if fabric.world_size > 1 else function(Processes())


def _together(function: Callable[[Processes], Result]) -> Result:
    processes = Processes(together=True)
    try:
        return function(processes)
    finally:
        processes.close()


def _check_number(devices: int | str | list[int], num_nodes: int) -> None:
    """Check that the requested number of processes runs."""
    found = process_number()[1]
    if devices == "auto":
        return
    per_node = len(devices) if isinstance(devices, list) else int(devices)
    if per_node * num_nodes != found:
        raise RuntimeError(
            f"devices={devices!r} and num_nodes={num_nodes} request {per_node * num_nodes} "
            f"processes, but {found} were started together before; request as many."
        )
