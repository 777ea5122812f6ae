"""The rows that a tool goes through: an AnnData, or files one after the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm.data._inputs import describe_files, matrix_identity, table_identity
from cfm.data._matrix import by_rows, get_matrix, in_memory_frame, read_rows
from cfm.data._takes_anndata import require_anndata
from cfm.models import PretrainedModel

#: What tools take as their first argument.
Data: TypeAlias = AnnData | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Chunk(NamedTuple):
    """Rows of one part: ``rows`` counted over all parts, ``own`` within it."""

    part: int
    rows: slice
    own: slice


@dataclass
class Rows:
    """What a tool goes through.

    Attributes
    ----------
    whole
        All rows as one AnnData.
    parts
        AnnDatas whose rows follow each other, each with the genes that it has.
    paths
        Files that were given; none if an AnnData was.
    given
        Whether an AnnData was given, not paths.
    """

    whole: AnnData
    parts: list[AnnData]
    paths: list[Path]
    given: bool

    def __post_init__(self) -> None:
        self._matrices: dict[tuple[int, str | None], Any] = {}
        self._obs: dict[int, pd.DataFrame] = {}

    @classmethod
    def of(cls, data: Data) -> Rows:
        """Take an AnnData as it is, or open files.

        Raises
        ------
        TypeError
            If it is neither.
        """
        if isinstance(data, str | os.PathLike):
            data = [data]
        if isinstance(data, AnnData) or not isinstance(data, Sequence):
            require_anndata(data)
            assert isinstance(data, AnnData)
            return cls(data, [data], [], given=True)
        wrong = [type(p).__name__ for p in data if not isinstance(p, str | os.PathLike)]
        if wrong or not data:
            raise TypeError(
                f"Found a list of {wrong[0] if wrong else 'nothing'}; expected an AnnData, a path, "
                "or a list of paths that end in .h5ad or .zarr."
            )
        from cfm.data import open_files

        paths = [Path(p) for p in data]
        parts = [open_files(path) for path in paths]
        whole = parts[0] if len(parts) == 1 else open_files(paths)
        return cls(whole, parts, paths, given=False)

    def chunks(self, size: int) -> list[Chunk]:
        """Cut the rows into chunks, none of which is of two parts."""
        chunks, first = [], 0
        for number, part in enumerate(self.parts):
            for start in range(0, part.n_obs, size):
                stop = min(start + size, part.n_obs)
                chunks.append(Chunk(number, slice(first + start, first + stop), slice(start, stop)))
            first += part.n_obs
        return chunks

    def matrix(self, part: int, layer: str | None) -> Any:
        """Return a matrix of a part, as it can be cut by rows."""
        if (part, layer) not in self._matrices:
            self._matrices[part, layer] = by_rows(get_matrix(self.parts[part], layer=layer))
        return self._matrices[part, layer]

    def obs(self, part: int) -> pd.DataFrame:
        """Return ``obs`` of a part, with the names that its rows have among all."""
        if part not in self._obs:
            frame = in_memory_frame(self.parts[part].obs)
            if len(self.parts) > 1:
                first = sum(p.n_obs for p in self.parts[:part])
                frame = frame.set_axis(self.whole.obs_names[first : first + len(frame)], axis=0)
            self._obs[part] = frame
        return self._obs[part]

    def read(self, chunk: Chunk, layers: Sequence[str | None]) -> AnnData:
        """Read the rows of a chunk, and only the matrices that are asked for."""
        rows = np.arange(chunk.own.start, chunk.own.stop)
        blocks = {name: read_rows(self.matrix(chunk.part, name), rows) for name in layers}
        return AnnData(
            blocks.pop(None, None),
            obs=self.obs(chunk.part).iloc[chunk.own],
            var=pd.DataFrame(index=self.parts[chunk.part].var_names),
            layers=blocks,
        )

    def identity(
        self, layers: Sequence[str | None], arguments: Mapping[str, Any]
    ) -> dict[str, str]:
        """Return what tells these data from others, by name.

        Parameters
        ----------
        layers
            Matrices that are read, ``None`` for ``X``.
        arguments
            Of the tool; columns of ``obs`` that they name are read, too.
        """
        found: dict[str, str] = {}
        files = [path.resolve() for path in self.paths]
        columns = [name for name in arguments.values() if isinstance(name, str)]
        for number, part in enumerate(self.parts):
            of = f" of part {number + 1}" if len(self.parts) > 1 else ""
            found[f"obs_names{of}"] = table_identity(part.obs_names)
            found[f"var_names{of}"] = table_identity(part.var_names)
            for name in set(columns) & set(part.obs.columns):
                found[f"obs[{name!r}]{of}"] = table_identity(self.obs(number)[name])
            for layer in layers:
                name = "X" if layer is None else f"layers[{layer!r}]"
                found[name + of], read = matrix_identity(self.matrix(number, layer))
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
