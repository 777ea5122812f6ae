"""Results that are written as they are made, beside the file that they will become.

A run of hours may be killed. Each chunk of rows is a file of its own, in a hidden folder beside the
output; the same run, started again, makes what is missing. When all chunks are there they are put
together, and the output takes its name in one step: what bears the name is whole.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from anndata.io import write_elem

from cfm._adata import text_is_written
from cfm.data._inputs import check_apart

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anndata import AnnData


def trim_heap() -> None:
    """Have glibc return to the system what is free; elsewhere do nothing.

    By itself it keeps pieces of its heap between those in use, which add up where a program goes
    through chunks. No setting of the process is changed.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


#: Marks a folder as made here, and keeps a second process out.
_MARK = "cfm.lock"
_RECORD = "run.json"
#: Digests, which an error message leaves out.
_DIGEST = re.compile("[0-9a-f]{32,64}")


class WorkFolder:
    """A folder for the unfinished results of a call.

    What bears its name and was not made here is never touched.

    Parameters
    ----------
    path
        The folder.
    output
        What is made in the end.
    """

    def __init__(self, path: Path, output: Path) -> None:
        self.path = path
        self.output = output
        self._lock: Any = None

    def open(self) -> None:
        """Make the folder, or take the one that is there, for this process alone.

        Raises
        ------
        FileExistsError
            If something of that name was not made here.
        BlockingIOError
            If another process works in it at this moment.
        """
        try:
            self.path.mkdir()
        except FileExistsError:
            self._check_made_here()
        self._lock = _locked(self.path / _MARK, self.output)

    def _check_made_here(self) -> None:
        mark = self.path / _MARK
        if self.path.is_symlink():
            found = "a link"
        elif not self.path.is_dir():
            found = "a file"
        elif mark.is_symlink() or not (mark.is_file() or next(self.path.iterdir(), None) is None):
            found = "a folder that cfm did not make"
        else:
            return
        raise FileExistsError(
            f"{self.path}, the place for unfinished results, is {found} and is left as it is; move "
            "it, or choose another output="
        )

    def close(self) -> None:
        """Let other processes work in it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def record(self) -> dict[str, Any] | None:
        """Return what :meth:`start` wrote; ``None`` if a kill came before."""
        try:
            found = json.loads((self.path / _RECORD).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def start(self, record: Mapping[str, Any]) -> None:
        """Empty the folder, and write down of which call the results will be."""
        for old in self.path.iterdir():
            if old.name != _MARK:
                remove(old)
        part = self.path / f"{_RECORD}.part"
        with part.open("w") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / _RECORD)

    def remove(self) -> None:
        """Remove the folder, if this process has it."""
        if self._lock is None:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()
        with suppress(OSError):  # a network file system keeps the lock while it is open
            self.path.rmdir()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in which of the things that results depend on two calls differ."""
    named = []
    for name in sorted(found.keys() | wanted.keys()):
        before, now = found.get(name), wanted.get(name)
        if before != now:
            digests = all(_DIGEST.fullmatch(str(value)) for value in (before, now))
            named.append(
                f"{name} changed" if digests else f"{name} was {before!r} and is now {now!r}"
            )
    return "; ".join(named)


def remove(path: Path) -> None:
    """Remove a file, folder or link, if it is there; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put_in_place(made: Path, output: Path, *, overwrite: bool = False) -> None:
    """Give a finished file or folder its name, in one step.

    Parameters
    ----------
    made
        The file or folder, on the same file system.
    output
        The name.
    overwrite
        Replace what has the name.

    Raises
    ------
    FileExistsError
        If something has the name and is not to be replaced; ``made`` stays.
    """
    if overwrite:
        aside = made.with_name(f"{made.name}.replaced")
        if output.is_dir():  # no system renames over a folder that is not empty
            remove(aside)
            output.replace(aside)
        made.replace(output)
        remove(aside)
        return
    if not os.path.lexists(output):
        try:
            if made.is_file():
                os.link(made, output)  # unlike a renamed file, a link replaces nothing
            else:
                made.rename(output)
        except OSError:
            if not os.path.lexists(output):  # a file system without hard links
                made.replace(output)
                return
        else:
            made.unlink(missing_ok=True)
            return
    raise FileExistsError(
        f"{output} appeared during the run and is left as it is; the results are kept in {made}. "
        "Move one of them, or repeat the call with overwrite=True to replace it."
    )


def _locked(path: Path, output: Path) -> Any:
    """Return an open file that keeps other processes out; a process that dies lets go of it."""
    file = path.open("w")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(file.fileno()).st_nlink:  # its owner has just removed it
            raise BlockingIOError
    except ImportError:  # Windows
        return file
    except BlockingIOError as error:
        file.close()
        raise BlockingIOError(
            errno.EAGAIN,
            f"Another process writes the results for {output} at this moment; wait for it, or "
            "choose another output=. Several processes share a run through a dask client",
        ) from error
    except OSError:  # a file system without locks
        return file
    return file


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
        with reraise_disk_full(self.path):
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
        with reraise_disk_full(self.path):
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
        with reraise_disk_full(self.path):
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
def reraise_disk_full(path: Path) -> Iterator[None]:
    """Re-raise disk-full errors with what to do; finished chunks are kept."""
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
    """Return the number of an error that means a full disk."""
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
