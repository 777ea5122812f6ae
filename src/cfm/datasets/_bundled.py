"""Tables and studies that ship with the package, from public sources."""

from __future__ import annotations

import gzip
import io
from importlib.resources import as_file, files

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cfm._arguments import checks_arguments

#: Effects x of the response library are stored as round(130 x / (1 + |x|)), and NaN as -128.
_SCALE, _NOT_MEASURED = 130, -128


def _unpacked(name: str) -> bytes:
    return gzip.decompress((files("cfm.datasets") / "files" / name).read_bytes())


def _study(name: str) -> ad.AnnData:
    with as_file(files("cfm.datasets") / "files" / name) as path:
        return ad.read_h5ad(path)


def _table(name: str, separator: str) -> pd.DataFrame:
    # a name such as "NA" is a name and not a missing value
    text = io.BytesIO(_unpacked(name))
    return pd.read_csv(text, sep=separator, keep_default_na=False, dtype=str).astype(object)


def hallmark() -> dict[str, list[str]]:
    """Hallmark gene sets of MSigDB: 50 coherent programmes such as the interferon response.

    Returns
    -------
    dict
        Genes (HGNC symbols, sorted) by name of the set, ``"HALLMARK_INTERFERON_ALPHA_RESPONSE"``
        for instance; of the form that gseapy and :func:`cfm.tl.gene_programs` take.

    Notes
    -----
    Liberzon A, Birger C, Thorvaldsdóttir H, et al. The Molecular Signatures Database hallmark gene
    set collection. Cell Syst 2015;1:417-425, doi:10.1016/j.cels.2015.12.004. MSigDB 7.5.1, CC BY
    4.0; symbols brought up to date. Written by ``training/build_hallmark.py``.

    Examples
    --------
    >>> import cfm
    >>> len(cfm.datasets.hallmark())
    50
    """
    lines = (line.split("\t") for line in _unpacked("hallmark.gmt.gz").decode().splitlines())
    return {name: genes for name, _, *genes in lines}


def ligand_receptor() -> pd.DataFrame:
    """Human ligand-receptor pairs, the consensus resource of liana.

    Returns
    -------
    pandas.DataFrame
        A row per pair, sorted: ``ligand`` and ``receptor``, HGNC symbols; those of a complex are
        joined by ``_``. Can be given to :func:`cfm.tl.knowledge_graph` as it is, which uses it by
        default.

    Notes
    -----
    Through liana (Dimitrov D, Türei D, Garrido-Rodriguez M, et al. Comparison of methods and
    resources for cell-cell communication inference from single-cell RNA-Seq data. Nat Commun
    2022;13:3224, doi:10.1038/s41467-022-30755-0), which took it from OmniPath; GPL-3: this table
    is under the same licence. Previous symbols were replaced by current ones. Written by
    ``training/build_ligand_receptor.py``.

    Examples
    --------
    >>> import cfm
    >>> pairs = cfm.datasets.ligand_receptor()
    >>> "CXCR3" in set(pairs.loc[pairs["ligand"] == "CXCL10", "receptor"])
    True
    """
    return _table("ligand_receptor.csv.gz", ",")


@checks_arguments()
def drug_targets(*, moa_only: bool = False) -> pd.DataFrame:
    """Human targets of drugs, from DrugCentral.

    Parameters
    ----------
    moa_only
        Only targets by which a drug works (its mechanism of action), not everything that it was
        seen to bind.

    Returns
    -------
    pandas.DataFrame
        A row per drug and gene, those of the mechanism of action first: ``compound`` (DrugCentral
        name), ``gene`` (HGNC symbol), ``moa`` (bool) and ``action`` (such as ``"inhibitor"``,
        several joined by ``|``, ``""`` if not stated). Can be given to
        :func:`cfm.tl.screen_drugs` as it is.

    Notes
    -----
    DrugCentral (Avram S, Bologa CG, Holmes J, et al. DrugCentral 2021 supports drug discovery and
    repositioning. Nucleic Acids Res 2021;49:D1160-D1169, doi:10.1093/nar/gkaa997), CC BY-SA 4.0:
    this table is under the same licence. Through kenmcgarry/ComplexNetworks; rows that DrugCentral
    took from DrugBank or KEGG were left out, complexes were split into their genes. Written by
    ``training/build_drug_targets.py``.

    Examples
    --------
    >>> import cfm
    >>> targets = cfm.datasets.drug_targets(moa_only=True)
    >>> targets.loc[targets["compound"] == "imatinib", "gene"].tolist()[:1]
    ['ABL1']
    """
    table = _table("drug_targets.tsv.gz", "\t")
    table["moa"] = (table["moa"] == "1").to_numpy(dtype=np.bool_)
    if moa_only:
        table = table[table["moa"]].reset_index(drop=True)
    return table


def cmap_signatures() -> pd.DataFrame:
    """Up and down genes of 1,309 compounds: a consensus of the Connectivity Map build 2.

    The 6,100 instances of the Connectivity Map (a compound against vehicle, mostly 6 hours in
    MCF7, PC3 or HL60 cells, mostly 10 µM) were joined into one signature per compound: a gene at
    place p of the 100 strongest up or down genes of an instance weighs log(101 / p), and the 50
    genes with the largest and the 50 with the smallest mean weight over all instances of the
    compound are kept.

    These signatures are noisy. Most compounds have four or five instances, replicates share few
    genes, and many compounds do little to these cells. ``docs/benchmarks.md`` (section *Drug
    screen*) shows how far they recover mechanisms.

    Returns
    -------
    pandas.DataFrame
        A row per compound and gene, strongest first: ``compound`` (name as in the Connectivity
        Map, lower case for most), ``gene`` (HGNC symbol) as str, ``direction`` (1 or −1) as int64.
        Can be given to :func:`cfm.tl.screen_drugs` as it is.

    Notes
    -----
    Lamb J, Crawford ED, Peck D, et al. The Connectivity Map: using gene-expression signatures to
    connect small molecules, genes, and disease. Science 2006;313:1929-1935,
    doi:10.1126/science.1132939. Gene lists through the R package cogena (zhilongjia/cogena,
    LGPL-3), under whose licence this table is passed on; compound names joined with
    brianlle/sirota_lab_covid_drug_repositioning. Written by
    ``training/build_cmap_signatures.py``. No model that comes with cfm has seen it in training.

    Examples
    --------
    >>> import cfm
    >>> signatures = cfm.datasets.cmap_signatures()
    >>> signatures["compound"].nunique()
    1309
    """
    packed = _table("cmap_signatures.tsv.gz", "\t").set_axis(["compound", 1, -1], axis=1)
    sides = packed.melt("compound", var_name="direction", value_name="gene", ignore_index=False)
    sides = sides.sort_index(kind="stable").assign(gene=lambda t: t["gene"].str.split("|"))
    table = sides.explode("gene", ignore_index=True)[["compound", "gene", "direction"]]
    return table.astype({"compound": object, "gene": object, "direction": np.int64})


def blanco_melo() -> ad.AnnData:
    """Bulk RNA-seq counts of cells infected with SARS-CoV-2, RSV or influenza A (real data).

    GEO series GSE147507, first release: bronchial epithelial cells (NHBE) and A549 cells,
    infected or mock-infected. Each of the four ``series`` is one experiment with its own mock
    samples: compare inside it (``by="series"``). The influenza samples (Series4, 9 hours) do not
    raise interferon-stimulated genes.

    Returns
    -------
    anndata.AnnData
        20 samples × 17,607 genes (HGNC symbols, those with at least 10 reads in all samples
        together), `X` CSR float32 of whole numbers, and

        `adata.obs` : ``study``, ``series``, ``sample``, ``virus`` ("none" for mock),
        ``condition``, ``tissue`` (NHBE or A549), ``gsm`` as categories, ``time_h`` and ``moi`` as
        float64.
        `adata.uns` : ``source``, ``citation``, ``licence``, ``organism``, ``units``, ``note``.

    Notes
    -----
    Blanco-Melo D, Nilsson-Payant BE, Liu WC, et al. Imbalanced Host Response to SARS-CoV-2 Drives
    Development of COVID-19. Cell 2020;181:1036-1045.e9, doi:10.1016/j.cell.2020.04.026. Public
    deposit in NCBI GEO; the authors state no licence (``adata.uns["licence"]``). Written by
    ``training/build_blanco_melo.py``.

    Examples
    --------
    >>> import cfm
    >>> adata = cfm.datasets.blanco_melo()
    >>> adata.obs["virus"].value_counts()["SARS-CoV-2"]
    np.int64(6)
    """
    adata = _study("blanco_melo.h5ad")
    # Whole numbers pack better on disk; everything downstream reads counts as float32.
    adata.X = sparse.csr_matrix(np.asarray(adata.X, dtype=np.float32))
    return adata


def response_library() -> ad.AnnData:
    """Public contrasts of human cells: infections, cytokines, bacteria, and pairs of gene sets.

    What :func:`cfm.tl.search_signatures` compares contrasts with. Three kinds of rows
    (``obs["source"]``):

    - contrasts of infections and stimuli, made with :func:`cfm.pp.contrasts` from public count
      tables (``"counts"``), or published where only fold changes are open (``"published fold
      changes"``); each experiment once;
    - weights of 43 cytokines (``"CytoSig"``);
    - pairs of up and down sets of ImmuneSigDB (``"ImmuneSigDB"``), 1 up, −1 down and 0 elsewhere.
      A pair of a control and one stimulus is turned where needed, so that 1 is up in the
      stimulus; its name then ends in ``" (turned)"``.

    Returns
    -------
    anndata.AnnData
        2,599 contrasts × 13,403 genes (HGNC symbols). `X` float32: effects relative to the 1,000th
        largest of their contrast, which is 1 or −1 (log2 fold changes but for a factor;
        ``np.tanh`` of them is the graded direction), at most 40; ``NaN`` = not measured.

        `adata.obs` : ``study``, ``organism`` (``"human"``, or ``"human or mouse"`` for gene sets
        that came over orthologues), ``tissue``, ``stimulus``, ``response`` (``"viral"``,
        ``"interferon I/III"``, ``"interferon II"``, ``"bacterial"``, ``"other"``, or ``""`` where
        the name of a set does not give), ``source`` and ``licence`` as categories, ``time_h``
        (float64, ``NaN`` = unknown).

    Notes
    -----
    Written by ``python -m training.build_response_library``, which can leave studies out.
    Published fold changes of repositories without a stated licence are not in it. Sources:
    the studies in ``obs["study"]`` (accessions and citations in the model card of
    ``cellpulse-virus``); CytoSig (Jiang et al. 2021, Nat Methods 18:1181, GPL-3); ImmuneSigDB of
    MSigDB 2024.1 (Godec et al. 2016, Immunity 44:194, CC-BY 4.0). ``NOTICE`` has the licences. The
    demonstration data :func:`cfm.datasets.blanco_melo` are not in it.

    Examples
    --------
    >>> import cfm
    >>> library = cfm.datasets.response_library()
    >>> library.obs["response"].value_counts()["bacterial"] > 50
    np.True_
    """
    packed = _study("response_library.h5ad")
    code = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
    effect = np.where(code == _NOT_MEASURED, np.nan, code / (_SCALE - np.abs(code)))
    x = effect.astype(np.float32)[packed.X.toarray().view(np.uint8)]
    return ad.AnnData(x, obs=packed.obs, var=packed.var)
