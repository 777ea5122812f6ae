"""Build the list of public studies that `cfm.datasets.fetch` knows.

Reads the h5ad files in ``virus_counts/`` below ``--data`` and writes
``src/cfm/datasets/files/registry.csv`` with a line per file: what is in it, where it comes from,
and its size and SHA-256. The output is the same byte for byte in every run.

Run as ``python training/build_dataset_registry.py --data DATA``.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import anndata as ad
import pandas as pd

OUTPUT = Path(__file__).resolve().parents[1] / "src/cfm/datasets/files/registry.csv"

# What the files do not say themselves: accession, citation, repository that the table was taken
# from, its licence, description, caveat. "not stated": the repository gives no licence.
BLANCO = "Blanco-Melo et al. 2020, Cell 181:1036, doi:10.1016/j.cell.2020.04.026"
PRESNELL = "BenaroyaResearch/SPresnell_GSE147507; anna546stella/COVID_Hackathon"
VACCINIA = "control is 0 h of the same course, no replicates, host shut-off"
NOTES: dict[str, tuple[str, str, str, str, str, str]] = {
    "CHIKV_mouse_SRR68086": (
        "SRR6808633-SRR6808656",
        "SRA runs SRR6808633 to SRR6808656",
        "ftencaten/comparison_CHIKV_infection_human-vs-mouse_2019-08-15",
        "not stated",
        "mouse foot and lymph node, chikungunya virus and mock, days 2 and 7",
        "mouse symbols; lymph node day 7: interferon genes down",
    ),
    "GSE110496_pseudobulk": (
        "GSE110496",
        "Zanini et al. 2018 (GSE110496)",
        "preonath/Single_Cell_Zikaand_Dengue_So",
        "MIT",
        "Huh7 cells, dengue and Zika virus and control; single cells summed per plate",
        "mixed multiplicity of infection; infected samples include bystander cells",
    ),
    "GSE118305_FPKM": (
        "GSE118305; PRJNA485140",
        "Carlin et al. 2018 (GSE118305)",
        "syabaniisnaen/RNA-Seq_Ziky-DGE",
        "not stated",
        "macrophages, Zika virus infected, bystander and mock",
        "FPKM, not counts",
    ),
    "GSE119117": (
        "GSE119117",
        "NCBI GEO GSE119117",
        "korean-genomics-center/transcriptomic_clock",
        "MIT",
        "PBMC before, during and after hepatitis C, paired patients",
        "control is the patient's own sample from before infection",
    ),
    "GSE144538": (
        "GSE144538",
        "NCBI GEO GSE144538",
        "HuynhNPT/JC_polyomavirus_glial_bulkRNAseq_2024",
        "MIT",
        "glial progenitor cells, JC polyomavirus time course",
        "response near zero early",
    ),
    "GSE146423": (
        "GSE146423",
        "NCBI GEO GSE146423",
        "JaykishanJ/Zika_virus_RNA_seq",
        "MIT (README badge only)",
        "A549 cells, Zika virus and mock",
        "",
    ),
    "GSE147507": (
        "GSE147507",
        BLANCO,
        PRESNELL,
        "not stated / MIT",
        "NHBE and A549 cells: SARS-CoV-2, RSV, influenza A and mock",
        "compare inside series; influenza samples are 9 h and raise no interferon genes",
    ),
    "GSE147507_ferret": (
        "GSE147507",
        BLANCO,
        "anna546stella/COVID_Hackathon",
        "MIT",
        "ferret nasal wash and trachea: SARS-CoV-2, influenza A and mock",
        "human orthologue symbols or ferret Ensembl ids; several samples per animal",
    ),
    "GSE147507_lung": (
        "GSE147507",
        BLANCO,
        "anna546stella/COVID_Hackathon",
        "MIT",
        "COVID-19 lung against healthy lung",
        "one patient in two technical replicates; very small libraries",
    ),
    "GSE147507_top5000_log": (
        "GSE147507",
        BLANCO,
        "data2intelligence/CytoSig",
        "not stated",
        "54 samples: SARS-CoV-2, influenza A, HPIV3, RSV and mock",
        "5,000 genes, log scale; overlaps GSE147507",
    ),
    "GSE148729": (
        "GSE148729",
        "Wyler et al. 2021, iScience (GSE148729)",
        "EuancRNA/Pan-Coronavirus-Gene-Regulatory-Networks",
        "not stated",
        "Calu-3 cells: SARS-CoV, SARS-CoV-2, mock and untreated; 4, 12 and 24 h",
        "no mock at 12 h; fractional values rounded",
    ),
    "GSE155974": (
        "GSE155974",
        "NCBI GEO GSE155974",
        "MasMat2/BioTech",
        "not stated",
        "nasal organoids, SARS-CoV-2 and mock",
        "one mock library",
    ),
    "GSE176480": (
        "GSE176480",
        "NCBI GEO GSE176480",
        "rebell90/Transcriptome_COVID_Control_GSE176480",
        "not stated",
        "platelets of COVID-19 patients and controls",
        "anucleate: weak interferon response",
    ),
    "GSE30550_h3n2_challenge": (
        "GSE30550",
        "Huang et al. 2011, PLoS Genetics (GSE30550)",
        "package qusage 2.32.0",
        "GPL-2 or later (package)",
        "blood of 17 volunteers, 0 to 108 h after challenge with H3N2 influenza",
        "microarray, 4,147 genes; many volunteers stay without symptoms",
    ),
    "GSE96870_cerebellum": (
        "GSE96870",
        "NCBI GEO GSE96870",
        "carpentries-incubator/bioc-rnaseq",
        "Creative Commons (lesson)",
        "mouse cerebellum after intranasal influenza A",
        "the organ is not infected; mouse symbols",
    ),
    "HSV2_vaginal_explant": (
        "",
        "Fred Hutch vaginal explants on Illumina HT-12 v4 arrays (no accession)",
        "ClaireLevy/Herpes-Project-1",
        "not stated",
        "vaginal explants, HSV-2 and mock",
        "log2 array; little interferon response",
    ),
    "HofbauerCells": (
        "",
        "public repository, no accession",
        "mfimmunobiology/HCs_transcriptome",
        "not stated",
        "placental macrophages: HIV-1, HCMV, Zika virus and mock",
        "donors not matched, time not stated; fractional values rounded",
    ),
    "Jia2020_balf": (
        "",
        "Jia et al. 2020, Pathogens and Disease, doi:10.1093/femspd/ftaa036",
        "zhilongjia/COVID-19",
        "not stated",
        "bronchoalveolar lavage of COVID-19 patients and healthy people",
        "batch and disease fully confounded; small libraries",
    ),
    "KSHV_ORF11": (
        "",
        "public repository, no accession",
        "yueli8/kshv_deg",
        "GPL",
        "B lymphocytes: KSHV wild type, deletion mutant and mock",
        "effect near zero; fractional values rounded",
    ),
    "NiV_AGM": (
        "GSE309971 (related)",
        "GSE309971 (related)",
        "geisbert-lab/niv-agm-serialsac-mad",
        "not stated",
        "African green monkey lung and tonsil, Nipah virus, serial sacrifice",
        "monkey; human-like symbols",
    ),
    "NinaKim_IAV_mouse": (
        "",
        "public repository, no accession",
        "NinaKim0322/iav_rnaseq",
        "not stated",
        "mouse, influenza A and mock, days 3 and 8",
        "tissue not stated; mouse symbols",
    ),
    "P259_pDC_hrv": (
        "",
        "Dill-McFarland et al. 2022, J Allergy Clin Immunol 150:666, "
        "doi:10.1016/j.jaci.2022.03.025",
        "altman-lab/P259_pDC_public; BIGslu/kimma",
        "GPL-3 / MIT",
        "plasmacytoid dendritic cells, rhinovirus 16 and control, paired donors",
        "treatment changes basal interferon genes; seven libraries of low depth",
    ),
    "Parry2025_mcmv_mouse": (
        "",
        "Parry et al. 2025, murine cytomegalovirus in murine dendritic cells",
        "rhparry/MCMV_transcriptome",
        "not stated",
        "mouse dendritic cells, two strains of MCMV and mock",
        "log2 of normalised counts; mouse symbols",
    ),
    "REbola_USA": (
        "",
        "Ebola vaccine (rVSV-ZEBOV) trial, USA cohort",
        "csbl-usp/REbola",
        "not stated",
        "blood of vaccinees before and 1 to 7 days after rVSV-ZEBOV",
        "live vaccine, no placebo; day 0 is the control",
    ),
    "RenHIV": (
        "doi:10.5281/zenodo.4289911",
        "Ren et al. 2021, JCI Insight (PMID 33980597)",
        "abcwcm/RenHIV",
        "MIT",
        "CD4 T cells, HIV-1 infected and uninfected",
        "two against two in each of two start populations; donors not given",
    ),
    "Singh2022_denv_zikv": (
        "",
        "Singh et al. 2022, Viruses 14:1418 (PMID 35891396)",
        "ellifteria/dengue-zika-genomic-analysis",
        "not stated",
        "neural progenitor cells: dengue virus, Zika virus and uninfected",
        "two replicates; Zika virus raises no interferon genes",
    ),
    "VACV_filone": (
        "",
        "Filone et al. 2014",
        "nachocab/vaccinia_filone_2013",
        "not stated",
        "vaccinia virus time course",
        VACCINIA,
    ),
    "VACV_yang_a": (
        "",
        "Yang et al. 2010",
        "nachocab/vaccinia_filone_2013",
        "not stated",
        "HeLa cells, vaccinia virus time course",
        VACCINIA,
    ),
    "VACV_yang_b": (
        "",
        "Yang et al. 2010",
        "nachocab/vaccinia_filone_2013",
        "not stated",
        "HeLa cells, vaccinia virus time course, second series",
        VACCINIA,
    ),
    "ZIKV_mouse_brain_SRR5136882": (
        "SRR5136882",
        "re-use by Pang et al. 2021",
        "pang2021/ZIKV_NMet",
        "not stated",
        "mouse brain, Zika virus and mock",
        "normalised counts; mouse symbols",
    ),
}


def build(data: Path) -> None:
    rows = []
    for path in sorted((data / "virus_counts").glob("*.h5ad"), key=lambda path: path.name.lower()):
        adata = ad.read_h5ad(path)
        accession, citation, origin, licence, description, caveat = NOTES[path.stem]
        (study,) = adata.obs["study"].astype(str).unique()
        viruses = adata.obs["virus"].astype(str).value_counts()
        viruses = viruses.sort_index(key=lambda names: names.str.lower())
        content = path.read_bytes()
        rows.append(
            {
                "name": path.stem,
                "study": study,
                "organism": adata.uns["organism"],
                "viruses": "; ".join(f"{name} {n}" for name, n in viruses.items()),
                "n_obs": adata.n_obs,
                "n_vars": adata.n_vars,
                "units": adata.uns["units"],
                "description": description,
                "caveat": caveat,
                "accession": accession,
                "citation": citation,
                "origin": origin,
                "licence": licence,
                "file": f"virus_counts/{path.name}",
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    assert {row["name"] for row in rows} == NOTES.keys(), "every file has notes and the reverse"
    pd.DataFrame(rows).to_csv(OUTPUT, index=False, lineterminator="\n")
    print(f"{OUTPUT.name}: {len(rows)} files, {sum(row['bytes'] for row in rows) / 1e6:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that has virus_counts/")
    build(parser.parse_args().data)
