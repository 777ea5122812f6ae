"""Which cells of a donor its embedding, or the answer of the head, comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cfm.models.pulsar._data import stable_number

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from cfm.models.pulsar._data import Donors
    from cfm.models.pulsar._module import PulsarModule


@dataclass(frozen=True)
class CellImportance:
    """How much each cell counts for its donor.

    Attributes
    ----------
    donors
        ``(n_donors,)`` names, sorted.
    cells
        ``(n_cells,)`` float32 in the order of the data, 1 for an average cell of its donor; with
        ``"gradient"`` negative where a cell lowers the output.
    """

    donors: pd.Index
    cells: np.ndarray


def attention_importance(
    module: PulsarModule, donors: Donors, n_cells: int, seed: int
) -> np.ndarray:
    """Return the attention of the donor's token to each cell, the mean over heads and layers.

    Parameters
    ----------
    module
        The network.
    donors
        Their cells.
    n_cells
        Cells looked at together.
    seed
        Seed of the parts that larger donors are split into.

    Returns
    -------
    ``(n_cells,)`` float32, 1 for an average cell of its donor.
    """

    def score(donor: int, cells: Tensor) -> Tensor:
        return module.attention(cells).mean(dim=(0, 2))[0, 1:]

    return _by_parts(module, donors, n_cells, seed, score)


def gradient_importance(
    module: PulsarModule, donors: Donors, n_cells: int, seed: int, output: int | None = None
) -> np.ndarray:
    """Return gradient times input of each cell, from the mean of all cells.

    Parameters
    ----------
    module, donors, n_cells, seed
        As for :func:`attention_importance`.
    output
        Number of the output of the head to explain; ``None`` for how far the donor's embedding
        lies from the mean of the donors, in that direction.

    Returns
    -------
    ``(n_cells,)`` float32, of an absolute mean of 1 for each donor.
    """
    device = module.cls_embedding.device
    middle = torch.from_numpy(donors.cells.mean(axis=0)).to(device)
    directions: Tensor | None = None
    if output is None:
        draws = [rows for _, rows in donors.draws(n_cells, 1, seed)]
        embedded = torch.from_numpy(module.embed_draws(donors.cells, draws))
        away = embedded if len(draws) == 1 else embedded - embedded.mean(dim=0)
        directions = F.normalize(away, dim=1).to(device)

    def score(donor: int, cells: Tensor) -> Tensor:
        with torch.enable_grad():
            cells = cells.requires_grad_()
            embedding = module.encode(cells)[:, 0]
            if directions is None:
                explained = module.apply_head(embedding)[0, output]
            else:
                explained = (embedding * directions[donor]).sum()
            (gradient,) = torch.autograd.grad(explained, cells)
        return ((cells - middle) * gradient).sum(dim=-1)[0].detach()

    return _by_parts(module, donors, n_cells, seed, score)


def _by_parts(
    module: PulsarModule,
    donors: Donors,
    n_cells: int,
    seed: int,
    score: Callable[[int, Tensor], Tensor],
) -> np.ndarray:
    """Score the cells of each donor in parts, and divide by the mean absolute score of a donor.

    ``score`` takes the number of a donor and ``(1, n, input_dim)`` of its cells to ``(n,)``.
    """
    module.eval()
    out = np.zeros(len(donors.cells), dtype=np.float32)
    for donor, own in enumerate(donors.rows):
        for rows in donors.parts(donor, n_cells, seed):
            cells = torch.from_numpy(donors.cells[rows]).to(module.cls_embedding.device)
            out[rows] = score(donor, cells[None]).cpu().numpy()
        scale = np.abs(out[own]).mean()
        out[own] /= scale if scale > 0 else 1.0
    return out


def removal_effects(
    module: PulsarModule,
    donors: Donors,
    groups: np.ndarray,
    *,
    n_cells: int,
    n_random: int,
    seed: int,
) -> list[tuple[int, str, float, float]]:
    """Return how far embeddings move without groups of cells.

    :meth:`cfm.models.Pulsar.get_removal_effects` documents arguments and result.
    """
    draws: list[np.ndarray] = []
    found: list[tuple[int, str, int, list[int]]] = []
    for i, rows in donors.draws(n_cells, 1, seed):
        whole = len(draws)
        draws.append(rows)
        rng = np.random.default_rng([seed, stable_number(donors.names[i])])
        for group in sorted(set(groups[rows]) - {""}):
            inside = groups[rows] == group
            if inside.all():
                found.append((i, group, whole, []))
                continue
            places = [len(draws)]
            draws.append(rows[~inside])
            for _ in range(n_random):
                places.append(len(draws))
                kept = rng.permutation(len(rows))[int(inside.sum()) :]
                draws.append(rows[kept])
            found.append((i, group, whole, places))
    embedded = module.embed_draws(donors.cells, draws)
    out = []
    for i, group, whole, places in found:
        moved = [float(np.linalg.norm(embedded[p] - embedded[whole])) for p in places]
        random = float(np.mean(moved[1:])) if moved[1:] else float("nan")
        out.append((i, str(group), moved[0] if moved else float("nan"), random))
    return out
