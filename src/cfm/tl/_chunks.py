"""Tools that go through data in chunks of rows: from files, to files, in several processes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from anndata import AnnData

from cfm._arguments import check_flag, check_whole
from cfm._fields import PARAMS
from cfm.data import open_files
from cfm.data._heap import trim_heap
from cfm.data._matrix import check_not_empty, in_memory_frame
from cfm.data._result_store import ResultStore, Streamed, check_output
from cfm.data._store import target, warn_overwritten
from cfm.models._shards import Processes, Stopped, share_work
from cfm.tl._chunk_input import Rows
from cfm.tl._chunk_record import Caught, WarningLog, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

#: Rows of a chunk, unless said otherwise.
CHUNK_SIZE = 8192


@dataclass(frozen=True)
class Chunking:
    """Arguments of tools that say where results go and who makes them.

    Attributes
    ----------
    output, overwrite
        File of results instead of the AnnData, and whether one that is there is replaced.
    chunk_size
        Rows at a time.
    devices, num_nodes, strategy
        Processes that share the work; see :func:`cfm.models._shards.share_work`.
    """

    output: str | os.PathLike[str] | None = None
    overwrite: bool = False
    chunk_size: int = CHUNK_SIZE
    devices: int | str | list[int] = 1
    num_nodes: int = 1
    strategy: str = "auto"

    def __post_init__(self) -> None:
        check_whole("chunk_size", self.chunk_size)
        if check_flag("overwrite", self.overwrite) and self.output is None:
            raise ValueError("overwrite=True only goes with output=; name the file, or drop it.")

    @property
    def alone(self) -> bool:
        """Whether one process does all."""
        return self.devices in (1, "1") and self.num_nodes == 1


class Made(NamedTuple):
    """A chunk of results on its way between processes."""

    number: int
    n_rows: int
    seconds: float
    arrays: dict[str, np.ndarray] | None
    notes: list[Caught]


class Results:
    """Arrays by name, chunk after chunk; in memory or in files."""

    def __init__(self, n_chunks: int, store: ResultStore | None) -> None:
        self.n_chunks = n_chunks
        self.store = store
        self.held: dict[int, dict[str, np.ndarray]] = {}

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Yield an array chunk by chunk; what is in memory is let go of."""
        for number in range(self.n_chunks):
            if self.store is not None:
                yield self.store.read_one(number, name)
            else:
                yield self.held[number].pop(name)

    def take(self, name: str) -> np.ndarray:
        """Return an array as a whole, once."""
        if self.n_chunks == 1:
            return next(self.blocks(name))
        return _joined(list(self.blocks(name)))

    def streamed(self, name: str) -> Streamed:
        """Return a matrix that is read from its files as it is written."""
        assert self.store is not None
        first = self.store.read_one(0, name)
        return Streamed(first.shape[1], first.dtype, self.blocks(name))


class ChunkRun:
    """One call of a tool.

    Parameters
    ----------
    data
        An AnnData, one or more paths, or what was made of them.
    how
        Where results go, and who makes them.
    copy
        Return a changed copy of the AnnData.
    also_read
        An AnnData that the tool reads besides.

    Attributes
    ----------
    whole
        All rows as one AnnData, whose matrices stay where they are.
    """

    def __init__(
        self, data: Any, how: Chunking, *, copy: bool = False, also_read: Any = None
    ) -> None:
        if copy and how.output is not None:
            raise ValueError(
                "copy=True does not go with output=, which leaves adata as it is; choose one."
            )
        self.how = how
        self.copy = copy
        self.output: Path | None = None
        if how.output is not None:
            read = (data.whole, data.paths) if isinstance(data, Rows) else (data,)
            self.output = check_output(how.output, *read, also_read, overwrite=how.overwrite)
        self.rows = data if isinstance(data, Rows) else Rows.of(data)
        self.whole: AnnData = self.rows.whole
        self.results = Results(0, None)
        self.processes = Processes()
        self._streamed: dict[tuple[str, str], Streamed] = {}
        self._target: AnnData | None = None

    def run(
        self,
        compute: Callable[[AnnData, slice], Mapping[str, np.ndarray]],
        store: Callable[[], None],
        model: Any,
        *,
        tool: str,
        layers: Sequence[str | None],
        arguments: Mapping[str, Any],
    ) -> AnnData | None:
        """Compute all chunks, store the results, and return what the tool returns.

        Parameters
        ----------
        compute
            Arrays by name, for an AnnData of some rows and which they are; what it gives must
            not depend on other rows.
        store
            Is called when all is there, to write what is small into :attr:`target`.
        model
            The model.
        tool
            Name of the tool.
        layers
            Matrices to read, ``None`` for ``X``.
        arguments
            What else the results depend on.
        """
        how = self.how

        def work(processes: Processes) -> Results:
            self.processes = processes
            try:
                self._compute(compute, model, tool, layers, arguments)
                if self.output is not None:
                    trim_heap()
                    processes.from_first(lambda: self._finish(store))
            finally:
                if self.results.store is not None:
                    self.results.store.release()
            return self.results

        self.results = share_work(
            work, model, devices=how.devices, num_nodes=how.num_nodes, strategy=how.strategy
        )
        if self.output is not None:
            # names of millions of rows need not be there twice
            del self._target, self._streamed, self.whole, self.rows
            trim_heap()
            return open_files(self.output)
        store()
        return self.target if self.copy or not self.rows.given else None

    @property
    def target(self) -> AnnData:
        """AnnData to write small results into."""
        if self._target is None:
            if self.output is None:
                self._target = target(self.whole, copy=self.copy)
            else:
                self._target = AnnData(
                    obs=in_memory_frame(self.whole.obs).copy(deep=False),
                    var=in_memory_frame(self.whole.var).copy(deep=False),
                    uns=dict(self.whole.uns),
                )
        return self._target

    @target.setter
    def target(self, adata: AnnData) -> None:
        self._target = adata

    def warn_overwritten(self, key: str, fields: Mapping[str, Sequence[str]]) -> None:
        """Warn of fields of others that are replaced; an output has ``obs`` and ``uns`` only."""
        record = self.target.uns.get(key)
        if self.output is not None and isinstance(record, Mapping) and PARAMS in record:
            return
        warn_overwritten(self.target, key, fields)

    def put(self, slot: str, key: str, name: str) -> None:
        """Store a matrix of the results in ``obsm`` or ``layers``."""
        if self.output is None:
            getattr(self.target, slot)[key] = self.results.take(name)
        else:
            self._streamed[slot, key] = self.results.streamed(name)

    def discard(self) -> None:
        """Throw away the chunks: nothing can come of them."""
        if self.results.store is not None:
            self.results.store.discard()

    def _finish(self, store: Callable[[], None]) -> None:
        store()
        assert self.results.store is not None
        self.results.store.finish(self.target, self._streamed, overwrite=self.how.overwrite)

    def _compute(
        self,
        compute: Callable[[AnnData, slice], Mapping[str, np.ndarray]],
        model: Any,
        tool: str,
        layers: Sequence[str | None],
        arguments: Mapping[str, Any],
    ) -> None:
        """Make the chunks that are not there."""
        processes = self.processes
        if self.output is None and self.how.alone and self.rows.given:
            # all at once: the models go through data of any storage a few rows at a time
            self.results = Results(1, None)
            self.results.held[0] = dict(compute(self.whole, slice(0, self.whole.n_obs)))
            return
        check_not_empty(self.whole)
        chunks = self.rows.chunks(int(self.how.chunk_size))
        store = None if self.output is None else ResultStore(self.output)
        self.results = Results(len(chunks), store)
        done: set[int] = set()
        if store is not None:

            def begin() -> set[int]:
                size = int(self.how.chunk_size)
                wanted = fingerprint(self.rows, model, tool, layers, arguments, size)
                return _begun(store, wanted, overwrite=self.how.overwrite)

            done = processes.from_first(begin)
        try:
            self._make([i for i in range(len(chunks)) if i not in done], compute, layers)
        except BaseException as stopped:
            if store is not None and not store.done():
                store.discard()
            elif store is not None and isinstance(stopped, KeyboardInterrupt):
                stopped.add_note(_resumable(store))
            raise

    def _make(
        self,
        todo: list[int],
        compute: Callable[[AnnData, slice], Mapping[str, np.ndarray]],
        layers: Sequence[str | None],
    ) -> None:
        """Go through chunks in rounds: each process makes one, and all hear of it."""
        processes, results = self.processes, self.results
        chunks = self.rows.chunks(int(self.how.chunk_size))
        log = WarningLog(sum(_length(chunks[i].rows) for i in todo))
        own = todo[processes.number :: processes.n]
        n_done = results.n_chunks - len(todo)
        read = _read_ahead(own, lambda i: self.rows.read(chunks[i], layers))
        for _ in range(-(-len(todo) // processes.n)):
            made: Made | None = None
            started = time.monotonic()
            stopped = Stopped()
            try:
                with stopped:
                    following = next(read, None)
                    if following is not None:  # the last round has fewer chunks than processes
                        number, part = following
                        made = self._one(number, chunks[number].rows, part, compute, started)
            finally:  # the others wait for it, whatever comes of it
                everyone = processes.gather(stopped.by or made)
            for process, heard in enumerate(everyone):
                if isinstance(heard, str):
                    raise RuntimeError(f"Process {process} stopped: {heard}")
                if heard is None:
                    continue
                n_done += 1
                if heard.arrays is not None:
                    results.held[heard.number] = heard.arrays
                if processes.number == 0:
                    log.collect(heard.notes)
                    _log(heard, n_done, results.n_chunks)
        if processes.number == 0:
            log.issue_counted()

    def _one(
        self,
        number: int,
        rows: slice,
        part: AnnData,
        compute: Callable[[AnnData, slice], Mapping[str, np.ndarray]],
        started: float,
    ) -> Made:
        """Make a chunk, and write it if results are written."""
        with WarningLog.recorded() as notes:
            arrays: dict[str, np.ndarray] | None = dict(compute(part, rows))
        store = self.results.store
        if store is not None:
            assert arrays is not None
            store.write(number, arrays)
            arrays = None
            trim_heap()
        return Made(number, _length(rows), time.monotonic() - started, arrays, notes)


def _begun(store: ResultStore, wanted: Mapping[str, Any], *, overwrite: bool) -> set[int]:
    store.begin(wanted, overwrite=overwrite)
    done = store.done()
    if done:
        logger.info(
            "Going on with %s: %d chunks are there.",
            store.folder,
            len(done),
            extra={"event": "resumed", "done": len(done)},
        )
    return done


def _resumable(store: ResultStore) -> str:
    return f"What is done is kept in {store.folder}; repeat the call to go on from there."


def _log(made: Made, n_done: int, n_chunks: int) -> None:
    logger.info(
        "Chunk %d of %d: %d rows in %.1f s.",
        n_done,
        n_chunks,
        made.n_rows,
        made.seconds,
        extra={
            "event": "chunk",
            "done": n_done,
            "total": n_chunks,
            "rows": made.n_rows,
            "seconds": made.seconds,
        },
    )


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)


def _read_ahead(
    numbers: Sequence[int], read: Callable[[int], AnnData]
) -> Iterator[tuple[int, AnnData]]:
    """Read the next chunk in a thread while the present one is worked on."""
    if not numbers:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="cfm-read") as pool:
        pending = pool.submit(read, numbers[0])
        for place, number in enumerate(numbers):
            part = pending.result()
            if place + 1 < len(numbers):
                pending = pool.submit(read, numbers[place + 1])
            yield number, part


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Join arrays, letting go of each as it is copied; text takes the widest type."""
    if parts[0].dtype.kind in "OU":
        return np.concatenate(parts)
    n = sum(len(part) for part in parts)
    out = np.empty((n, *parts[0].shape[1:]), dtype=parts[0].dtype)
    start = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        out[start : start + len(part)] = part
        start += len(part)
    return out
