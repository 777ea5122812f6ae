"""Which cells of a donor its embedding, or the answer of the head, comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from cfm._arguments import checks_arguments
from cfm.models.pulsar._donors import stable_number
from cfm.models.pulsar._heads import HeadLearner

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cfm.models.pulsar._donors import Donors

Method = Literal["attention", "gradient"]


@dataclass(frozen=True)
class CellImportance:
    """How much each cell counts for its donor.

    Attributes
    ----------
    donors
        ``(n_donors,)`` names, sorted.
    cells
        ``(n_cells,)`` float32 in the order of the data, 1 for an average cell of its donor; with
        ``"gradient"`` negative where a cell speaks against.
    """

    donors: pd.Index
    cells: np.ndarray


class CellExplainer(HeadLearner):
    """A PULSAR that says which cells count."""

    @checks_arguments()
    def get_cell_importance(
        self,
        adata: AnnData | None = None,
        *,
        donor_key: str | None = None,
        use_rep: str | None = None,
        layer: str | None = None,
        method: Method = "attention",
        output: str | None = None,
        n_cells: int = 1024,
        seed: int = 0,
    ) -> CellImportance:
        """Say how much each cell counts for its donor.

        Parameters
        ----------
        adata, donor_key, use_rep, layer
            As for :meth:`get_donor_embeddings`.
        method
            ``"attention"`` is what the donor's token attends to, the mean over heads and layers.
            ``"gradient"`` is gradient times input, from the mean of all cells: of an output of
            the head, or without ``output`` of how far the donor's embedding lies from the mean of
            the donors, in that direction. Neither is a proof; see ``removal`` of
            :func:`cfm.tl.cell_importance`.
        output
            Output of the head to explain, for ``"gradient"``.
        n_cells
            Cells looked at together; donors with more are split at random into parts of about
            this size, as the model was trained on draws of them.
        seed
            Seed of the parts.

        Returns
        -------
        CellImportance

        Raises
        ------
        KeyError
            If the head has no such output, or as :meth:`get_donor_embeddings`.
        ValueError
            If the method is unknown, or ``output`` does not go with it.
        """
        place = self._output_place(output, method)
        donors = self.read_donors(adata, donor_key, use_rep, layer)
        self.module.eval()
        middle = torch.from_numpy(donors.cells.mean(axis=0)).to(self.device)
        directions = None
        if method == "gradient" and place is None:
            directions = self._directions(donors, n_cells, seed)
        out = np.zeros(len(donors.cells), dtype=np.float32)
        for i in range(len(donors.names)):
            for rows in _parts(donors, i, n_cells, seed):
                cells = torch.from_numpy(donors.cells[rows]).to(self.device)[None]
                if method == "attention":
                    found = self.module.attention(cells).mean(dim=(0, 2))[0, 1:]
                else:
                    direction = None if directions is None else directions[i]
                    found = self._gradient(cells, middle, place, direction)
                out[rows] = found.cpu().numpy()
            own = donors.rows[i]
            scale = np.abs(out[own]).mean()
            out[own] /= scale if scale > 0 else 1.0
        return CellImportance(donors.names, out)

    def _output_place(self, output: str | None, method: str) -> int | None:
        if output is None:
            return None
        if method != "gradient":
            raise ValueError("output= goes with method='gradient'; attention knows no outputs.")
        if self.head is None:
            raise ValueError("This model has no head; train one with train_head().")
        if output not in self.head["outputs"]:
            raise KeyError(f"The head has no output {output!r}; it has {self.head['outputs']}.")
        return int(self.head["outputs"].index(output))

    def _directions(self, donors: Donors, n_cells: int, seed: int) -> torch.Tensor:
        """Return where each donor lies from the mean of the donors, of length 1."""
        draws = [rows for _, rows in donors.draws(n_cells, 1, seed)]
        embedded = torch.from_numpy(self.embed_draws(donors, draws, 16, "float32"))
        away = embedded if len(draws) == 1 else embedded - embedded.mean(dim=0)
        return torch.nn.functional.normalize(away, dim=1).to(self.device)

    def _gradient(
        self,
        cells: torch.Tensor,
        middle: torch.Tensor,
        place: int | None,
        direction: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return gradient times input of the cells of one donor, ``(n,)``."""
        with torch.enable_grad():
            cells = cells.detach().requires_grad_()
            embedding = self.module.encode(cells)[:, 0]
            if direction is not None:
                score = (embedding * direction).sum()
            else:
                score = self.module.apply_head(embedding)[0, place]
            (gradient,) = torch.autograd.grad(score, cells)
        return ((cells - middle) * gradient).sum(dim=-1)[0].detach()

    @checks_arguments()
    def get_removal_effects(
        self,
        donors: Donors,
        groups: np.ndarray,
        *,
        n_cells: int = 1024,
        n_random: int = 3,
        seed: int = 0,
    ) -> list[tuple[int, str, float, float]]:
        """Say how far a donor's embedding moves without the cells of a group.

        Parameters
        ----------
        donors
            What :meth:`read_donors` returned.
        groups
            ``(n_cells,)`` text, the group of each cell; ``""`` for none.
        n_cells
            Cells of a donor that are looked at, a draw of them if there are more.
        n_random
            Draws of as many cells at random, to compare with.
        seed
            Seed of the draws.

        Returns
        -------
        For each donor and group: the donor, the group, the Euclidean distance and that without as
        many random cells; ``NaN`` where no cells would be left.
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
        embedded = self.embed_draws(donors, draws, 16, "float32")
        out = []
        for i, group, whole, places in found:
            moved = [float(np.linalg.norm(embedded[p] - embedded[whole])) for p in places]
            random = float(np.mean(moved[1:])) if moved[1:] else float("nan")
            out.append((i, str(group), moved[0] if moved else float("nan"), random))
        return out


def _parts(donors: Donors, donor: int, n_cells: int, seed: int) -> list[np.ndarray]:
    """Split the cells of a donor into parts of like size, at most ``n_cells``."""
    rows = donors.rows[donor]
    if len(rows) <= n_cells:
        return [rows]
    rng = np.random.default_rng([seed, stable_number(donors.names[donor])])
    return list(np.array_split(rng.permutation(rows), -(-len(rows) // n_cells)))
