"""A copy of an input file with results in it; matrices are copied a part at a time."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import h5py
from anndata.io import read_elem, write_elem

from cfm._tables import text_is_written

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Values that are copied at a time.
_AT_ONCE = 4_000_000


def keep_input(source: Path, results: Path, made: Path) -> None:
    """Copy ``source`` to ``made`` and put the results in.

    Parameters
    ----------
    source
        The input, ``.h5ad`` or ``.zarr``.
    results
        ``obs``, ``uns``, ``obsm`` and ``layers`` of the same rows, a file of the same kind.
    made
        What is made; must not exist.
    """
    if source.is_dir():
        # contents only: an input may be read-only
        shutil.copytree(source, made, copy_function=shutil.copyfile)
        for folder, _, _ in os.walk(made):
            os.chmod(folder, os.stat(folder).st_mode | stat.S_IRWXU)
    else:
        shutil.copyfile(source, made)
    with _opened(made, "r+") as target, _opened(results, "r") as found, text_is_written():
        for slot in ("obsm", "layers"):
            if slot not in target:
                write_elem(target, slot, {})
            for name in list(found[slot]):
                _copy(found[slot][name], target[slot], name)
        for slot in ("obs", "uns"):
            write_elem(target, slot, read_elem(found[slot]))
        if source.is_dir():
            import zarr

            zarr.consolidate_metadata(target.store)


def _copy(element: Any, group: Any, name: str) -> None:
    """Copy an element, replacing what has its name."""
    if not hasattr(element, "shape"):  # a table
        write_elem(group, name, read_elem(element))
        return
    if name in group:
        del group[name]
    make = getattr(group, "create_array", None) or group.create_dataset
    out = make(name, shape=element.shape, dtype=element.dtype, chunks=element.chunks)
    out.attrs.update(dict(element.attrs))
    step = max(1, _AT_ONCE // max(1, int(element.shape[1])))
    for start in range(0, element.shape[0], step):
        out[start : start + step] = element[start : start + step]


@contextmanager
def _opened(path: Path, mode: Literal["r", "r+"]) -> Iterator[Any]:
    if path.is_dir():
        import zarr

        # what is written has to be seen at once, not what a summary says
        yield zarr.open_group(str(path), mode=mode, use_consolidated=False)
    else:
        with h5py.File(path, mode) as file:
            yield file
