"""All plots with data made up for them, and what is on a drawn figure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

import cfm
from tests.pl._stored import (
    make_donors,
    make_graph,
    make_importance,
    make_predicted,
    make_probed,
    make_scores,
    make_screen,
    make_searched,
    make_survival,
    with_cell_codes,
    with_drug_screen,
    with_gene_programs,
    with_host_factors,
)


def _two(make: Callable[..., ad.AnnData], key: str, *args: Any, **other: Any) -> ad.AnnData:
    """Data with a result, and another one of the same tool under ``"other"``."""
    adata, second = make(*args), make(*args, **other)
    for name in ("obs", "obsm", "uns"):
        into, source = getattr(adata, name), getattr(second, name)
        for field in [field for field in source if field.startswith(key)]:
            value = source[field]
            if isinstance(value, pd.DataFrame | pd.Series) and name != "uns":
                value = value.set_axis(adata.obs_names)
            into[field.replace(key, "other", 1)] = value
    return adata


def _moved() -> ad.AnnData:
    """Cells with a code before and after, and measured codes."""
    adata = _two(with_cell_codes, "cell_code", 8, seed=1)
    codes = adata.obs["cell_code"]
    adata.obs["cell_code_before"], adata.obs["cell_code_after"] = codes, np.roll(codes, 1)
    return adata


def _predicted() -> ad.AnnData:
    adata = _two(make_predicted, "predicted_virus", 6, seed=9)
    adata.layers["half"] = 0.5 * adata.X[:, ::-1]
    adata.obsm["X_other"] = np.array(adata.obsm["X_cellpulse"][:, ::-1])
    adata.obsm["X_flat"] = adata.obsm["X_other"][:, :2]
    return adata


def _donors() -> ad.AnnData:
    adata = make_donors()
    adata.obsm["X_other"] = adata.obsm["X_pulsar"][:, ::-1].copy()
    return adata


def _programs() -> ad.AnnData:
    adata = _two(with_gene_programs, "gene_programs", (8, 6, 5), seed=1)
    adata.layers["half"] = adata.X * -0.5
    adata.obs["name"] = [f"profile {i}" for i in range(adata.n_obs)]
    return adata


def _searched() -> ad.AnnData:
    adata = make_searched()
    adata.uns["other"] = make_searched(direction="opposite").uns["signature_search"]
    adata.layers["half"] = adata.X * 0.5
    adata.layers["p"] = np.random.default_rng(0).uniform(size=adata.shape)
    adata.var["level"] = np.arange(float(adata.n_vars))
    return adata


def _survival() -> ad.AnnData:
    adata = _two(make_survival, "probe")
    adata.obs["other_risk_group"] = adata.obs["probe_risk_group"].to_numpy()[::-1]
    adata.obs["stage"] = [f"stage {i % 3}" for i in range(adata.n_obs)]
    return adata


def _screen() -> tuple[ad.AnnData, ad.AnnData]:
    parts = make_screen()
    out = []
    for part, change in zip(parts, (0.3, -0.2), strict=True):
        more = part[part.obs["condition"] == "IFN"].copy()
        more.X = more.X + change * np.linspace(-1, 1, 30, dtype=np.float32)
        more.obs["condition"] = "TNF"
        more.obs_names = [f"{name}-tnf" for name in more.obs_names]
        both = ad.concat([part, more], merge="same", uns_merge="first")
        both.obs["swapped"] = both.obs["condition"].replace({"IFN": "TNF", "TNF": "IFN"})
        both.obs.loc[both.obs_names[-2], "swapped"] = "IFN"
        out.append(both)
    real, made = out
    real.layers["half"] = 0.5 * real.X
    real.var["symbol"] = [f"S{i}" for i in range(30)]
    return real, made


def _scores() -> pd.DataFrame:
    scores = make_scores(["B cell", "T cell", "NK cell"])
    more = scores.assign(perturbation="TNF", value=scores["value"] * 1.2)
    return pd.concat([scores, more], ignore_index=True)


def _history() -> pd.DataFrame:
    names = ["train_loss", "validation_loss", "train_size"]
    return pd.DataFrame({name: np.linspace(2 + i, 1, 6) for i, name in enumerate(names)})


#: What each plot is called with first, made anew.
DATA: dict[str, Callable[[], tuple[Any, ...]]] = {
    "cell_codes": lambda: (_two(with_cell_codes, "cell_code", 8, seed=1),),
    "cell_importance": lambda: (_two(make_importance, "cell_importance", seed=1),),
    "classification": lambda: (_predicted(), "virus"),
    "code_transitions": lambda: (_moved(),),
    "donors": lambda: (_donors(),),
    "drug_screen": lambda: (_two(with_drug_screen, "drug_screen", 40, ("IAV", "RSV"), seed=1),),
    "embedding": lambda: (_predicted(),),
    "gene_programs": lambda: (_programs(),),
    "host_factor_enrichment": lambda: (
        _two(with_host_factors, "host_factors", 40, ("IAV", "RSV"), seed=1),
        ["GENE1", "GENE5", "GENE9"],
    ),
    "host_factors": lambda: (_two(with_host_factors, "host_factors", 40, ("IAV", "RSV"), seed=1),),
    "knowledge_graph": lambda: (_two(make_graph, "knowledge_graph", seed=1),),
    "perturbation_effect": _screen,
    "perturbation_metrics": lambda: (_scores(),),
    "perturbation_umap": _screen,
    "probe": lambda: (_two(make_probed, "probe", 3, seed=1),),
    "signature_search": lambda: (_searched(),),
    "survival": lambda: (_survival(),),
    "top_genes": lambda: (_predicted(),),
    "training": lambda: (_history(),),
    "virus_probabilities": lambda: (_predicted(),),
    "volcano": lambda: (_searched(),),
}
#: Arguments with which a plot is quick and of one panel.
BASE: dict[str, dict[str, Any]] = {
    "drug_screen": {"group": "IAV"},
    "host_factors": {"group": "IAV"},
    "host_factor_enrichment": {"group": "IAV", "n_permutations": 20},
    "perturbation_effect": {"perturbation": "IFN"},
    "perturbation_metrics": {"metric": "mmd"},
    "perturbation_umap": {"perturbation": "IFN"},
}
#: The other pictures of a plot.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in DATA} | {
    "code markers": ("cell_codes", {"kind": "markers"}),
    "code map": ("cell_codes", {"kind": "map"}),
    "removal": ("cell_importance", {"kind": "removal"}),
    "scatter": ("drug_screen", {"kind": "scatter"}),
    "network": ("gene_programs", {"kind": "network"}),
    "class calibration": ("classification", {"kind": "calibration"}),
    "probe roc": ("probe", {"kind": "roc"}),
    "probe precision_recall": ("probe", {"kind": "precision_recall"}),
    "probe confusion": ("probe", {"kind": "confusion"}),
    "probe calibration": ("probe", {"kind": "calibration"}),
}


def draw(name: str, data: tuple[Any, ...] | None = None, **arguments: Any) -> Any:
    """Draw one of :data:`KINDS`."""
    plot, kind = KINDS[name]
    data = DATA[plot]() if data is None else data
    return getattr(cfm.pl, plot)(*data, **BASE.get(plot, {}) | kind | arguments)


def digest(drawn: Axes | dict[str, Axes]) -> str:
    """Return a hash of the artists of a figure: places, texts, colours, shapes, limits."""
    ax = next(iter(drawn.values())) if isinstance(drawn, dict) else drawn
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()
    found = [part for artist in figure.findobj() for part in _looks(artist)]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _looks(artist: Artist) -> list[Any]:
    """Return what is seen of an artist."""
    if not artist.get_visible():
        return []
    name = type(artist).__name__
    if isinstance(artist, Axes):
        return [name, artist.get_xlim(), artist.get_ylim(), artist.get_yscale()]
    if isinstance(artist, Text):
        look = (to_hex(artist.get_color()), artist.get_fontsize(), artist.get_fontweight())
        return [name, artist.get_text(), artist.get_position(), look]
    if isinstance(artist, Line2D):
        look = (str(artist.get_color()), artist.get_linestyle(), str(artist.get_marker()))
        return [name, artist.get_xydata().tolist(), look, artist.get_linewidth()]
    if isinstance(artist, Patch):
        look = (artist.get_facecolor(), artist.get_edgecolor(), artist.get_hatch())
        return [
            name,
            artist.get_transform().transform_path(artist.get_path()).vertices.tolist(),
            look,
        ]
    if isinstance(artist, AxesImage):
        return [name, np.ma.filled(artist.get_array(), np.nan).tolist(), artist.get_cmap().name]
    if isinstance(artist, Collection):
        paths = [path.vertices.tolist() for path in artist.get_paths()]
        colors = [artist.get_facecolor().tolist(), artist.get_edgecolor().tolist()]
        sizes = artist.get_sizes().tolist() if hasattr(artist, "get_sizes") else []
        return [name, np.asarray(artist.get_offsets()).tolist(), paths, colors, sizes]
    return []
