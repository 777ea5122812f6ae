"""Control, perturbed and simulated cells on one map."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from cfm.pl._figure import figure_of, legend_below
from cfm.pl._labels import Place, label_points, shorten
from cfm.pl._palette import COLORS, GREY, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cfm.pl._perturbation_cells import Cells, Screen

#: Of control, real and simulated cells.
_STYLES = (Style(GREY, "o"), Style(COLORS[0], "^"), Style(COLORS[1], "s"))
_N_GENES, _N_COMPONENTS, _N_NEIGHBORS = 2000, 30, 15
#: Cells are drawn in so many rounds, so that no kind covers the others.
_ROUNDS = 20
#: The name of a group stands on it; names of groups that lie together below each other.
_STEP = 11.0
_MIDDLE: tuple[Place, ...] = tuple(
    (0.0, _STEP * turn, "center", "center") for turn in (0, -1, 1, -2, 2, -3, 3)
)


def joint_map(
    screen: Screen, *, n_cells: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay out all three kinds of cells together.

    Log expression of the 2,000 most variable genes, 30 principal components, 15 neighbours, UMAP
    (scanpy), all fitted on the three kinds together.

    Returns
    -------
    ``(n, 2)`` coordinates; ``(n,)`` kind: 0 control, 1 real, 2 simulated; ``(n,)`` group.
    """
    import scanpy as sc

    groups = screen.groups if screen.groups != [""] else None
    parts = (
        (screen.real, screen.control, "control"),
        (screen.real, screen.perturbations, "perturbed"),
        (screen.simulated, screen.perturbations, "simulated"),
    )
    values, kinds, names = [], [], []
    for kind, (cells, levels, name) in enumerate(parts):
        rows = cells.rows(levels)
        if groups is not None:
            rows = rows[np.isin(cells.group[rows], groups)]
        rows = _drawn(cells, rows, n_cells, seed + kind)
        if len(rows) < 2:
            raise ValueError(f"There are {len(rows)} {name} cells to draw; at least 2 are needed.")
        values.append(cells.read(rows))
        kinds.append(np.full(len(rows), kind))
        names.append(cells.group[rows])
    joint = AnnData(np.concatenate(values).astype(np.float32))
    spread = joint.X.std(axis=0)
    joint = joint[:, spread > 0].copy()
    if joint.n_vars < 2:
        raise ValueError("Fewer than two genes vary over the cells; there is nothing to lay out.")
    if joint.n_vars > _N_GENES:
        sc.pp.highly_variable_genes(joint, n_top_genes=_N_GENES)
        joint = joint[:, joint.var["highly_variable"].to_numpy()].copy()
    n_components = min(_N_COMPONENTS, joint.n_obs - 1, joint.n_vars - 1)
    with warnings.catch_warnings():
        # umap-learn tells that one thread is used with a seed, and how it starts on few cells
        warnings.filterwarnings("ignore", module="umap")
        warnings.filterwarnings("ignore", module="sklearn")
        sc.pp.pca(joint, n_comps=n_components, random_state=seed)
        sc.pp.neighbors(joint, n_neighbors=min(_N_NEIGHBORS, joint.n_obs - 1), random_state=seed)
        sc.tl.umap(joint, random_state=seed)
    return np.asarray(joint.obsm["X_umap"]), np.concatenate(kinds), np.concatenate(names)


def draw_map(
    ax: Axes, points: np.ndarray, kind: np.ndarray, group: np.ndarray, screen: Screen, seed: int
) -> None:
    """Draw each kind of cell in its colour and marker, and the names of groups on top."""
    what = screen.perturbations[0] if len(screen.perturbations) == 1 else "perturbed"
    what = shorten(what, 24)
    by = f" ({shorten(screen.model, 24)})" if screen.model else ""
    texts = (screen.control, f"{what}, real", f"{what}, simulated{by}")
    area = float(np.clip(9_000 / len(points), 5, 30))
    rng = np.random.default_rng(seed)
    rounds = rng.integers(_ROUNDS, size=len(points))
    handles = []
    for number, (style, text) in enumerate(zip(_STYLES, texts, strict=True)):
        for turn in range(_ROUNDS):
            x, y = points[(kind == number) & (rounds == turn)].T
            ax.scatter(
                x,
                y,
                s=area,
                color=style.color,
                marker=style.marker,
                alpha=0.75,
                linewidths=0,
                zorder=2 + turn / _ROUNDS,
                rasterized=True,
            )
        handles.append(
            ax.scatter(
                [],
                [],
                s=26,
                color=style.color,
                marker=style.marker,
                label=f"{shorten(text, 50)}: {int((kind == number).sum()):,} cells",
            )
        )
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel("UMAP 1", fontsize=8)
    ax.set_ylabel("UMAP 2", fontsize=8)
    ax.margins(0.06)
    ax.spines[["top", "right"]].set_visible(False)
    legend_below(ax, handles, columns=1, drop=0.22)
    names = [name for name in dict.fromkeys(group) if name]
    if names:
        figure_of(ax).draw_without_rendering()  # places need the final layout
        # cells that were left alone say where a group lies: the others may have gone astray
        middles = []
        for name in names:
            own = [points[(group == name) & (kind == number)] for number in range(3)]
            middles.append(np.median(next(part for part in own if len(part)), axis=0))
        label_points(
            ax,
            np.array(middles),
            [shorten(name, 24) for name in names],
            fontsize=8.5,
            halo="white",
            places=_MIDDLE,
        )


def _drawn(cells: Cells, rows: np.ndarray, n_cells: int, seed: int) -> np.ndarray:
    """Choose cells at random; their names decide, also in which order they are laid out."""
    names = cells.adata.obs_names[rows].to_numpy(dtype=object)
    rows = rows[np.argsort(names, kind="stable")]
    drawn = np.random.default_rng(seed).permutation(len(rows))[:n_cells]
    return rows[np.sort(drawn)]
