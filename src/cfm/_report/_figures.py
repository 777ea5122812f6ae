"""The pictures of the report, as PNG files."""

from __future__ import annotations

import struct
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from cfm import pl
from cfm._fields import RESPONSE
from cfm.pl._figure import SAVE_DPI

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData

#: A report with more gene pictures than this would take long to open.
MAX_GENE_FIGURES = 40
#: Fewer points than this have no arrangement to look at.
MIN_EMBEDDED = 3


@dataclass(frozen=True)
class Picture:
    """One picture: where it is, what it shows, and how wide it is at normal size (CSS pixels)."""

    path: Path
    caption: str
    alt: str
    #: Whether its texts must not shrink: a narrow screen scrolls it sideways.
    keep_size: bool = True

    @property
    def data_uri(self) -> str:
        """The file itself, for ``src=``."""
        return "data:image/png;base64," + b64encode(self.path.read_bytes()).decode("ascii")

    @property
    def width(self) -> int:
        """Width at which its text has the size of the text around it."""
        (pixels,) = struct.unpack(">I", self.path.read_bytes()[16:20])  # PNG header: IHDR width
        return round(pixels * 96 / SAVE_DPI)


def draw_probabilities(contrasts: AnnData, folder: Path, *, key: str, truth: str) -> Picture:
    """Heat map of all contrasts."""
    path = folder / "virus_probabilities.png"
    pl.virus_probabilities(contrasts, key=key, truth=truth, show=False, save=path)
    return Picture(
        path,
        "Probability of each kind of response, and of each virus given a viral response, in per "
        "cent; each answer with its support. Viruses are grey where none is named. "
        f"“known” is the column {truth} of the input, which the model did not see.",
        "Heat map of probabilities; the table of calls has the main numbers.",
    )


def draw_embedding(
    contrasts: AnnData, folder: Path, *, key: str, basis: str, groupby: str
) -> Picture | None:
    """Contrasts in the plane, by response and known level; ``None`` if there are too few."""
    if contrasts.n_obs < MIN_EMBEDDED:
        return None
    path = folder / "embedding.png"
    several = contrasts.obs[groupby].nunique() > 1  # one level would be one colour
    colors = [key + RESPONSE, groupby] if several else [key + RESPONSE]
    pl.embedding(contrasts, basis=basis, color=colors, show=False, save=path)
    return Picture(
        path,
        "The contrasts in the model's embedding: near points have similar responses. "
        + ("Left by" if several else "By")
        + " kind of response"
        + (f", right by {groupby}." if several else "."),
        "Scatter plot of the contrasts in the first two principal components of the embedding.",
    )


def draw_genes(contrasts: AnnData, folder: Path, n_genes: int = 10) -> Iterator[Picture]:
    """Strongest genes of each of the first contrasts."""
    for i in range(min(contrasts.n_obs, MAX_GENE_FIGURES)):
        path = folder / f"top_genes_{i + 1:02d}.png"
        name = str(contrasts.obs_names[i])
        pl.top_genes(contrasts, i, n_genes=n_genes, show=False, save=path)
        yield Picture(path, name, f"Genes with the largest log2 fold changes in {name}.")


def draw_training(history: str, folder: Path) -> Picture:
    """Loss curves from the ``history.csv`` that came with the checkpoint."""
    from io import StringIO

    path = folder / "training.png"
    pl.training(pd.read_csv(StringIO(history), index_col=0), show=False, save=path)
    return Picture(
        path, "Loss while the model was trained.", "Training and validation loss.", keep_size=False
    )
