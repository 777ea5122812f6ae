"""A small screen with a known answer, shared by the tests of the drug screen."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

#: Genes that the invented virus raises and lowers.
UP = [f"GENE{i}" for i in range(30)]
DOWN = [f"GENE{i}" for i in range(30, 60)]
N_GENES = 400


def profiles(seed: int = 0) -> ad.AnnData:
    """Three profiles of virus A, with planted genes, and one of virus B, with none."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(0, 0.3, size=(4, N_GENES)).astype(np.float32)
    effects[:3, :30] += 2
    effects[:3, 30:60] -= 2
    obs = pd.DataFrame({"virus": ["A", "A", "A", "B"]}, index=[f"p{i}" for i in range(4)])
    return ad.AnnData(effects, obs=obs, var=pd.DataFrame(index=[f"GENE{i}" for i in range(400)]))


def signatures(n_random: int = 20) -> pd.DataFrame:
    """A compound that reverses virus A, one that mimics it, and random ones."""
    rng = np.random.default_rng(1)
    lists = {"Reverser": (DOWN[:20], UP[:20]), "mimic": (UP[10:], DOWN[10:])}
    for i in range(n_random):
        drawn = [f"GENE{g}" for g in rng.choice(np.arange(60, N_GENES), 40, replace=False)]
        lists[f"random{i}"] = (drawn[:20], drawn[20:])
    frames = [
        pd.DataFrame({"compound": name, "gene": genes, "direction": direction})
        for name, (up, down) in lists.items()
        for genes, direction in ((up, "up"), (down, "down"))
    ]
    return pd.concat(frames, ignore_index=True)


def targets() -> pd.DataFrame:
    """Targets: of one compound without a signature, one with, and one that is no host factor."""
    pairs = {
        "blocker": ["GENE100", "GENE101", "GENE102"],
        "REVERSER": ["GENE103", "GENE300"],
        "dud": ["GENE301", "GENE302"],
        "other": [f"GENE{i}" for i in range(303, 330)],
        "unscored": ["GENE9999"],
    }
    rows = [(name, gene) for name, genes in pairs.items() for gene in genes]
    return pd.DataFrame(rows, columns=["drug", "gene"])


def host_factors(groups: tuple[str, ...] = ("A", "B")) -> pd.DataFrame:
    """Host factors as cfm.tl.host_factors stores them: genes 100 to 109 come first."""
    score = np.linspace(1, 0, N_GENES)
    order = [*range(100, 110), *range(100), *range(110, N_GENES)]
    genes = [f"GENE{i}" for i in order]
    frames = [
        pd.DataFrame({"group": g, "gene": genes, "score": score, "rank": range(1, N_GENES + 1)})
        for g in groups
    ]
    out = pd.concat(frames, ignore_index=True)
    out.index = out.index.astype(str)
    return out


def results(adata: ad.AnnData, group: str = "A", key: str = "drug_screen") -> pd.DataFrame:
    """Results of one group by compound."""
    table = adata.uns[key]["results"]
    return table[table["group"] == group].set_index("compound")
