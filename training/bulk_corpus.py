"""The corpus of BulkFormer: log TPM of human bulk samples over one list of genes."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import cfm
from cfm.data import map_identifiers
from cfm.data._matrix import to_dense

#: Libraries with fewer reads say little of any but the most abundant genes.
MIN_COUNTS = 200_000
#: A gene is expressed in a table with a TPM of at least this in this share of its samples.
MIN_TPM = 1.0
MIN_SAMPLES = 0.1
#: As many as a checkpoint of some 7 MB has room for.
N_GENES = 4500
#: A gene counts by its variance in a group of samples, at most 1, and as expressed by this.
EXPRESSED = 0.1
#: Links of each gene in the co-expression graph.
N_NEIGHBORS = 8


@dataclass(frozen=True)
class BulkTable:
    """A file of samples.

    Attributes
    ----------
    file
        Name below the data folder, without ``.h5ad``.
    units
        ``"counts"``: TPM is made of all of the file's genes. ``"FPKM"``: brought to a sum of a
        million per sample, which is TPM. ``"TPM"``: taken as it is; a file with some of the genes
        only keeps the values that they had among all. ``"log2 RSEM"``: logarithms of normalised
        counts; TPM by gene lengths.
    groups
        Column that divides the samples into kinds that differ as tissues do; none: one kind.
    """

    file: str
    units: str = "counts"
    groups: str | None = None


#: Human RNA sequencing. Left out: arrays and tables of logarithms, whose TPM cannot be had
#: (GSE30550, HSV-2 explants, GSE147507_top5000_log), and other species.
TABLES = (
    BulkTable("bulk/lcl_rnaseq_pickrell"),
    BulkTable("bulk/lcl_rnaseq_montgomery"),
    BulkTable("bulk/gtex_brain", "TPM"),
    BulkTable("bulk/gtex_heart", "TPM"),
    BulkTable("bulk/gtex_liver", "TPM"),
    BulkTable("bulk/tcga_small5_rsem", "log2 RSEM", "cancer"),
    BulkTable("bulk/GSE50244_islets"),
    BulkTable("bulk/TB_HIV_blood"),
    BulkTable("stimuli/Alasoo2018_macrophage"),
    BulkTable("stimuli/Boulant_T84_IL22_IFNL"),
    BulkTable("stimuli/Campo_AM_MDM_Mtb"),
    BulkTable("stimuli/Campo_MDM_IFN"),
    BulkTable("stimuli/GSE120844_IFNg", "FPKM"),
    BulkTable("stimuli/Griss2019_Bcell_melanoma_medium"),
    BulkTable("stimuli/Jankowski_HPPT_IFN"),
    BulkTable("stimuli/SAEC_IFN_Lee"),
    BulkTable("virus_counts/Bezemer2025_DENV_ZIKV"),
    BulkTable("virus_counts/GSE110496_pseudobulk"),
    BulkTable("virus_counts/GSE118305_FPKM", "FPKM"),
    BulkTable("virus_counts/GSE119117"),
    BulkTable("virus_counts/GSE144538"),
    BulkTable("virus_counts/GSE146423"),
    BulkTable("virus_counts/GSE147507"),
    BulkTable("virus_counts/GSE147507_lung"),
    BulkTable("virus_counts/GSE148729"),
    BulkTable("virus_counts/GSE155974"),
    BulkTable("virus_counts/GSE176480"),
    BulkTable("virus_counts/GSE185557"),
    BulkTable("virus_counts/HofbauerCells"),
    BulkTable("virus_counts/Jia2020_balf"),
    BulkTable("virus_counts/KSHV_ORF11"),
    BulkTable("virus_counts/P259_pDC_hrv"),
    BulkTable("virus_counts/REbola_USA"),
    BulkTable("virus_counts/RenHIV"),
    BulkTable("virus_counts/Singh2022_denv_zikv"),
    BulkTable("virus_counts/VACV_filone"),
    BulkTable("virus_counts/VACV_yang_a"),
    BulkTable("virus_counts/VACV_yang_b"),
)


def read_table(data: Path, table: BulkTable) -> ad.AnnData:
    """Read a file as log TPM, human symbols as genes.

    ``obs`` has ``table``, ``group``, ``study`` and ``donor``, and the columns of the file.
    """
    adata = ad.read_h5ad(data / f"{table.file}.h5ad")
    name = Path(table.file).name
    if table.units == "log2 RSEM":
        adata.X = np.exp2(to_dense(adata.X, np.float32)) - 1.0
        adata.uns["units"] = "counts"  # normalised: TPM does not depend on the scale of a sample
    if table.units == "counts":
        deep = np.asarray(adata.X.sum(axis=1)).ravel() >= MIN_COUNTS
        adata = adata[deep].copy()
    with warnings.catch_warnings():
        # genes without symbol or length: said once in the card
        warnings.simplefilter("ignore", UserWarning)
        cfm.pp.map_genes(adata, organism="human", aggregate="sum", unmapped="keep")
        if table.units in ("counts", "log2 RSEM"):
            cfm.pp.tpm(adata)
            values = adata.layers["log_tpm"]
        else:
            values = adata.X
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    if table.units == "FPKM":
        values = values / values.sum(axis=1, keepdims=True) * 1e6
    if table.units in ("FPKM", "TPM"):
        values = np.log1p(values)
    obs = adata.obs.copy()
    kind = "" if table.groups is None else "/" + obs[table.groups].astype(str)
    donor = "patient" if "patient" in obs else "donor"
    obs = obs.assign(
        table=name,
        group=name + kind,
        study=obs["study"].astype(str) if "study" in obs else name,
        donor=obs[donor].astype(str),
    )
    obs.index = [f"{name}:{sample}" for sample in adata.obs_names]
    var = pd.DataFrame(index=adata.var_names.astype(str))
    return ad.AnnData(values.astype(np.float32), obs=obs, var=var)


def read_tables(data: Path) -> dict[str, ad.AnnData]:
    """Read all of :data:`TABLES`, by the name of the file."""
    return {Path(table.file).name: read_table(data, table) for table in TABLES}


def vocabulary(tables: Collection[ad.AnnData], n_genes: int = N_GENES) -> pd.Index:
    """Genes with a current symbol that vary or are expressed in most tables, in order of names.

    What differs between samples of a kind is what an embedding is about: genes that are expressed
    in every sample alike leave no room for those of sex or of a response.
    """
    votes: Counter[str] = Counter()
    for adata in tables:
        groups = adata.obs["group"]
        sizes = groups.value_counts()
        spread = [np.zeros(adata.n_vars)]
        spread += [adata.X[(groups == g).to_numpy()].var(axis=0) for g in sizes.index[sizes >= 4]]
        expressed = (math.log1p(MIN_TPM) <= adata.X).mean(axis=0) >= MIN_SAMPLES
        vote = np.where(expressed, np.minimum(np.max(spread, axis=0), 1.0) + EXPRESSED, 0.0)
        votes.update(dict(zip(adata.var_names, vote.tolist(), strict=True)))
    genes = pd.Index(sorted(votes))
    genes = genes[map_identifiers(genes.tolist(), organism="human").mapped]
    number = np.array([votes[gene] for gene in genes])
    return genes[np.sort(np.argsort(-number, kind="stable")[:n_genes])]


def join(tables: Collection[ad.AnnData], genes: pd.Index) -> ad.AnnData:
    """Put tables below each other over one list of genes, ``NaN`` where a table lacks one."""
    parts = []
    for adata in tables:
        place = adata.var_names.get_indexer(genes)
        values = np.where(place >= 0, adata.X[:, place], np.float32(np.nan))
        obs = adata.obs[["table", "group", "study", "donor"]].astype(str)
        parts.append(ad.AnnData(values, obs=obs, var=pd.DataFrame(index=genes)))
    return ad.concat(parts)


def add_graph(corpus: ad.AnnData) -> None:
    """Add the co-expression graph of the samples around the mean of their group.

    Around the mean of all samples, what distinguishes groups would link most genes.
    """
    values = corpus.X.copy()
    for group in corpus.obs["group"].unique():
        rows = (corpus.obs["group"] == group).to_numpy()
        known = np.isfinite(values[rows])
        mean = np.where(known, values[rows], 0.0).sum(0) / np.maximum(known.sum(0), 1)
        values[rows] = np.where(known, values[rows] - mean, 0.0)
    centred = ad.AnnData(values)
    cfm.pp.coexpression_graph(centred, n_neighbors=N_NEIGHBORS)
    corpus.varp["coexpression"] = centred.varp["coexpression"]
