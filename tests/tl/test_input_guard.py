"""``output=`` is never a file that the AnnData reads from, whatever way it was opened."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

import cfm
from cfm.data import open_files
from cfm.data._inputs import input_files
from tests._toy import toy_contrasts, toy_model

N, GENES = 12, [f"G{i}" for i in range(8)]


def _data() -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"donor": pd.Categorical(list("aabb") * 3)}, index=[f"c{i}" for i in range(N)]
    )
    adata = ad.AnnData(
        sparse.csr_matrix(rng.poisson(1.0, (N, len(GENES))).astype(np.float32)),
        obs=obs,
        var=pd.DataFrame(index=GENES),
    )
    adata.layers["dense"] = adata.X.toarray()
    adata.obsm["X_pca"] = rng.random((N, 3))
    adata.obsp["graph"] = sparse.csr_matrix(np.eye(N))
    adata.raw = adata.copy()
    return adata


def _empty(**slots: Any) -> ad.AnnData:
    """An AnnData in memory but for what is given."""
    plain = _data()
    raw = slots.pop("raw", None)
    made = ad.AnnData(slots.pop("X", plain.X), obs=slots.pop("obs", plain.obs), var=plain.var)
    for slot, value in slots.items():
        getattr(made, slot)["x"] = value
    if raw is not None:
        made.raw = raw
    return made


def _h5(path: Path, key: str) -> h5py.Dataset:
    return h5py.File(path, "r")[key]


#: Everything that reads from an .h5ad file or a .zarr folder.
BOTH: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "text": str,
    "list of paths": lambda path: [path],
    "open_files": open_files,
    "view of open_files": lambda path: open_files(path)[::2],
    "view of a view": lambda path: open_files(path)[::2][:3],
    "layer of open_files": lambda path: _empty(layers=open_files(path).layers["dense"]),
    "obsm of open_files": lambda path: _empty(obsm=open_files(path).obsm["X_pca"]),
    "read_lazy": ad.experimental.read_lazy,
    "view of read_lazy": lambda path: ad.experimental.read_lazy(path)[2:5],
    "lazy obs": lambda path: _empty(obs=ad.experimental.read_lazy(path).obs),
    "lazy obsp": lambda path: _empty(obsp=ad.experimental.read_lazy(path).obsp["graph"]),
    "lazy uns": lambda path: _empty(uns=ad.experimental.read_lazy(path).X),
    "lazy raw": lambda path: _empty(raw=ad.experimental.read_lazy(path)),
    "changed lazy": lambda path: _empty(X=(ad.experimental.read_lazy(path).layers["dense"] + 1)),
}
OF_H5AD: dict[str, Callable[[Path], Any]] = {
    "backed": lambda path: ad.read_h5ad(path, backed="r"),
    "view of backed": lambda path: ad.read_h5ad(path, backed="r")[:3],
    "h5py": lambda path: _empty(layers=_h5(path, "layers/dense")),
    "h5py sparse": lambda path: _empty(X=ad.io.sparse_dataset(_h5(path, "X"))),
    "dask of h5py": lambda path: _empty(X=da.from_array(_h5(path, "layers/dense"))),
    "function of dask": lambda path: _empty(
        X=da.map_blocks(
            lambda block_info=None: _h5(path, "layers/dense")[...],
            chunks=((N,), (len(GENES),)),
            dtype=np.float32,
        )
    ),
}
OF_ZARR: dict[str, Callable[[Path], Any]] = {
    "zarr": lambda path: _empty(layers=zarr.open_group(path, mode="r")["layers/dense"]),
    "zarr sparse": lambda path: _empty(
        X=ad.io.sparse_dataset(zarr.open_group(path, mode="r")["X"])
    ),
    "dask of zarr": lambda path: _empty(X=da.from_zarr(str(path / "layers" / "dense"))),
}


def _bytes_of(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(str(f).encode() + f.read_bytes() for f in files)).hexdigest()


def _outputs(source: Path, folder: Path) -> dict[str, Path]:
    """Names that must not be written, all of which can be replaced."""
    link = folder / f"link{source.suffix}"
    link.symlink_to(source)
    found = {"same": source, "symlink": link, "dots": folder / "x" / ".." / source.name}
    (folder / "x").mkdir()
    if source.is_file():
        found["hard link"] = folder / "hard.h5ad"
        os.link(source, found["hard link"])
    else:
        found["inside"] = source / "out.zarr"
        found["deep inside"] = source / "layers" / "out.h5ad"
        found["inside, by a link"] = link / "out.zarr"
        outside = source / "elsewhere.h5ad"  # a link that lies in the folder
        outside.symlink_to(folder / "none.h5ad")
        found["link inside"] = outside
    found["containing"] = source.parent
    return found


@pytest.mark.parametrize(
    ("kind", "opened"),
    [(".h5ad", o) for o in (BOTH | OF_H5AD).items()]
    + [(".zarr", o) for o in (BOTH | OF_ZARR).items()],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_is_read_is_not_written(kind: str, opened: Any, tmp_path: Path) -> None:
    store = tmp_path / "all.zarr"
    store.mkdir()
    source = store / f"in{kind}"
    adata = _data()
    adata.write_zarr(source) if kind == ".zarr" else adata.write_h5ad(source)
    outputs = _outputs(source, store)
    before = _bytes_of(source)
    data = opened[1](source)
    for name, output in outputs.items():
        with pytest.raises(ValueError, match=r"which is read; choose another output="):
            cfm.tl.embed(data, "cellpulse-mini", output=output, overwrite=True)
        assert _bytes_of(source) == before, name
    assert not list(tmp_path.rglob(".*partial"))


def test_other_tools_and_what_they_read_besides(tmp_path: Path) -> None:
    source = tmp_path / "in.h5ad"
    _data().write_h5ad(source)
    opened = open_files(source)
    calls: list[Callable[..., Any]] = [
        lambda **k: cfm.tl.predict_virus(opened, groupby="donor", control="a", **k),
        lambda **k: cfm.tl.embed_donors(opened, "donor", use_rep="X_pca", **k),
        lambda **k: cfm.tl.cell_codes(_data(), reference=opened, **k),
        lambda **k: cfm.tl.impute(opened, "bulkformer-mini", **k),
        lambda **k: cfm.tl.predict_properties(opened, "cellvq-mini", **k),
    ]
    before = source.read_bytes()
    for call in calls:
        with pytest.raises(ValueError, match="which is read"):
            call(output=source, overwrite=True)
        assert source.read_bytes() == before


def test_a_matrix_that_had_to_be_loaded_keeps_its_file(tmp_path: Path) -> None:
    adata = ad.AnnData(sparse.csc_matrix(np.eye(4, dtype=np.float32)))
    adata.write_h5ad(tmp_path / "in.h5ad")
    with pytest.warns(UserWarning, match="stored by columns"):
        opened = open_files(tmp_path / "in.h5ad")
    assert input_files(opened) == [tmp_path / "in.h5ad"]


def test_what_lies_in_memory_reads_no_file(tmp_path: Path) -> None:
    source = tmp_path / "in.h5ad"
    _data().write_h5ad(source)
    adata = ad.read_h5ad(source)
    adata.uns["source"] = {"file": str(source), "files": [str(source), source.name]}
    adata.uns["lock"] = threading.Lock()  # what cannot be pickled is passed over
    assert input_files(adata, adata[3:], None, {"a": "table"}) == []
    found = cfm.tl.embed(toy_contrasts(), toy_model(), output=source, overwrite=True)
    assert "X_cellpulse" in found.obsm
