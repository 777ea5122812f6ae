"""All benchmarks: what each measures, how its published tables were made, and its figure."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks._figures import Dots, Lines


@dataclass(frozen=True)
class Benchmark:
    """One script.

    Attributes
    ----------
    measures
        What, for the list at the top of the page.
    arguments
        With which the published tables are made.
    panels
        What its figure shows.
    data
        Whether it needs the folder of real data.
    """

    measures: str
    arguments: tuple[str, ...] = ()
    panels: tuple[Dots | Lines, ...] = field(default=())
    data: bool = True


_ONE_THREAD = ("--threads", "1")

BENCHMARKS = {
    "response": Benchmark(
        "the kind of response in studies left out of training",
        panels=(
            Dots("all_contrasts", "balanced accuracy", ("method",), title="kind of response"),
            Dots("all_contrasts", "AUROC infection/control", ("method",), title="infected or not"),
        ),
    ),
    "virus": Benchmark(
        "names of viruses in studies left out of training, the world open",
        panels=(Dots("named", "right, over units", ("method",), title="names that are right"),),
    ),
    "masked_direction": Benchmark(
        "direction and size of hidden effects in studies left out",
        panels=(Dots("scores", "AUROC", ("method",), title="direction"),),
    ),
    "host_factors": Benchmark(
        "rankings of genes against genome-wide CRISPR screens",
        panels=(Dots("means", "AUPRC / share", ("ranking",), title="1 = chance"),),
    ),
    "programs": Benchmark(
        "gene programs against gene sets, plain correlation and studies left out",
        panels=tuple(
            Dots("modules_20", score, ("method",), title=score)
            for score in ("Hallmark", "Reactome", "TF regulons")
        ),
    ),
    "drugs": Benchmark(
        "the drug screen: mechanisms, controls, known antivirals",
        panels=(Dots("retrieval", "AUROC", ("method",), title="same mechanism"),),
    ),
    "drug_libraries": Benchmark(
        "drugs in other libraries: the screen, evidence of targets, left-out compounds, response",
        panels=(Dots("libraries", "AUROC", ("task", "from", "in", "method"), title="found again"),),
    ),
    "signature_search": Benchmark(
        "similar contrasts: the same response in other studies, the same drug in other cells",
        panels=(
            Dots("responses_all", "mean", ("method",), title="same response"),
            Dots("drugs", "OP2023: AUROC", ("method",), title="same drug, other cell type"),
        ),
    ),
    "imputation": Benchmark(
        "hidden genes of bulk samples, between cohorts and donors",
        panels=(Dots("scores", "centred", ("method",), facet="data", title="centred correlation"),),
    ),
    "essentiality": Benchmark(
        "core-essential genes from embeddings of genes, beside expression and degree",
        panels=(Dots("scores", "AUROC", ("method",), title="core-essential genes"),),
    ),
    "beside_pca": Benchmark(
        "bulk embeddings beside principal components, on cohorts left out of the corpus",
        panels=tuple(
            Dots("paired", "difference", ("cohort",), where={"baseline": pca}, title=f"less {pca}")
            for pca in ("PCA of the cohort", "PCA of the corpus")
        ),
    ),
    "probe": Benchmark(
        "embeddings against plain expression: survival, infections, groups left out",
        panels=(
            Dots("kirc", "c_index", ("representation", "head"), title="kidney cancer, survival"),
            Dots("samples", "auroc", ("representation", "head"), title="infection, samples"),
            Dots("contrasts", "auroc", ("representation", "head"), title="infection, contrasts"),
        ),
    ),
    "compounds": Benchmark(
        "compounds without a signature",
        panels=(Dots("scores", "centred", ("method",), title="centred correlation"),),
    ),
    "perturbation": Benchmark(
        "perturbed cells that were held out, beside baselines and other models",
        panels=(
            Dots("interferon", "delta_pearson", ("method",), title="interferon, unseen type"),
            Dots("patients", "delta_pearson", ("method",), title="panobinostat, unseen patient"),
            Dots("targets", "delta_pearson", ("method",), title="unseen CRISPR targets"),
        ),
    ),
    "generation": Benchmark(
        "cells made out of nothing against cells that no generator saw",
        panels=tuple(
            Dots(data, "MMD", ("method",), title=data, lower_is_better=True)
            for data in ("kang", "hao")
        ),
    ),
    "cell_types": Benchmark(
        "types of cells of another laboratory, and of what is no blood cell",
    ),
    "cell_codes": Benchmark(
        "codes of cells beside clusters",
        panels=(
            Dots("scores", "AMI", ("method",), facet="cells", title="agreement with cell types"),
        ),
    ),
    "knowledge_graph": Benchmark(
        "links between codes, markers and relations beside other ways",
        panels=(Dots("links", "AUPRC", ("method",), facet="codes", title="planted links"),),
    ),
    "donors": Benchmark(
        "donors with COVID-19, beside simple summaries of their cells",
        ("--rotations", "1"),
        panels=(
            Dots("scores", "AUROC", ("method",), where={"cells per donor": 500}, title="500 cells"),
        ),
    ),
    "pseudo_donors": Benchmark(
        "pseudo-donors with planted differences: pulsar-mini beside simple summaries",
        panels=(Dots("means", "AUROC", ("method", "has seen"), title="planted differences"),),
    ),
    "costs": Benchmark("CPU time of training and use, beside the simple method of each task"),
    "gene_vectors": Benchmark(
        "knock-outs that were never seen, by vectors of genes beside the mean shift",
        panels=(Dots("scores", "linear", ("vectors",), title="unseen targets"),),
    ),
    "cell_integration": Benchmark(
        "batches told apart in cells: CellVQ, principal components and Harmony",
        panels=(
            Dots("scores", "graph iLISI", ("method",), facet="batches", title="batches mix"),
            Dots("scores", "graph cLISI", ("method",), facet="batches", title="types do not"),
        ),
    ),
    "code_relations": Benchmark(
        "which groups signal to which: learned attention beside ligands and receptors",
        panels=(Dots("scores", "mean", ("method",), title="planted links"),),
        data=False,
    ),
    "donor_tasks": Benchmark(
        "vaccine response, plasma proteins and age of simulated donors",
        panels=(Dots("scores", "score", ("target", "method"), title="simulated donors"),),
        data=False,
    ),
    "lingshu": Benchmark(
        "speed and memory of Lingshu-Cell",
        _ONE_THREAD,
        panels=(Lines("genes", "genes", "CPU s a cell", by="steps", title="generation, mini"),),
        data=False,
    ),
    "pulsar": Benchmark(
        "speed and memory of PULSAR beside PyTorch's layers",
        ("--rounds", "2", *_ONE_THREAD),
        panels=tuple(
            Dots(key, "CPU speed-up", ("case",), title=title)
            for key, title in (("whole", "1,024 cells"), ("ragged", "64 to 1,024 cells"))
        ),
        data=False,
    ),
    "cellvq": Benchmark(
        "speed and memory of CellVQ beside a loop over cells",
        ("--cells", "2", *_ONE_THREAD),
        panels=(Dots("speed", "CPU speed-up", ("case",), title="published size"),),
        data=False,
    ),
    "bulkformer": Benchmark(
        "speed and memory of BulkFormer beside the authors' libraries",
        panels=(Dots("speed", "CPU speed-up", ("case",), facet="size", title="size"),),
        data=False,
    ),
    "attention": Benchmark(
        "cost of direction-aware attention",
        panels=(
            Lines("time", "n", "direction / plain", by="pass", title="time"),
            Lines("time", "n", "explicit / plain", by="pass", title="n × n mask"),
        ),
        data=False,
    ),
    "contrasts": Benchmark(
        "speed and memory of drawing contrasts on the fly, from memory and from disk",
        panels=(Dots("rates", "profiles/s", ("what",), title="profiles a second", log=True),),
        data=False,
    ),
    "scale": Benchmark(
        "time and memory from a thousand to a million cells on disk; reading beside other loaders",
        panels=(
            Lines("growth", "cells", "seconds", by="task", title="time", log=True),
            Lines("growth", "cells", "peak (MiB)", by="task", title="memory", log_x=True),
            Dots("loaders", "rows/s", ("loader",), facet="file", title="reading", log=True),
        ),
        data=False,
    ),
    "workers": Benchmark(
        "tools on the workers of dask: two against one, and what a chunk costs",
        panels=(Dots("workers", "cells/s", ("how",), title="embedding"),),
        data=False,
    ),
    "settings": Benchmark(
        "what bfloat16, torch.compile and batches of like length bring on this processor",
        panels=(Dots("compile", "speed-up", ("case",), title="torch.compile"),),
        data=False,
    ),
    "gpu": Benchmark(
        "training and use of all systems at published size, as a share of the matrix rate",
        panels=(
            Dots("systems", "share of matrix rate", ("system", "task"), title="of the matrix rate"),
        ),
        data=False,
    ),
    "trust": Benchmark("the table of the page Trust, from the others' numbers", data=False),
    "models_beside_pca": Benchmark(
        "the table of the page Models beside PCA, from the others' numbers", data=False
    ),
}
