"""Results that are written as they are made, beside the file that they will become.

A run of hours may be killed. Each chunk of rows is a file of its own, in a hidden folder beside the
output; the same run, started again, makes what is missing. When all chunks are there they are put
together, and the output takes its name in one step: what bears the name is whole.
"""

from __future__ import annotations

import errno
import json
import os
import re
import zipfile
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from anndata.io import write_elem

from cfm._tables import text_is_written
from cfm.data._heap import trim_heap
from cfm.data._inputs import check_apart
from cfm.data._work_folder import WorkFolder, differences, put_in_place, remove

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from anndata import AnnData

SUFFIXES = (".h5ad", ".zarr")

#: What is written and read at a time in the output: a part of a file of HDF5, a file of zarr.
_STORED_BYTES = {".h5ad": 2**20, ".zarr": 2**22}
#: Errors of a file system that has no room left.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Streamed(NamedTuple):
    """A matrix of results that is written block by block.

    Attributes
    ----------
    n_columns
        Its columns; rows are the observations.
    dtype
        Of its values.
    blocks
        Consecutive rows, in order.
    """

    n_columns: int
    dtype: np.dtype[Any]
    blocks: Iterable[np.ndarray]


def check_output(path: str | os.PathLike[str], *inputs: Any, overwrite: bool = False) -> Path:
    """Check that results can be written there, before anything is computed.

    Parameters
    ----------
    path
        A name that ends in ``.h5ad`` or ``.zarr``.
    inputs
        What is read, as :func:`cfm.data._inputs.input_files` takes it.
    overwrite
        Whether what is there may be replaced.

    Raises
    ------
    ValueError
        If the name ends in something else, or it is a file that is read.
    FileNotFoundError
        If its folder does not exist.
    FileExistsError
        If there is something.
    """
    found = Path(path).expanduser().absolute()
    if found.suffix not in SUFFIXES:
        raise ValueError(
            f"output={str(path)!r} ends in {found.suffix!r}; expected one of {SUFFIXES}."
        )
    if not found.parent.is_dir():
        raise FileNotFoundError(f"The folder {found.parent} of output= does not exist; make it.")
    if os.path.lexists(found) and not overwrite:
        raise FileExistsError(
            f"{found} exists; pass overwrite=True to replace it, or choose another output=."
        )
    if found.exists() and found.is_dir() == (found.suffix == ".h5ad"):
        kind = "folder" if found.is_dir() else "file"
        raise FileExistsError(f"{found} is a {kind}, so it is no {found.suffix} and stays.")
    check_apart(found, *inputs)
    return found


class ResultStore:
    """Chunks of rows of results, until they are put together.

    Parameters
    ----------
    path
        The output, as :func:`check_output` returned it.

    Attributes
    ----------
    folder
        Where the chunks are: ``.NAME.partial`` beside the output.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.with_name(f".{path.name}.partial")
        self._work = WorkFolder(self.folder, path)

    def begin(self, fingerprint: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder, or go on with that of the same run.

        Parameters
        ----------
        fingerprint
            What the results depend on: JSON types by name.
        overwrite
            Throw away chunks of another run.

        Raises
        ------
        ValueError
            If there are chunks of another run.
        FileExistsError
            If something of its name was not made here.
        BlockingIOError
            If another process writes there at this moment.
        """
        wanted = json.loads(json.dumps(fingerprint, default=str))
        with told(self.path):
            self._work.open()
            found = self._work.record()
            if found != wanted:
                n_done = len(self.done())
                if found is not None and n_done and not overwrite:
                    raise ValueError(
                        f"{self.folder} holds {n_done} finished chunks of another run for the same "
                        f"output ({differences(found, wanted)}); pass overwrite=True to start "
                        "anew, or repeat that call to go on with it."
                    )
                self._work.start(wanted)
            for cut_short in self.folder.glob("*.part"):
                remove(cut_short)

    def release(self) -> None:
        """Let other processes write there."""
        self._work.close()

    def done(self) -> set[int]:
        """Return the numbers of the chunks that are there."""
        return {int(p.stem) for p in self.folder.glob("*.npz") if p.stem.isdecimal()}

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a chunk; it is there as a whole or not at all.

        Raises
        ------
        OSError
            If the disk is full; what was written before stays.
        """
        with told(self.path):
            _write(self._chunk(number), arrays)

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Return a chunk.

        Raises
        ------
        ValueError
            If its file is damaged.
        """
        with self._opened_chunk(number) as found:
            return {name: found[name] for name in found.files}

    def read_one(self, number: int, name: str) -> np.ndarray:
        """Return an array of a chunk; the others are not read. Errors as above."""
        with self._opened_chunk(number) as found:
            array: np.ndarray = found[name]
            return array

    @contextmanager
    def _opened_chunk(self, number: int) -> Iterator[Any]:
        path = self._chunk(number)
        try:
            with np.load(path, allow_pickle=False) as found:
                yield found
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete that file and repeat the call: it makes "
                "these rows anew."
            ) from error

    def finish(
        self,
        adata: AnnData,
        streamed: Mapping[tuple[str, str], Streamed],
        *,
        overwrite: bool = False,
    ) -> None:
        """Put the results together and give them their name; the chunks are removed.

        Parameters
        ----------
        adata
            All that is small.
        streamed
            Matrices by slot (``"obsm"`` or ``"layers"``) and name.
        overwrite
            Replace what has the name.

        Raises
        ------
        FileExistsError
            If something took the name during the run; the chunks stay.
        OSError
            If the disk is full; the chunks stay.
        """
        made = self.folder / f"made{self.path.suffix}"
        with told(self.path):
            remove(made)
            write_results(made, adata, streamed)
            put_in_place(made, self.path, overwrite=overwrite)
        self.discard()

    def discard(self) -> None:
        """Remove the chunks."""
        self._work.remove()

    def _chunk(self, number: int) -> Path:
        return self.folder / f"{number:08d}.npz"


def write_results(path: Path, adata: AnnData, streamed: Mapping[tuple[str, str], Streamed]) -> None:
    """Write an AnnData whose large matrices come in blocks."""
    with _opened(path) as root, text_is_written():
        write_elem(root, "/", adata)
        trim_heap()
        for (slot, name), matrix in streamed.items():
            _write_blocks(root[slot], name, adata.n_obs, matrix, _STORED_BYTES[path.suffix])
        if path.suffix == ".zarr":
            import zarr

            zarr.consolidate_metadata(root.store)
    if path.suffix == ".h5ad":
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _write_blocks(group: Any, name: str, n_rows: int, matrix: Streamed, most_bytes: int) -> None:
    """Fill a matrix of a file block by block."""
    shape = (n_rows, matrix.n_columns)
    at_once = max(1, most_bytes // max(1, matrix.n_columns * matrix.dtype.itemsize))
    make = getattr(group, "create_array", None) or group.create_dataset
    chunks = (max(1, min(n_rows, at_once)), max(1, matrix.n_columns))
    out = make(name, shape=shape, dtype=matrix.dtype, chunks=chunks)
    out.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    start = 0
    for block in matrix.blocks:
        out[start : start + len(block)] = block
        start += len(block)
    if start != n_rows:
        raise ValueError(f"Found {start} rows of results for {name!r}; expected {n_rows}.")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Begin an h5ad file or a zarr folder."""
    if path.suffix == ".zarr":
        import zarr

        # what anndata writes today, and older versions can read
        yield zarr.open_group(str(path), mode="w", zarr_format=2)
    else:
        with h5py.File(path, mode="w") as file:
            yield file


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Say of a full disk what is lost: nothing."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 raises either
        number = _no_room(error)
        if number is None:
            raise
        raise OSError(
            number,
            f"No room left to write the results for {path}; what is done is kept in the folder "
            f".{path.name}.partial beside it. Make room and repeat the call: it goes on from there",
        ) from error


def _no_room(error: OSError | RuntimeError) -> int | None:
    """Return the number of an error that says that the disk is full."""
    number = getattr(error, "errno", None)
    if number in _NO_ROOM:
        return int(number)
    said = re.search(r"errno = (\d+)", str(error))
    if said is not None and int(said[1]) in _NO_ROOM:
        return int(said[1])
    return errno.ENOSPC if "No space left" in str(error) else None


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file that is there as a whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
