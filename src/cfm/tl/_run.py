"""Runs of tools: in memory at once; from paths and to files chunk by chunk.

A tool with independent rows passes :class:`Run` a function from rows to arrays. An AnnData in
memory takes one call. Paths and ``output=`` take a call per chunk: a thread reads the next chunk,
finished chunks are written, and a repeated call continues behind them. With an active
``dask.distributed`` client its workers compute the chunks.
"""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm._adata import params_of, require_anndata, target, warn_overwritten, warn_user
from cfm._arguments import check_flag
from cfm._fields import PARAMS
from cfm._settings import settings
from cfm.data import open_files
from cfm.data._inputs import describe_files, matrix_identity, table_identity
from cfm.data._matrix import by_rows, check_not_empty, get_matrix, in_memory_frame, read_rows
from cfm.data._result_store import ResultStore, Streamed, check_output, trim_heap
from cfm.models import PretrainedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

logger = logging.getLogger(__name__)

#: First argument of these tools.
Data: TypeAlias = AnnData | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
#: From an AnnData of some rows, and their place among all rows, to arrays by name.
Compute: TypeAlias = "Callable[[AnnData, slice], Mapping[str, np.ndarray]]"

#: A warning that counts rows; :class:`WarningLog` sums the counts of all chunks.
_COUNTED = re.compile(r"^(\d+) of (\d+) ")
#: Warnings of AnnData about names, which the whole AnnData gave before its chunks.
_NAME_WARNINGS = ("Observation names", "Variable names")

#: Texts of the docstrings of the tools, for :func:`cfm._docs.fill_docs`.
TEXTS = {
    "paths": """
Or one or more paths of ``.h5ad`` and ``.zarr`` files, opened with
:func:`cfm.data.open_files`.""",
    "load": """
Or the name of a checkpoint, a folder, or ``hf://org/name``; see
:func:`cfm.models.load_model`.""",
    "layer": """
layer
    Layer to read instead of ``X``.""",
    "key_added": """
key_added
    Name of the result.""",
    "device": """
device
    Device of the model: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …""",
    "output": """
output
    File for the results, ``.zarr`` or ``.h5ad``, written chunk by chunk; ``adata`` stays
    unchanged. The same call continues a stopped run.""",
    "overwrite": """
overwrite
    Replace ``output`` if it exists, and the finished chunks of another call.""",
    "copy": """
copy
    Return a changed copy; ``adata`` stays unchanged.""",
    "returns": """
``None``, or with ``copy=True`` the changed copy. Given paths, an AnnData with the results in
memory, and with its matrices in the files. With ``output``, the AnnData in that file: the
results and ``obs``, ``var`` and ``uns`` of the input, without ``X``.""",
    "output_errors": """
FileExistsError
    If ``output`` exists.
OSError
    If the disk is full. Finished chunks are kept; the same call continues with the next one.""",
    "few_genes": """
UserWarning
    If few of the model's genes are found, or a field of another tool is replaced.""",
}


class Chunk(NamedTuple):
    """Some rows of one part: ``rows`` counts over all parts, ``own`` within the part."""

    part: int
    rows: slice
    own: slice


class Rows:
    """The rows of an AnnData, or of files one after the other.

    Parameters
    ----------
    data
        An AnnData, or one or more paths.

    Attributes
    ----------
    whole
        All rows as one AnnData; matrices on disk stay there.
    parts
        AnnData objects with consecutive rows, each with its own genes.
    paths
        Paths of the files; empty for an AnnData.
    """

    def __init__(self, data: Data) -> None:
        self.paths: list[Path] = []
        if isinstance(data, str | os.PathLike):
            data = [data]
        if isinstance(data, AnnData) or not isinstance(data, Sequence):
            require_anndata(data)
            self.parts = [data]
            self.whole: AnnData = data
        else:
            wrong = [type(p).__name__ for p in data if not isinstance(p, str | os.PathLike)]
            if wrong or not data:
                raise TypeError(
                    f"Found a list of {wrong[0] if wrong else 'nothing'}; expected an AnnData, a "
                    "path, or a list of paths that end in .h5ad or .zarr."
                )
            self.paths = [Path(p) for p in data]
            self.parts = [open_files(path) for path in self.paths]
            self.whole = self.parts[0] if len(self.parts) == 1 else open_files(self.paths)
        self._matrices: dict[tuple[int, str | None], Any] = {}
        self._obs: dict[int, pd.DataFrame] = {}

    def chunks(self, most: int | None = None) -> list[Chunk]:
        """Cut each part into chunks of at most ``most`` rows, and of ``settings.chunk_size``."""
        chunks, first, size = [], 0, min(settings.chunk_size, most or settings.chunk_size)
        for number, part in enumerate(self.parts):
            for start in range(0, part.n_obs, size):
                stop = min(start + size, part.n_obs)
                chunks.append(Chunk(number, slice(first + start, first + stop), slice(start, stop)))
            first += part.n_obs
        return chunks

    def read(self, chunk: Chunk, layers: Sequence[str | None]) -> AnnData:
        """Read the rows of a chunk, with the given matrices only."""
        rows = np.arange(chunk.own.start, chunk.own.stop)
        blocks = {name: read_rows(self._matrix(chunk.part, name), rows) for name in layers}
        return AnnData(
            blocks.pop(None, None),
            obs=self._obs_of(chunk.part).iloc[chunk.own],
            var=pd.DataFrame(index=self.parts[chunk.part].var_names),
            layers=blocks,
        )

    def identity(
        self, layers: Sequence[str | None], arguments: Mapping[str, Any]
    ) -> dict[str, str]:
        """Return digests that identify these rows, by name.

        Parameters
        ----------
        layers
            Matrices of the run, ``None`` for ``X``.
        arguments
            Arguments of the tool; the columns of ``obs`` that they name have digests, too.
        """
        found: dict[str, str] = {}
        files = [path.resolve() for path in self.paths]
        columns = {name for name in arguments.values() if isinstance(name, str)}
        for number, part in enumerate(self.parts):
            of = f" of part {number + 1}" if len(self.parts) > 1 else ""
            found[f"obs_names{of}"] = table_identity(part.obs_names)
            found[f"var_names{of}"] = table_identity(part.var_names)
            for name in columns & set(part.obs.columns):
                found[f"obs[{name!r}]{of}"] = table_identity(self._obs_of(number)[name])
            for layer in layers:
                name = "X" if layer is None else f"layers[{layer!r}]"
                found[name + of], read = matrix_identity(self._matrix(number, layer))
                files += [path.resolve() for path in read]
        return found | describe_files(files)

    def vocabulary_share(self, model: Any) -> float:
        """Return the share of the model's genes that are measured, on average over the rows."""
        share = [
            model.vocabulary_share(part)
            if isinstance(model, PretrainedModel)
            else model.vocabulary.align(part.var_names).found_share
            for part in self.parts
        ]
        return float(np.average(share, weights=[max(1, part.n_obs) for part in self.parts]))

    def _matrix(self, part: int, layer: str | None) -> Any:
        """Return a matrix of a part in a storage that can be cut by rows."""
        if (part, layer) not in self._matrices:
            self._matrices[part, layer] = by_rows(get_matrix(self.parts[part], layer=layer))
        return self._matrices[part, layer]

    def _obs_of(self, part: int) -> pd.DataFrame:
        """Return ``obs`` of a part, with the names of its rows in ``whole``."""
        if part not in self._obs:
            frame = in_memory_frame(self.parts[part].obs)
            if len(self.parts) > 1:
                first = sum(p.n_obs for p in self.parts[:part])
                frame = frame.set_axis(self.whole.obs_names[first : first + len(frame)], axis=0)
            self._obs[part] = frame
        return self._obs[part]


class Results:
    """Arrays by name, chunk after chunk, in memory or on disk."""

    def __init__(self, n_chunks: int, store: ResultStore | None = None) -> None:
        self.n_chunks = n_chunks
        self.store = store
        self.held: dict[int, dict[str, np.ndarray]] = {}

    def keep(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays of a chunk."""
        if self.store is None:
            self.held[number] = dict(arrays)
        else:
            self.store.write(number, arrays)

    def take(self, name: str) -> np.ndarray:
        """Return a whole array, once: its chunks in memory are freed."""
        return _join(list(self._blocks(name)))

    def streamed(self, name: str) -> Streamed:
        """Return a matrix that is read from its chunk files during writing."""
        assert self.store is not None
        first = self.store.read_one(0, name)
        return Streamed(first.shape[1], first.dtype, self._blocks(name))

    def discard(self) -> None:
        """Remove the files of the chunks."""
        if self.store is not None:
            self.store.discard()

    def _blocks(self, name: str) -> Iterator[np.ndarray]:
        for number in range(self.n_chunks):
            if self.store is None:
                yield self.held[number].pop(name)
            else:
                yield self.store.read_one(number, name)


class Run:
    """One call of a tool.

    Parameters
    ----------
    data
        An AnnData, one or more paths, or :class:`Rows`.
    output, overwrite
        File for the results, which leaves the AnnData unchanged, and whether to replace it.
    copy
        Return a changed copy of the AnnData.
    also_read
        Further data of the tool, which ``output`` must not replace.

    Attributes
    ----------
    rows, whole
        The rows, and all of them as one AnnData.
    target
        AnnData to write small results into.
    """

    def __init__(
        self,
        data: Any,
        output: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
        copy: bool = False,
        also_read: Any = None,
    ) -> None:
        self.output: Path | None = None
        self.overwrite = check_flag("overwrite", overwrite)
        self.copy = copy
        if output is None and overwrite:
            raise ValueError("overwrite=True only goes with output=; name the file, or drop it.")
        if output is not None:
            if copy:
                raise ValueError(
                    "copy=True does not go with output=, which leaves adata as it is; choose one."
                )
            read = (data.whole, data.paths) if isinstance(data, Rows) else (data,)
            self.output = check_output(output, *read, also_read, overwrite=overwrite)
        self.rows = data if isinstance(data, Rows) else Rows(data)
        self.whole: AnnData = self.rows.whole
        self._streamed: dict[tuple[str, str], Streamed] = {}
        self._results = Results(0)
        self._target: AnnData | None = None

    @contextmanager
    def compute(
        self,
        function: Compute,
        model: Any,
        *,
        tool: str,
        layers: Sequence[str | None],
        arguments: Mapping[str, Any],
        once: bool = True,
        chunk_rows: int | None = None,
    ) -> Iterator[Results]:
        """Compute all arrays; the block that follows stores them, then ``output`` is completed.

        Parameters
        ----------
        function
            Returns arrays of some rows that do not depend on other rows.
        model
            The model that ``function`` calls.
        tool
            Name of the tool.
        layers
            Matrices to read, ``None`` for ``X``.
        arguments
            Further values that determine the results.
        once
            Whether an AnnData in memory takes one call.
        chunk_rows
            Largest number of rows of a chunk, for results that are large in each row.
        """
        store = None if self.output is None else ResultStore(self.output)
        try:
            if self.rows.paths or store is not None or not once or _dask_client(self.whole.n_obs):
                check_not_empty(self.whole)
                chunks = self.rows.chunks(chunk_rows)
                self._results = Results(len(chunks), store)
                done: set[int] = set()
                if store is not None:
                    wanted = self._fingerprint(model, tool, layers, arguments)
                    done = _resume(store, wanted, overwrite=self.overwrite)
                left = {i: chunk for i, chunk in enumerate(chunks) if i not in done}
                with _keep_finished(store):
                    self._compute_chunks(left, function, model, layers)
            else:  # models read data of any storage in batches
                self._results = Results(1)
                self._results.keep(0, function(self.whole, slice(0, self.whole.n_obs)))
            yield self._results
            if store is not None:
                trim_heap()
                store.finish(self.target, self._streamed, overwrite=self.overwrite)
        finally:
            if store is not None:
                store.release()

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

    @property
    def result(self) -> AnnData | None:
        """Return value of the tool."""
        if self.output is None:
            return self.target if self.copy or self.rows.paths else None
        # frees the names of millions of rows before they are read again
        del self._target, self._streamed, self.whole, self.rows
        trim_heap()
        return open_files(self.output)

    def warn_overwritten(self, key: str, fields: Mapping[str, Sequence[str]]) -> None:
        """Warn if fields of other tools are replaced; an output has ``obs`` and ``uns`` only."""
        record = self.target.uns.get(key)
        if self.output is not None and isinstance(record, Mapping) and PARAMS in record:
            return
        warn_overwritten(self.target, key, fields)

    def put(self, slot: str, key: str, name: str) -> None:
        """Store a matrix of the results in ``obsm`` or ``layers``."""
        if self.output is None:
            getattr(self.target, slot)[key] = self._results.take(name)
        else:
            self._streamed[slot, key] = self._results.streamed(name)

    def _fingerprint(
        self,
        model: Any,
        tool: str,
        layers: Sequence[str | None],
        arguments: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return the values that determine the results, to compare with those of stored chunks."""
        values = {name: _identity(value) for name, value in arguments.items()}
        return (
            values
            | self.rows.identity(layers, arguments)
            | {
                "tool": tool,
                "cfm": _version(),
                "model": type(model).__name__,
                "weights": model.weights_digest() if isinstance(model, PretrainedModel) else "",
                "n_obs": int(self.whole.n_obs),
                "chunk_size": settings.chunk_size,
            }
        )

    def _compute_chunks(
        self,
        left: Mapping[int, Chunk],
        function: Compute,
        model: Any,
        layers: Sequence[str | None],
    ) -> None:
        """Compute chunks, here or on the workers of a dask client, and keep each."""
        client = _dask_client(self.whole.n_obs)
        if client is None:
            made = _compute_here(self.rows, left, function, layers)
        else:
            from cfm.tl._dask import compute_on_workers

            made = compute_on_workers(client, self.rows, left, function, model, layers)
        log = WarningLog(sum(chunk.rows.stop - chunk.rows.start for chunk in left.values()))
        n_done, total = self._results.n_chunks - len(left), self._results.n_chunks
        for one in made:
            n_done += 1
            self._results.keep(one.number, one.arrays)
            if self._results.store is not None:
                trim_heap()
            log.collect(one.warnings)
            fields = {"event": "chunk", "done": n_done, "total": total}
            fields |= {"rows": one.n_rows, "seconds": one.seconds}
            text = "Chunk %d of %d: %d rows in %.1f s."
            logger.info(text, n_done, total, one.n_rows, one.seconds, extra=fields)
        log.issue_counted()


def _identity(value: Any) -> Any:
    """Return a digest of an array or a table; another value as it is."""
    if isinstance(value, pd.DataFrame):
        return f"{table_identity(value.index)} {table_identity(value.to_numpy())}"
    return table_identity(value) if isinstance(value, np.ndarray) else value


class Caught(NamedTuple):
    """A warning and its line."""

    category: type[Warning]
    text: str
    filename: str
    line: int


class Made(NamedTuple):
    """A chunk of results."""

    number: int
    n_rows: int
    seconds: float
    arrays: dict[str, np.ndarray]
    warnings: list[Caught]


def make_chunk(number: int, chunk: Chunk, part: AnnData, function: Compute, started: float) -> Made:
    """Call a function on the rows of a chunk, and record its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arrays = dict(function(part, chunk.rows))
    found = [Caught(w.category, str(w.message), w.filename, w.lineno) for w in caught]
    n_rows = chunk.rows.stop - chunk.rows.start
    return Made(number, n_rows, time.monotonic() - started, arrays, found)


def _compute_here(
    rows: Rows, left: Mapping[int, Chunk], function: Compute, layers: Sequence[str | None]
) -> Iterator[Made]:
    """Compute chunks in order; a thread reads the next one during the computation."""
    waiting = iter(left.items())
    with ThreadPoolExecutor(1, thread_name_prefix="cfm-read") as pool:

        def read_next() -> Any:
            number, chunk = next(waiting, (-1, None))
            return number, chunk, chunk and pool.submit(rows.read, chunk, layers)

        number, chunk, pending = read_next()
        while chunk is not None:
            started, part = time.monotonic(), pending.result()
            present = number, chunk
            number, chunk, pending = read_next()
            yield make_chunk(*present, part, function, started)


class WarningLog:
    """Collects the warnings of many chunks, and issues each once.

    Parameters
    ----------
    n_rows
        Rows of all chunks.
    """

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self._issued: set[str] = set()
        self._counted: dict[str, int] = {}

    def collect(self, found: Iterable[Caught]) -> None:
        """Issue new warnings; counts of rows are summed until :meth:`issue_counted`."""
        for warning in found:
            text = warning.text
            counted = _COUNTED.match(text)
            if counted is not None:
                rest = text[counted.end() :]
                self._counted[rest] = self._counted.get(rest, 0) + int(counted[1])
            elif text not in self._issued and not text.startswith(_NAME_WARNINGS):
                self._issued.add(text)
                if warning.category is UserWarning:
                    warn_user(text)
                else:  # of another package: filters match its module
                    warnings.warn_explicit(text, warning.category, warning.filename, warning.line)

    def issue_counted(self) -> None:
        """Issue the warnings with counts of rows."""
        for rest, n in self._counted.items():
            warn_user(f"{n} of {self.n_rows} {rest}")


def _dask_client(n_rows: int) -> Any:
    """Return the active dask client if there are several chunks; ``None`` within a worker."""
    if n_rows <= settings.chunk_size:
        return None
    import sys

    if "distributed" not in sys.modules:
        return None
    from distributed import default_client, get_worker

    try:
        get_worker()
    except ValueError:
        pass
    else:
        return None
    try:
        return default_client()
    except ValueError:
        return None


def _resume(store: ResultStore, wanted: Mapping[str, Any], *, overwrite: bool) -> set[int]:
    """Open the store, and return the numbers of its finished chunks."""
    store.begin(wanted, overwrite=overwrite)
    done = store.done()
    if done:
        fields = {"event": "resumed", "done": len(done)}
        logger.info("Resuming %s: %d chunks are finished.", store.folder, len(done), extra=fields)
    return done


@contextmanager
def _keep_finished(store: ResultStore | None) -> Iterator[None]:
    """Keep the finished chunks of a stopped run; remove a store without any."""
    try:
        yield
    except BaseException as stopped:
        if store is not None and not store.done():
            store.discard()
        elif store is not None and isinstance(stopped, KeyboardInterrupt):
            stopped.add_note(
                f"Finished chunks are kept in {store.folder}; the same call continues the run."
            )
        raise


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """Join arrays, freeing each after its copy; text takes the widest type."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].dtype.kind in "OU":
        return np.concatenate(parts)
    out = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype)
    start = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        out[start : start + len(part)] = part
        start += len(part)
    return out


def _version() -> str:
    try:
        return version("cfm-tools")
    except PackageNotFoundError:
        return ""


def refuse_other_model(adata: AnnData, key: str, model: PretrainedModel) -> None:
    """Refuse to replace the result of another model under the default name.

    Raises
    ------
    ValueError
        If ``uns[key]`` records other weights.
    """
    former = params_of(adata.uns, key)
    if former.get("model") and former.get("sha256") != model.weights_record()["sha256"]:
        raise ValueError(
            f"{key!r} holds the result of another model ({former['model']}); name the new one by "
            f"key_added=, or replace that one with key_added={key!r}."
        )


def run_record(model: PretrainedModel, adata: AnnData, **arguments: Any) -> dict[str, Any]:
    """Return the record of a run: arguments, model, checksum, device and vocabulary share."""
    return model_record(model, model.vocabulary_share(adata), **arguments)


def model_record(model: PretrainedModel, share: float, **arguments: Any) -> dict[str, Any]:
    """Return the record of a run with a given vocabulary share.

    ``precision`` is that of the computation.
    """
    record = {k: v for k, v in arguments.items() if v is not None}
    used = model.inference_dtype(record.get("precision", "auto"))
    record["precision"] = str(used).removeprefix("torch.")
    record |= {"device": str(model.device), "vocabulary_share": float(share)}
    return record | model.weights_record()
