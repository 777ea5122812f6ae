"""Chunks of rows that the workers of a ``dask.distributed`` client compute."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import cloudpickle
import xxhash

from cfm.tl._run import Chunk, Made, make_chunk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from distributed import Client

    from cfm.tl._run import Compute, Rows

#: Chunks for each worker that are sent ahead, so that no worker waits.
_AHEAD = 2
#: Parameters of glibc's ``mallopt``.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: On a worker, the latest payload; a model is unpickled once.
_LOADED: dict[str, tuple[Any, ...]] = {}
_LOADING, _COMPUTING = threading.Lock(), threading.Lock()


def compute_on_workers(
    client: Client,
    rows: Rows,
    left: Mapping[int, Chunk],
    function: Compute,
    model: Any,
    layers: Sequence[str | None],
) -> Iterator[Made]:
    """Compute chunks on the workers of a client; yield each when it is finished.

    Function and model are sent to each worker once. Workers read the rows of paths themselves; the
    rows of an AnnData are sent. Another worker recomputes the chunk of a lost worker.

    Parameters
    ----------
    client
        The active client.
    rows, left
        Rows, and the chunks to compute by number.
    function
        From rows to arrays.
    model
        The model that ``function`` calls; on a worker it runs on the worker's device.
    layers
        Matrices to read.
    """
    from distributed import as_completed
    from distributed.client import FutureCancelledError

    device = str(getattr(model, "device", "cpu")).split(":")[0]
    payload = _pickle((function, model, rows if rows.paths else None, list(layers)), model)
    digest = xxhash.xxh3_128_hexdigest(payload)
    sent: Any = None
    running: Any = as_completed(loop=client.loop)
    waiting = list(left.items())[::-1]
    chunk_of: dict[Any, tuple[int, Chunk]] = {}
    try:
        while waiting or chunk_of:
            n_workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
            while waiting and len(chunk_of) < _AHEAD * n_workers:
                if sent is None:
                    sent = client.scatter(payload, broadcast=True, hash=False)
                number, chunk = waiting.pop()
                part = None if rows.paths else _without_rest(rows.read(chunk, layers))
                future = client.submit(
                    _on_worker, sent, digest, device, number, chunk, part, pure=False
                )
                chunk_of[future] = number, chunk
                running.add(future)
            future = next(running)
            number, chunk = chunk_of.pop(future)
            try:
                made = future.result()
            except FutureCancelledError:  # the payload was lost with all workers that had it
                sent = None
                waiting.append((number, chunk))
                continue
            yield made
    finally:
        client.cancel(list(chunk_of))


def _without_rest(part: AnnData) -> AnnData:
    """Return the rows alone: a pickled view would take the whole AnnData along."""
    return part.to_memory() if part.is_view else part


def _on_worker(
    payload: bytes, digest: str, device: str, number: int, chunk: Chunk, part: AnnData | None
) -> Made:
    """Compute a chunk on a worker; one thread reads and one computes at a time."""
    started = time.monotonic()
    with _LOADING:
        if digest not in _LOADED:
            _keep_heap()
            _LOADED.clear()
            _LOADED[digest] = cloudpickle.loads(payload)
            model = _LOADED[digest][1]
            if device != "cpu" and hasattr(model, "to_device"):
                model.to_device(device)
        function, _, rows, layers = _LOADED[digest]
        if part is None:
            part = rows.read(chunk, layers)
    with _COMPUTING:
        return make_chunk(number, chunk, part, function, started)


def _keep_heap() -> None:
    """Let freed memory stay with the process, as it does outside of dask.

    Dask starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``, by which every batch gives its memory
    back to the system and gets it again page by page: 2 million page faults for 8,192 cells.
    """
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)


def _pickle(payload: tuple[Any, ...], model: Any) -> bytes:
    """Pickle with the model on the CPU, where every worker can unpickle it."""
    device = getattr(model, "device", None)
    if device is None or device.type == "cpu":
        return cloudpickle.dumps(payload)
    model.to_device("cpu")
    try:
        return cloudpickle.dumps(payload)
    finally:
        model.to_device(device)
