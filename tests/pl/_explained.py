"""AnnData with host factors, gene programs and a drug screen, made up from their columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

DIRECTIONS = np.array(["down", "unchanged", "up"], dtype=object)


def profiles(n: int = 6, genes: int = 40, seed: int = 0, name: str = "GENE{}") -> AnnData:
    """``n`` profiles of two groups by ``genes`` genes."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {"virus": pd.Categorical([("IAV", "RSV")[i % 2] for i in range(n)])},
        index=[f"series{i}|{('IAV', 'RSV')[i % 2]}_vs_none" for i in range(n)],
    )
    var = pd.DataFrame(index=[name.format(i) for i in range(genes)])
    return AnnData(rng.normal(size=(n, genes)).astype(np.float32), obs=obs, var=var)


def with_host_factors(
    genes: int = 40,
    groups: tuple[str, ...] = ("IAV",),
    *,
    tied: bool = False,
    null: bool = True,
    seed: int = 0,
    name: str = "GENE{}",
) -> AnnData:
    """Host factors of each group; the first three genes have a low FDR."""
    rng = np.random.default_rng(seed)
    adata = profiles(6, genes, seed, name)
    tables = []
    for group in groups:
        score = np.ones(genes) if tied else np.sort(rng.exponential(size=genes))[::-1]
        effect = np.round(rng.normal(scale=2, size=genes), 3)
        effect[4::7] = 0.0
        p = np.linspace(1e-4, 1, genes)
        tables.append(
            pd.DataFrame(
                {
                    "group": group,
                    "explained": group,
                    "gene": rng.permutation(adata.var_names.to_numpy(dtype=object)),
                    "score": score,
                    "rank": np.arange(1, genes + 1),
                    "direction": DIRECTIONS[np.sign(effect).astype(int) + 1],
                    "effect": effect,
                    "concordance": rng.uniform(0.5, 1, size=genes),
                    "call_effect": rng.normal(size=genes),
                    "p_value": p if null else np.nan,
                    "fdr": np.where(np.arange(genes) < 3, 0.01, 0.3) if null else np.nan,
                    "n_profiles": 3 if null else 1,
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    table.index = table.index.astype(str)
    adata.uns["host_factors"] = {"params": {"method": "consensus"}, "results": table}
    return adata


def with_gene_programs(
    sizes: tuple[int, ...] = (8, 6, 5),
    profiles_: int = 6,
    *,
    groups: tuple[str, ...] = ("all",),
    seed: int = 0,
    name: str = "GENE{}",
) -> AnnData:
    """Programs of the given sizes in each group; genes of a program move together in ``X``."""
    rng = np.random.default_rng(seed)
    adata = profiles(profiles_, max(sum(sizes) + 5, 10), seed, name)
    values = np.array(adata.X) * 0.3
    programs, genes, edges = [], [], []
    for group in groups:
        start = 0
        for p, size in enumerate(sizes):
            program = f"P{p + 1}" if len(groups) == 1 else f"{group}:P{p + 1}"
            members = adata.var_names[start : start + size]
            sign = np.where(rng.uniform(size=size) < 0.2, -1, 1) * (1 if p % 2 == 0 else -1)
            activity = rng.uniform(0.5, 2, size=(profiles_, 1))
            values[:, start : start + size] += activity * sign
            direction = "up" if (sign > 0).all() else "down" if (sign < 0).all() else "mixed"
            stability = rng.uniform(0.4, 1) if profiles_ > 1 else np.nan
            programs.append(
                {
                    "program": program, "group": group, "size": size, "direction": direction,
                    "coherence": rng.uniform(0.6, 1), "stability": stability,
                    "cohesion": rng.uniform(0.3, 0.9), "p_value": 0.01,
                    "fdr": 0.01 if p == 0 else 0.2,
                }
            )  # fmt: skip
            weight = np.sort(rng.uniform(0.1, 1, size=size))[::-1]
            for i, gene in enumerate(members):
                genes.append(
                    {
                        "program": program, "gene": gene, "weight": weight[i],
                        "sign": int(sign[i]), "effect": float(sign[i]), "rank": i + 1,
                    }
                )  # fmt: skip
            for i in range(size):
                for j in range(i + 1, size):
                    if j == i + 1 or rng.uniform() < 4 / size:
                        edges.append((members[i], members[j], rng.uniform(), program, program))
            if p:
                other = adata.var_names[start - 1]
                before = programs[-2]["program"]
                edges.append((members[0], other, 0.2, program, before))
            start += size
    frame = pd.DataFrame(edges, columns=["gene_a", "gene_b", "weight", "program_a", "program_b"])
    frame["group"] = groups[0]
    frame.index = frame.index.astype(str)
    members_ = pd.DataFrame(genes)
    members_.index = members_.index.astype(str)
    adata.X = values.astype(np.float32)
    adata.uns["gene_programs"] = {
        "params": {"model": "cellpulse-mini"},
        "programs": pd.DataFrame(programs).set_index("program"),
        "genes": members_,
        "edges": frame,
    }
    return adata


def with_drug_screen(
    compounds: int = 60,
    groups: tuple[str, ...] = ("IAV",),
    *,
    tied: bool = False,
    null: bool = True,
    seed: int = 0,
    name: str = "compound-{}",
) -> AnnData:
    """A screen in which the first two compounds are significant and some lack evidence."""
    rng = np.random.default_rng(seed)
    adata = profiles()
    tables = []
    for group in groups:
        reversal = np.clip(rng.normal(scale=0.4, size=compounds), -1, 1)
        target = rng.normal(size=compounds)
        score = np.zeros(compounds) if tied else np.sort(rng.normal(size=compounds))[::-1]
        reversal[3::5] = np.nan
        target[2::5] = np.nan
        fdr = np.where(np.arange(compounds) < 2, 0.01, 0.6) if null else np.nan
        tables.append(
            pd.DataFrame(
                {
                    "group": group,
                    "compound": [name.format(i) for i in range(compounds)],
                    "rank": np.arange(1, compounds + 1),
                    "score": score,
                    "p_value": np.linspace(0.001, 1, compounds) if null else np.nan,
                    "fdr": fdr,
                    "cosine_reversal": reversal / 3,
                    "reversal": reversal,
                    "embedding_reversal": reversal / 2,
                    "target_score": target,
                    "p_target": 0.4,
                    "n_signatures": np.where(np.isnan(reversal), 0, 3),
                    "n_targets": np.where(np.isnan(target), 0, 2),
                    "reversal_genes": "IFIT1|MX1",
                    "target_genes": "JAK1|JAK2",
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    table.index = table.index.astype(str)
    adata.uns["drug_screen"] = {"params": {"groupby": "virus"}, "results": table}
    return adata
