"""The report: a template filled with what is stored in the contrasts, and figures of it."""

from __future__ import annotations

import struct
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from platform import python_version
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd

from cfm import pl
from cfm._fields import (
    CONTRASTS,
    DRUG_SCREEN_KEY,
    GENE_PROGRAMS_KEY,
    HOST_FACTORS_KEY,
    MAP_GENES,
    NO_RESPONSE,
    NOT_VIRAL,
    PARAMS,
    RESPONSE,
    RESULTS,
    SET_SEPARATOR,
    UNINFECTED,
    UNRESOLVED,
    VIRAL,
    VIRUS_KEY,
)
from cfm._report._tables import calls_table, drug_table, host_factor_table, program_table
from cfm.models.cellpulse._classifier import MIN_RESPONSE_SUPPORT, MIN_STUDIES, MIN_SUPPORT
from cfm.pl._figure import SAVE_DPI, SIGNIFICANT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData

#: More pictures of one kind would make a report that takes long to open.
MAX_GENE_FIGURES, MAX_GROUPS = 40, 12
#: Fewer points than this have no arrangement to look at.
_MIN_EMBEDDED = 3
_LISTED_GENES = 60
#: Files up to this size (bytes) lie in the report itself.
_EMBEDDED_SIZE = 1_000_000
#: Packages whose version can change a number in the report.
_PACKAGES = (
    "cfm-tools", "anndata", "captum", "decoupler", "gseapy", "igraph", "numpy", "pandas",
    "pydeseq2", "scanpy", "scikit-learn", "scvi-tools", "torch",
)  # fmt: skip
_FILES = {
    "calls.csv": "all probabilities and calls",
    "matches.csv": "similar public contrasts",
    "host_factors.csv": "host factors",
    "gene_programs.csv": "gene programs",
    "gene_program_sets.csv": "gene sets of the programs",
    "drug_screen.csv": "drug screen",
    "contrasts.h5ad": "everything, for Python",
}


@dataclass(frozen=True)
class Picture:
    """A PNG file, and what it shows."""

    path: Path
    alt: str

    @property
    def data_uri(self) -> str:
        """The file itself, for ``src=``."""
        return _data_uri(self.path, "image/png")

    @property
    def width(self) -> int:
        """Width in CSS pixels at which its text has the size of the text around it."""
        (pixels,) = struct.unpack(">I", self.path.read_bytes()[16:20])  # PNG header: IHDR width
        return round(pixels * 96 / SAVE_DPI)


@dataclass(frozen=True)
class Section:
    """A tool that explains the calls: its table and figures, or why there are none."""

    refused: str = ""
    table: pd.DataFrame | None = None
    pictures: Sequence[Picture] = ()
    fdr: pd.Series | None = None
    n_left_out: int = 0


def write_page(
    contrasts: AnnData,
    folder: Path,
    *,
    source: Mapping[str, str],
    groupby: str,
    basis: str,
    refused: Mapping[str, str],
    notes: Sequence[str],
    checkpoint: Any,
) -> Path:
    """Write ``report.html``, which stands alone, and its figures in ``figures/``.

    Parameters
    ----------
    contrasts
        With the results of all tools.
    folder
        Where ``calls.csv`` and the other tables are.
    source
        ``name`` of the input, its ``sha256`` (may be ``""``), ``samples``, ``genes``, ``citation``.
    groupby
        Column of ``obs`` with the known virus or condition.
    basis
        Embedding in ``obsm``.
    refused
        Why a tool refused, by the key of its result.
    notes
        Warnings of the run.
    checkpoint
        Of the classifier.
    """
    pictures = folder / "figures"
    pictures.mkdir(exist_ok=True)
    obs, made = contrasts.obs, contrasts.uns
    calls = calls_table(contrasts, VIRUS_KEY)
    calls["known"] = obs[groupby].astype(str).to_numpy()
    calls["study"] = obs["study"].astype(str).to_numpy() if "study" in obs else ""
    studies = checkpoint.config.get("classifier_studies")
    calls["in_training"] = [_is_in(study, studies) for study in calls["study"]]
    viruses = list(made[VIRUS_KEY]["classes"])
    known = calls[calls["known"].isin(viruses)]
    named = known[known["call"].isin(viruses)]
    none = (calls["response"] == NO_RESPONSE).groupby(calls["known"]).mean()
    unmapped = [str(name) for name in made[MAP_GENES]["unmapped"]]
    sections = _sections(contrasts, pictures, refused, groupby)
    stored = {"cfm.pp.map_genes": MAP_GENES, "cfm.pp.contrasts": CONTRASTS, "cfm.tl.embed": basis}
    stored |= {"cfm.tl.predict_virus": VIRUS_KEY, "cfm.tl.host_factors": HOST_FACTORS_KEY}
    stored |= {"cfm.tl.gene_programs": GENE_PROGRAMS_KEY, "cfm.tl.screen_drugs": DRUG_SCREEN_KEY}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cfm._report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,  # a missing name is an error, not an empty space
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    template = environment.get_template("report.html.j2")
    page = template.render(
        source=source,
        groupby=groupby,
        contrast_params=made[CONTRASTS][PARAMS],
        calls=calls.to_dict("records"),
        kinds=Counter(calls["response"]).most_common(),
        symbols={UNRESOLVED: "?", UNINFECTED: "○", NOT_VIRAL: "◇"},
        viruses=viruses,
        n_known=len(known),
        n_viral=int((known["response"] == VIRAL).sum()),
        n_named=len(named),
        n_agree=int((named["call"] == named["known"]).sum()),
        in_training=sorted(set(calls.loc[calls["in_training"] == True, "study"])),  # noqa: E712
        training_known=not calls["in_training"].isna().any(),
        without_response=[str(name) for name in none.index[none > 0.5]],
        least_support=MIN_SUPPORT,
        least_response_support=MIN_RESPONSE_SUPPORT,
        least_studies=MIN_STUDIES,
        most_fdr=SIGNIFICANT,
        figures=_figures(contrasts, pictures, groupby, basis, checkpoint.files.get("history.csv")),
        sections=sections,
        skipped=pd.DataFrame(made[CONTRASTS]["skipped"]),
        mapping=made[MAP_GENES],
        unmapped=unmapped[:_LISTED_GENES],
        n_more_unmapped=max(0, len(unmapped) - _LISTED_GENES),
        notes=notes,
        checkpoint=checkpoint,
        prediction=made[VIRUS_KEY][PARAMS],
        steps={step: made[key][PARAMS] for step, key in stored.items() if key in made},
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=_versions(),
        downloads=_downloads(folder),
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def _is_in(study: str, studies: Collection[str] | None) -> bool | None:
    if studies is None or not study:
        return None
    return any(part in studies for part in study.split(SET_SEPARATOR))


def _figures(
    contrasts: AnnData, folder: Path, groupby: str, basis: str, history: str | None
) -> dict[str, Any]:
    """Draw the contrasts: probabilities, embedding, strongest genes; and the training."""
    drawn: dict[str, Any] = {}
    path = folder / "virus_probabilities.png"
    pl.virus_probabilities(contrasts, key=VIRUS_KEY, truth=groupby, show=False, save=path)
    drawn["probabilities"] = Picture(path, "Heat map of the probabilities of all contrasts.")
    drawn["embedding"] = drawn["training"] = None
    if contrasts.n_obs >= _MIN_EMBEDDED:
        path = folder / "embedding.png"
        several = contrasts.obs[groupby].nunique() > 1  # one level would be one colour
        colors = [VIRUS_KEY + RESPONSE, groupby] if several else [VIRUS_KEY + RESPONSE]
        pl.embedding(contrasts, basis=basis, color=colors, show=False, save=path)
        drawn["embedding"] = Picture(path, "The contrasts in two components of the embedding.")
    drawn["genes"] = []
    for i, name in enumerate(contrasts.obs_names[:MAX_GENE_FIGURES]):
        path = folder / f"top_genes_{i + 1:02d}.png"
        pl.top_genes(contrasts, i, n_genes=10, show=False, save=path)
        drawn["genes"].append(Picture(path, f"Largest log2 fold changes in {name}."))
    if history is not None:
        path = folder / "training.png"
        pl.training(pd.read_csv(StringIO(history), index_col=0), show=False, save=path)
        drawn["training"] = Picture(path, "Training and validation loss.")
    return drawn


def _sections(
    contrasts: AnnData, folder: Path, refused: Mapping[str, str], groupby: str
) -> dict[str, Section]:
    """Draw what explains the calls, and make its tables; by the key of the result."""
    sections = {key: Section(refused=why) for key, why in refused.items()}
    ranked: dict[str, tuple[Any, dict[str, Any]]] = {
        HOST_FACTORS_KEY: (host_factor_table, {"ranked": partial(pl.host_factors, n_genes=12)}),
        DRUG_SCREEN_KEY: (
            drug_table,
            {"ranked": pl.drug_screen, "evidence": partial(pl.drug_screen, kind="scatter")},
        ),
    }
    for key, (short, plots) in ranked.items():
        if key in refused:
            continue
        table, pictures = contrasts.uns[key][RESULTS], []
        groups = [str(name) for name in table["group"].astype(str).unique()]
        for i, group in enumerate(groups[:MAX_GROUPS], start=1):
            for kind, plot in plots.items():
                path = folder / f"{key}_{kind}_{i:02d}.png"
                plot(contrasts, group=group, show=False, save=path)
                pictures.append(Picture(path, f"{key.replace('_', ' ')} of {group}, {kind}"))
        n_left_out = max(0, len(groups) - MAX_GROUPS)
        sections[key] = Section("", short(table), pictures, table["fdr"], n_left_out)
    if GENE_PROGRAMS_KEY not in refused:
        heatmap, network = folder / "gene_programs.png", folder / "gene_program_network.png"
        by = groupby if contrasts.obs[groupby].nunique() > 1 else None
        pl.gene_programs(contrasts, groupby=by, show=False, save=heatmap)
        pl.gene_programs(contrasts, kind="network", show=False, save=network)
        pictures = [
            Picture(heatmap, "Effects of the first genes of each program in every contrast."),
            Picture(network, "First genes of each program, and their links in the model."),
        ]
        table = program_table(contrasts.uns[GENE_PROGRAMS_KEY])
        sections[GENE_PROGRAMS_KEY] = Section("", table, pictures, table["FDR"])
    return {key: sections[key] for key in (HOST_FACTORS_KEY, GENE_PROGRAMS_KEY, DRUG_SCREEN_KEY)}


def _downloads(folder: Path) -> list[dict[str, str]]:
    """Return names, links and contents of the files beside the report; small ones are in it."""
    found = []
    for name, content in _FILES.items():
        path = folder / name
        if path.exists():
            small = path.suffix == ".csv" and path.stat().st_size <= _EMBEDDED_SIZE
            link = _data_uri(path, "text/csv") if small else name
            found.append({"name": name, "link": link, "content": content})
    return found


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{b64encode(path.read_bytes()).decode('ascii')}"


def _versions() -> dict[str, str]:
    found = {"python": python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree that was never installed
            continue
    return found


def shown(value: Any) -> str:
    """Return a stored value as text: three significant digits, a dash for what is missing."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None or (isinstance(value, str) and not value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{float(value) + 0.0:.3g}".replace("-", "−")
    if isinstance(value, list | tuple | set):
        return ", ".join(shown(part) for part in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} = {shown(part)}" for name, part in value.items()) or "none"
    return str(value)
