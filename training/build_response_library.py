"""Build the contrasts that `cfm.datasets.response_library` reads.

``python -m training.build_response_library --data DATA [--exclude STUDY …] [--output FILE]``

Three sources, over the genes of the training corpus:

- contrasts of :func:`training.corpus.build_corpus`: human infections and stimuli that are whole
  and usable. Contrasts computed here from counts come first; published fold changes are taken of
  studies without counts, and only where their repository states an open licence (`LICENCES`);
- the profiles of CytoSig (also through the corpus);
- the pairs of up and down sets of ImmuneSigDB. Where the name tells a control and one stimulus,
  the pair is turned so that genes up in the stimulus are 1.

A study can be left out, with all that was made of it: the demonstration must not search itself.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Collection
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem

from benchmarks._studies import ACCESSIONS, load_signed_sets
from training._responses import read_set_responses
from training.corpus import build_corpus, default_genes

OUTPUT = Path(__file__).resolve().parents[1] / "src/cfm/datasets/files/response_library.h5ad"
#: Published fold changes that may be passed on: study and the licence of its repository.
LICENCES = {
    "GSE13485": "GPL-3",
    "ONeill2021_monocyte_IAV": "MIT",
    "agecov": "MIT",
    "Hill2017_HIO": "GPL-3",
    "CytoSig": "GPL-3",
}
_COLUMNS = ["study", "organism", "tissue", "stimulus", "response", "time_h", "source", "licence"]
#: The effect of 1 is that of the gene at this place of a contrast.
N_TOP = 1000
#: Larger effects are cut off.
LARGEST = 40.0
#: Effects x are stored as round(130 x / (1 + |x|)), 1 as 65, and NaN as -128.
SCALE, NOT_MEASURED = 130, -128


def build_library(
    data: Path, genes: pd.Index | None = None, *, exclude: Collection[str] = (), sets: bool = True
) -> ad.AnnData:
    """Return the library: ``X`` float32, relative effects, NaN = not measured.

    Parameters
    ----------
    data
        The data folder.
    genes
        Columns; those of the corpus by default.
    exclude
        Studies to leave out, with the gene sets made of them.
    sets
        Whether to add the pairs of ImmuneSigDB.
    """
    genes = default_genes(data) if genes is None else genes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        corpus = build_corpus(data, genes)
    parts = [_contrasts(corpus, exclude)]
    if sets:
        parts.append(_set_pairs(data, genes, exclude))
    obs = pd.concat([part.obs for part in parts])
    for column in _COLUMNS:
        if column != "time_h":
            obs[column] = pd.Categorical(obs[column].astype(str))
    x = np.vstack([part.X for part in parts])
    return ad.AnnData(x, obs=obs[_COLUMNS], var=pd.DataFrame(index=genes))


def _contrasts(corpus: ad.AnnData, exclude: Collection[str]) -> ad.AnnData:
    """Select the human contrasts of the corpus, each experiment once, with relative effects."""
    obs = corpus.obs
    study = obs["study"].astype(str)
    usable = obs["usable"].astype(bool) & obs["whole"].astype(bool) & (obs["host"] == "human")
    usable &= (obs["kind"] != "null") & ~study.isin(list(exclude))
    counts = usable & (obs["source"] == "counts")
    # What is published of a study whose counts are here is the same experiment again.
    published = usable & ~counts & ~study.isin(set(study[counts])) & study.isin(LICENCES.keys())
    chosen = np.flatnonzero(counts | published)
    taken = obs.iloc[chosen]
    from_counts = (taken["source"] == "counts").to_numpy()
    names = taken["study"].astype(str).to_numpy()
    sources = np.where(from_counts, "counts", "published fold changes")
    sources[names == "CytoSig"] = "CytoSig"
    table = pd.DataFrame(
        {
            "study": names,
            "organism": "human",
            "tissue": taken["tissue"].astype(str).to_numpy(),
            "stimulus": taken["agent"].astype(str).to_numpy(),
            "response": taken["response"].astype(str).to_numpy(),
            "time_h": pd.to_numeric(taken["time_h"].astype(str), errors="coerce").to_numpy(float),
            "source": sources,
            "licence": [
                "computed here from a public count table" if own else LICENCES[name]
                for own, name in zip(from_counts, names, strict=True)
            ],
        },
        index=taken.index.astype(str),
    )
    return ad.AnnData(_relative(corpus.X[chosen]), obs=table, var=corpus.var[[]])


def _relative(effects: np.ndarray) -> np.ndarray:
    """Divide each row by the size of its 1,000th largest effect."""
    size = np.sort(np.abs(np.nan_to_num(effects)), axis=1)[:, ::-1]
    # Contrasts of few genes: the middle one of those that move.
    place = np.clip(np.count_nonzero(size, axis=1) // 2, 1, N_TOP) - 1
    limit = np.take_along_axis(size, place[:, None], axis=1)
    return np.clip(effects / np.maximum(limit, 1e-30), -LARGEST, LARGEST).astype(np.float32)


def _set_pairs(data: Path, genes: pd.Index, exclude: Collection[str]) -> ad.AnnData:
    """Return the pairs of ImmuneSigDB as -1, 0 and 1."""
    accessions = {a for s in exclude for a in (s, *ACCESSIONS.get(s, ()))}
    sets = load_signed_sets(data, genes, ("immunesigdb",)).without_studies(accessions)
    known = read_set_responses(data).reindex(sets.names)
    turned = (known["sign"] == -1).to_numpy()
    rows = sets.matrix.toarray()
    rows[turned] *= -1
    names = sets.names.astype(str)
    table = pd.DataFrame(
        {
            "study": [name.split("_", 1)[0] for name in names],
            "organism": "human or mouse",
            "tissue": "",
            "stimulus": names,
            "response": known["response"].fillna("").to_numpy(),
            "time_h": np.nan,
            "source": "ImmuneSigDB",
            "licence": "CC-BY-4.0",
        },
        index=[n + " (turned)" if t else n for n, t in zip(names, turned, strict=True)],
    )
    return ad.AnnData(rows, obs=table, var=pd.DataFrame(index=genes))


def pack(library: ad.AnnData) -> ad.AnnData:
    """Return the library with effects as whole numbers, in sparse rows."""
    effects = np.nan_to_num(library.X)
    values = np.round(SCALE * effects / (1 + np.abs(effects))).astype(np.int8)
    values[np.isnan(library.X)] = NOT_MEASURED
    return ad.AnnData(sp.csr_matrix(values), obs=library.obs, var=library.var)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--exclude", nargs="*", default=[], metavar="STUDY")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    library = build_library(args.data, exclude=args.exclude)
    packing = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
    with h5py.File(args.output, "w") as file:
        write_elem(file, "/", pack(library), dataset_kwargs=packing)
    print(library.obs.groupby(["source", "response"], observed=True).size().to_string())
    print(f"{args.output.name}: {library.shape}, {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
