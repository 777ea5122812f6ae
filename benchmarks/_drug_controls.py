"""Controls of the drug screen: treatments that are known to be one of the compounds."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import cfm
from benchmarks._drug_data import Compounds
from benchmarks._drug_scores import Space, against_chance, rank_auroc, reversal_scores
from benchmarks._report import Report

CYTOKINES = ("TNFA", "IL1A", "IL1B", "IFNG", "IL6", "IL17A", "IFN1")
#: Inhibitors of histone deacetylases among the compounds.
HDAC = (
    "HC toxin", "MS-275", "scriptaid", "sodium phenylbutyrate", "trichostatin A", "valproic acid",
    "vorinostat",
)  # fmt: skip
RETINOIDS = ("isotretinoin", "tretinoin", "TTNPB")
#: ImmuneSigDB contrasts "untreated against treated", which the drug should reverse; −1: the other
#: way round.
TREATMENTS = {
    "glucocorticoid": {
        "GSE5463_CTRL_VS_DEXAMETHASONE_TREATED_THYMOCYTE": 1,
        "GSE7568_IL4_VS_IL4_AND_DEXAMETHASONE_TREATED_MACROPHAGE": 1,
        "GSE7568_IL4_TGFB_DEXAMETHASONE_VS_IL4_TGFB_TREATED_MACROPHAGE": -1,
    },
    "PPARG agonist": {
        "GSE25123_CTRL_VS_ROSIGLITAZONE_STIM_MACROPHAGE": 1,
        "GSE25088_CTRL_VS_ROSIGLITAZONE_STIM_MACROPHAGE": 1,
        "GSE22033_UNTREATED_VS_ROSIGLITAZONE_TREATED_MEF": 1,
        "GSE16385_UNTREATED_VS_12H_ROSIGLITAZONE_TREATED_MACROPHAGE": 1,
    },
    "HDAC inhibitor": {
        "GSE15930_STIM_VS_STIM_AND_TRICHOSTATINA_24H_CD8_T_CELL": 1,
        "GSE15930_STIM_VS_STIM_AND_TRICHOSTATINA_48H_CD8_T_CELL": 1,
        "GSE15930_STIM_VS_STIM_AND_TRICHOSTATINA_72H_CD8_T_CELL": 1,
    },
    "retinoid": {
        "GSE20500_CTRL_VS_RETINOIC_ACID_TREATED_CD4_TCELL": 1,
        "GSE19401_UNSTIM_VS_RETINOIC_ACID_STIM_FOLLICULAR_DC": 1,
        "GSE13306_RA_VS_UNTREATED_TCONV": -1,
    },
}
#: Drugs whose signature, turned round, is screened for: others of their class should come first.
TURNED = {
    "trichostatin A": "HDAC inhibitor",
    "dexamethasone": "glucocorticoid",
    "salbutamol": "beta-2 agonist",
    "estradiol": "estrogen",
    "rosiglitazone": "PPARG agonist",
}


def class_members(compounds: Compounds) -> dict[str, np.ndarray]:
    """Compounds by class, ``(n,)`` bool each."""
    return {
        "glucocorticoid": compounds.mechanism("NR3C1 agonist"),
        "PPARG agonist": compounds.mechanism("PPARG agonist"),
        "beta-2 agonist": compounds.mechanism("ADRB2 agonist"),
        "estrogen": compounds.mechanism("ESR1 agonist"),
        "HDAC inhibitor": compounds.members(HDAC),
        "retinoid": compounds.members(RETINOIDS),
    }


def controls(report: Report, data: Path, compounds: Compounds, space: Space) -> None:
    """Turned drugs, treated cells, and glucocorticoids against cytokines."""
    members = class_members(compounds)
    _turned(report, compounds, members)
    _treated(report, data, compounds, space, members)
    _cytokines(report, data, compounds, space, members["glucocorticoid"])


def _turned(report: Report, compounds: Compounds, members: dict[str, np.ndarray]) -> None:
    weights = compounds.weights
    profiles = ad.AnnData(
        -weights.loc[list(TURNED)].to_numpy(np.float32),
        obs=pd.DataFrame({"drug": list(TURNED)}, index=list(TURNED)),
        var=pd.DataFrame(index=weights.columns),
    )
    table = cfm.datasets.cmap_signatures()
    rows = []
    for readings in (("cosine",), ("connectivity",), ("connectivity", "model")):
        model = "cellpulse-mini" if "model" in readings else None
        cfm.tl.screen_drugs(profiles, table, groupby="drug", model=model, readings=readings)
        results = profiles.uns["drug_screen"]["results"]
        for drug, name in TURNED.items():
            found = results[results["group"] == drug].set_index("compound")
            others = [c for c in weights.index[members[name]] if c != drug]
            hits = found.loc[others].sort_values("rank")
            rows.append(
                {
                    "reversed": drug,
                    "readings": " + ".join(readings),
                    "own rank": int(found.loc[drug, "rank"]),
                    "class": f"{name} ({len(others)} others)",
                    "first other": f"{hits.index[0]} ({hits['rank'].iloc[0]})",
                    "others in first 1 %": int((hits["rank"] <= len(found) // 100).sum()),
                    "others with FDR ≤ 0.05": int((hits["fdr"] <= 0.05).sum()),
                    "all with FDR ≤ 0.05": int((found["fdr"] <= 0.05).sum()),
                }
            )
    report.table(
        "turned",
        pd.DataFrame(rows),
        "Control: a drug's profile turned round, screened with all 1,309 compounds",
    )
    report.text(
        "These profiles are consensus weights, 0 for most genes, which few random sets meet: the "
        "running sum of the connectivity then reaches far by chance, and few of its p-values are "
        "small."
    )


def _treated(
    report: Report,
    data: Path,
    compounds: Compounds,
    space: Space,
    members: dict[str, np.ndarray],
) -> None:
    table = pd.read_csv(data / "signed_sets" / "immunesigdb_up_down.csv.gz")
    rows = []
    for name, signs in TREATMENTS.items():
        chosen = table[table["set_pair"].isin(signs)]
        lacking = set(signs) - set(chosen["set_pair"])
        if lacking:
            raise ValueError(f"ImmuneSigDB lacks {sorted(lacking)}.")
        values = chosen["direction"] * chosen["set_pair"].map(signs)
        queries = chosen.assign(value=values).pivot_table(
            index="set_pair", columns="gene", values="value", aggfunc="sum", fill_value=0.0
        )
        absent = compounds.weights.columns.difference(queries.columns)
        queries = queries.reindex(columns=[*queries.columns, *absent], fill_value=0.0)
        for method, scores in reversal_scores(queries, compounds, space).items():
            chance = against_chance(scores, members[name])
            label = f"{name} ({int(members[name].sum())}), {len(signs)} contrasts"
            rows.append({"treatment": label, "method": method, **chance})
    report.table(
        "treated",
        pd.DataFrame(rows),
        "Control: untreated against treated immune cells of other studies (ImmuneSigDB), reversed "
        "by compounds of the treatment's class; mean AUROC among all compounds",
    )
    outside = [f"{r['treatment']}, {r['method']}" for r in rows if r["p"] < 0.01]
    report.text(
        f"Outside chance (two-sided p < 0.01): {'; '.join(outside) or 'nothing'}. The signatures "
        "are of cancer cell lines after hours: that they carry over to other cells has to be "
        "shown, not assumed."
    )


def _cytokines(
    report: Report, data: Path, compounds: Compounds, space: Space, steroids: np.ndarray
) -> None:
    table = pd.read_csv(data / "signed_sets" / "cytosig.csv.gz", index_col=0)
    found = reversal_scores(table[list(CYTOKINES)].T, compounds, space)
    rows = []
    for name, scores in found.items():
        chance = against_chance(scores, steroids)
        each = dict(zip(CYTOKINES, rank_auroc(scores, steroids), strict=True))
        rows.append({"method": name, **each, "mean": chance.pop("AUROC"), **chance})
    report.table(
        "steroids",
        pd.DataFrame(rows),
        f"Control: {steroids.sum()} glucocorticoids reverse cytokine signatures (CytoSig), AUROC "
        "among all compounds; chance: as many random compounds",
    )
