"""Several processes that apply a model together, each to its share of the data."""

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

#: Processes wait for each other after each chunk, which may take hours on a processor.
_PATIENCE = timedelta(days=1)


class Stopped:
    """What stopped the lines within, for the other processes; the error goes on.

    Attributes
    ----------
    by
        The error in words, ``None`` if there was none.
    """

    by: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.by = f"{type(error).__name__}: {error}"


class Processes:
    """The processes that share some work; one alone unless they were started.

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
        # Numbers and arrays travel between processors, whatever the models run on.
        many = self.n > 1
        self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE) if many else None

    def gather(self, value: Any) -> list[Any]:
        """Return what each process has, in order; all of them have to call this."""
        if self.n == 1:
            return [value]
        found: list[Any] = [None] * self.n
        distributed.all_gather_object(found, value, group=self._group)
        return found

    def from_first(self, make: Callable[[], Result]) -> Result:
        """Let the first process make something, and return it in all; its error is everyone's."""
        if self.n == 1:
            return make()
        made: list[Any] = [None, None]
        stopped = Stopped()
        try:
            with stopped:
                if self.number == 0:
                    made[0] = make()
        finally:  # the others wait for it, whatever comes of it
            made[1] = stopped.by
            distributed.broadcast_object_list(made, src=0, group=self._group)
        if made[1] is not None:
            raise RuntimeError(f"Process 0 stopped: {made[1]}")
        result: Result = made[0]
        return result

    def close(self) -> None:
        """Let go of what connects the processes for this work."""
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
    started, or new ones, which run the same program from its first line to this one, as
    Lightning has it.

    Parameters
    ----------
    function
        Is told of the processes; in each the model is on a device of its own.
    model
        A :class:`cfm.models.PretrainedModel`; its device says on what kind of device to run.
    devices, num_nodes, strategy
        As of :class:`lightning.fabric.Fabric`.

    Returns
    -------
    What the function returned in this process.

    Raises
    ------
    RuntimeError
        If there are processes already, but not as many as were asked for.
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
    """Check that as many processes run as are asked for."""
    found = process_number()[1]
    if devices == "auto":
        return
    per_node = len(devices) if isinstance(devices, list) else int(devices)
    if per_node * num_nodes != found:
        raise RuntimeError(
            f"devices={devices!r} and num_nodes={num_nodes} ask for {per_node * num_nodes} "
            f"processes, but {found} were started together before; ask for as many."
        )
