"""Pictures of host factors, gene programs and the drug screen, as PNG files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cfm import pl
from cfm._fields import DRUG_SCREEN_KEY, HOST_FACTORS_KEY, RESULTS
from cfm._report._figures import Picture

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

#: A report with pictures of more groups would take long to open.
MAX_GROUPS = 12
_GENES = 12


@dataclass(frozen=True)
class Gallery:
    """Pictures beside each other under one caption."""

    caption: str
    pictures: list[Picture]


def draw_host_factors(contrasts: AnnData, folder: Path) -> list[Gallery]:
    """First genes of each group."""
    pictures = []
    for i, group in enumerate(_groups(contrasts, HOST_FACTORS_KEY)[:MAX_GROUPS]):
        path = folder / f"host_factors_{i + 1:02d}.png"
        pl.host_factors(contrasts, group=group, n_genes=_GENES, show=False, save=path)
        pictures.append(Picture(path, group, f"Ranked bars of the host factors of {group}."))
    caption = (
        f"The first {_GENES} genes. Bars to the right: genes for the answer that is explained, to "
        "the left: genes against it."
    )
    return [Gallery(caption + _left_out(contrasts, HOST_FACTORS_KEY), pictures)]


def draw_gene_programs(contrasts: AnnData, folder: Path, *, groupby: str) -> list[Gallery]:
    """Heat map and network of the programs."""
    heatmap, network = folder / "gene_programs.png", folder / "gene_program_network.png"
    by = groupby if contrasts.obs[groupby].nunique() > 1 else None
    pl.gene_programs(contrasts, groupby=by, show=False, save=heatmap)
    pl.gene_programs(contrasts, kind="network", show=False, save=network)
    texts = (
        "Effects of the first genes of each program in every contrast.",
        "The first genes of each program, and the links that the model sees between them.",
    )
    return [
        Gallery(text, [Picture(path, text, f"{text} The table has the main numbers.")])
        for text, path in zip(texts, (heatmap, network), strict=True)
    ]


def draw_drug_screen(contrasts: AnnData, folder: Path) -> list[Gallery]:
    """Waterfall of the compounds, and one kind of evidence against the other."""
    ranked, evidence = [], []
    for i, group in enumerate(_groups(contrasts, DRUG_SCREEN_KEY)[:MAX_GROUPS]):
        path = folder / f"drug_screen_{i + 1:02d}.png"
        pl.drug_screen(contrasts, group=group, show=False, save=path)
        ranked.append(Picture(path, group, f"Scores of all compounds for {group}."))
        path = folder / f"drug_evidence_{i + 1:02d}.png"
        pl.drug_screen(contrasts, kind="scatter", group=group, show=False, save=path)
        evidence.append(Picture(path, group, f"Reversal against target evidence for {group}."))
    left_out = _left_out(contrasts, DRUG_SCREEN_KEY)
    return [
        Gallery(f"All compounds by their combined score.{left_out}", ranked),
        Gallery("Reversal of the profile against target evidence: upper right is both.", evidence),
    ]


def _groups(contrasts: AnnData, key: str) -> list[str]:
    return [str(name) for name in contrasts.uns[key][RESULTS]["group"].astype(str).unique()]


def _left_out(contrasts: AnnData, key: str) -> str:
    n = len(_groups(contrasts, key))
    return f" The first {MAX_GROUPS} of {n} groups; the file has all." if n > MAX_GROUPS else ""
