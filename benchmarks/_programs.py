"""What the benchmark of gene programs computes: gene sets, modules, simulated contrasts."""

from __future__ import annotations

import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from cfm.stats._enrichment import benjamini_hochberg
from cfm.stats._gene_modules import concordance, leiden, modules, nearest_neighbour_graph
from cfm.tl._gene_programs._find import PRIOR_PROFILES

#: Sizes, among the genes of a graph, of the gene sets that are tried.
SET_SIZES = (5, 500)


def load_gene_sets(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Read Hallmark, Reactome and the regulons of DoRothEA (confidence A to C)."""
    networks = folder / "networks"
    canonical = _read_gmt(gzip.decompress((networks / "c2cp.gmt.gz").read_bytes()).decode())
    regulons = pd.read_csv(networks / "dorothea_ABC.csv.gz")
    return {
        "Hallmark": _read_gmt((networks / "hallmark.gmt").read_text()),
        "Reactome": {k: v for k, v in canonical.items() if k.startswith("REACTOME_")},
        "TF regulons": {str(k): list(v) for k, v in regulons.groupby("tf")["target"]},
    }


def _read_gmt(text: str) -> dict[str, list[str]]:
    rows = [line.split("\t") for line in text.splitlines()]
    return {row[0]: row[2:] for row in rows}


def set_matrix(genes: pd.Index, sets: dict[str, list[str]]) -> tuple[np.ndarray, list[str]]:
    """Return ``(sets, genes)`` membership of the sets of a fitting size, and their names."""
    member = {name: genes.isin(listed) for name, listed in sets.items()}
    kept = [n for n, m in member.items() if SET_SIZES[0] <= m.sum() <= SET_SIZES[1]]
    return np.array([member[n] for n in kept], dtype=np.float32), kept


def best_sets(programs: list[np.ndarray], member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each module, the position of its best set and that set's false-discovery rate.

    Hypergeometric test among the genes of the graph, Benjamini-Hochberg over sets in a module.
    """
    size, n = member.sum(axis=1), member.shape[1]
    best, rates = [], []
    for genes in programs:
        overlap = member[:, genes].sum(axis=1)
        fdr = benjamini_hochberg(hypergeom.sf(overlap - 1, n, size, len(genes)))
        best.append(int(fdr.argmin()))
        rates.append(float(fdr.min()))
    return np.array(best), np.array(rates)


def correlation(effects: np.ndarray) -> np.ndarray:
    """Pearson correlation of genes over profiles, ``NaN`` as 0; 0 for genes that never vary."""
    x = np.nan_to_num(effects)
    x = x - x.mean(axis=0)
    x /= np.maximum(np.linalg.norm(x, axis=0), 1e-9)
    return x.T @ x


def same_direction(effects: np.ndarray) -> np.ndarray:
    """Return the factor of the tool's similarities, near 1 if two genes always move alike."""
    signs = np.sign(np.nan_to_num(effects))
    return (1.0 + signs.T @ signs / (len(signs) + PRIOR_PROFILES)) / 2.0


def matched_modules(
    similarity: np.ndarray, n_modules: int, *, n_neighbors: int, min_size: int, seed: int = 0
) -> list[np.ndarray]:
    """Cut the tool's graph of a similarity at the resolution that gives ``n_modules`` modules."""
    edges = nearest_neighbour_graph(similarity, n_neighbors)
    low, high = 0.02, 50.0
    closest: list[np.ndarray] = []
    for _ in range(14):
        resolution = float(np.sqrt(low * high))
        found = modules(leiden(edges, resolution=resolution, seed=seed), min_size)
        if abs(len(found) - n_modules) < abs(len(closest) - n_modules):
            closest = found
        if len(found) == n_modules:
            break
        low, high = (resolution, high) if len(found) < n_modules else (low, resolution)
    return closest


def random_modules(programs: list[np.ndarray], n_genes: int, seed: int = 0) -> list[np.ndarray]:
    """Return modules of the same sizes with random genes."""
    shuffled = np.random.default_rng(seed).permutation(n_genes)
    return [shuffled[genes] for genes in programs]


def mean_coherence(programs: list[np.ndarray], effects: np.ndarray) -> float:
    """Mean over modules of the share of gene pairs that move the same way."""
    return float(np.nanmean([concordance(effects[:, genes]) for genes in programs]))


def planted_contrasts(
    n_profiles: int,
    seed: int,
    *,
    n_modules: int = 8,
    size: int = 40,
    n_background: int = 180,
    signal: float = 0.6,
    n_studies: int = 6,
) -> tuple[ad.AnnData, np.ndarray]:
    r"""Simulate contrasts in which modules of genes move together.

    The effect of gene :math:`g` of module :math:`m` in profile :math:`i` is
    :math:`s\,a_{im} w_g + \varepsilon_{ig}`, with activities :math:`a`, loadings
    :math:`w \in (0.5, 1.5)` and noise standard normal; background genes are noise alone.

    Returns
    -------
    Contrasts, ``obs["study"]``, and the module of each gene, −1 for the background.
    """
    rng = np.random.default_rng(seed)
    module = np.r_[np.repeat(np.arange(n_modules), size), np.full(n_background, -1)]
    # loadings belong to the genes: the same whatever the seed of the profiles
    loading = np.random.default_rng(0).uniform(0.5, 1.5, len(module)) * (module >= 0)
    activity = rng.standard_normal((n_profiles, n_modules))
    effects = signal * activity[:, np.maximum(module, 0)] * loading
    effects += rng.standard_normal(effects.shape)
    genes = pd.Index([f"G{i:03d}" for i in range(len(module))])
    study = [f"study{i % n_studies}" for i in range(n_profiles)]
    obs = pd.DataFrame({"study": study}, index=[f"profile{i}" for i in range(n_profiles)])
    return ad.AnnData(effects.astype(np.float32), obs=obs, var=pd.DataFrame(index=genes)), module
