"""Reads damaged copies of files, in a process of its own: ``python -m tests._damaged_files``."""

import faulthandler
import json
import logging
import resource
import sys
import traceback
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cfm.data import open_files
from cfm.data._matrix import get_matrix, row_blocks, to_dense

#: What a case may take: memory (GiB) beyond what is taken at the start, and seconds.
MEMORY, SECONDS = 2, 20
N_ROWS, N_GENES = 24, 15


def toy(kind) -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(rng.choice(["a", "b"], N_ROWS)),
            "size": rng.random(N_ROWS),
        },
        index=[f"cell{i}" for i in range(N_ROWS)],
    )
    var = pd.DataFrame({"length": rng.integers(1, 9, N_GENES)}, [f"G{i}" for i in range(N_GENES)])
    counts = rng.poisson(0.7, size=(N_ROWS, N_GENES)).astype(np.float32)
    adata = ad.AnnData(kind(counts), obs=obs, var=var, uns={"made": {"by": "test"}})
    adata.layers["two"] = kind(2 * counts)
    adata.obsm["X_pca"] = rng.random((N_ROWS, 3))
    return adata


#: Files, and what is stored and compressed in them how; zarr is slow to read.
SOURCES = {
    "csr.h5ad": (sparse.csr_matrix, None),
    "csr_gzip.h5ad": (sparse.csr_matrix, "gzip"),
    "csc.h5ad": (sparse.csc_matrix, None),
    "dense.h5ad": (np.asarray, None),
    "csr.zarr": (sparse.csr_matrix, None),
    "csc_gzip.h5ad": (sparse.csc_matrix, "gzip"),
    "dense_gzip.h5ad": (np.asarray, "gzip"),
    "csc.zarr": (sparse.csc_matrix, None),
}


def write_sources(folder: Path) -> list[Path]:
    for name, (kind, compression) in SOURCES.items():
        if name.endswith(".zarr"):
            toy(kind).write_zarr(folder / name)
        else:
            toy(kind).write_h5ad(folder / name, compression=compression)
    return [folder / name for name in SOURCES]


def damage(stored: Path, rng: np.random.Generator) -> tuple[str, Path, bytes]:
    """Get a bit, a byte or eight of a file wrong, or cut it; return how to undo it."""
    files = [path for path in sorted(stored.rglob("*")) if path.is_file()] or [stored]
    size = np.array([path.stat().st_size for path in files])
    file = files[rng.choice(len(files), p=size / size.sum())]
    content = file.read_bytes()
    wrong = bytearray(content)
    at = int(rng.integers(len(content)))
    how = str(rng.choice(["bit", "byte", "eight", "cut"], p=[0.6, 0.15, 0.15, 0.1]))
    if how == "bit":
        wrong[at] ^= 1 << int(rng.integers(8))
    elif how == "byte":
        wrong[at] = int(rng.integers(256))
    elif how == "eight":
        wrong[at : at + 8] = b"\xff" * len(wrong[at : at + 8])
    file.write_bytes(wrong[:at] if how == "cut" else wrong)
    return f"{stored.name}: {how} of {file.name} at {at}", file, content


def read(path: Path) -> None:
    """Read everything, as tools do."""
    adata = open_files(path)
    for layer in (None, *adata.layers):
        if layer is not None or adata.X is not None:
            for _, block in row_blocks(get_matrix(adata, layer=layer)):
                to_dense(block)
    adata[[3, 1]].to_memory()


def outcome(path: Path) -> str:
    try:
        read(path)
    except (OSError, ValueError) as error:
        ours = str(path) in str(error)
        return "refused" if ours else f"does not name the file: {traceback.format_exc()}"
    except Exception:  # noqa: BLE001 - the test looks at all of them
        return traceback.format_exc()
    return "read"


def write(line: list) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(folder: Path, n_cases: int, seed: int) -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    sources = write_sources(folder)
    rng = np.random.default_rng(seed)
    for path in sources:
        assert outcome(path) == "read", outcome(path)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for i in range(n_cases):
        path = sources[i % len(sources)]
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        case, file, content = damage(path, rng)
        write([i, case])  # so that it is known of a case that ends this process
        write([i, case, outcome(path)])
        file.write_bytes(content)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
