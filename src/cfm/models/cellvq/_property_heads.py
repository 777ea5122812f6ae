"""Property heads: classifiers of cells, such as of cell type or tissue.

As published, a head is linear on the embedding of a cell. Ours can read expression instead
(:class:`ExpressionHead`): in cells of another laboratory that names more of them right.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from cfm._arguments import check_whole
from cfm.stats._discriminant import ARRAYS, GeneDiscriminant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scipy import sparse

#: Text file of a checkpoint with the classes, and setting with the confidence levels.
CLASSES_FILE, LEVELS = "properties.json", "confidence_levels"
#: Quantiles of the confidence that are kept: 0, 0.01, …, 0.5.
QUANTILES = np.linspace(0.0, 0.5, 51)
#: Setting of a checkpoint: by name of a head that reads expression the number of its factors.
EXPRESSION = "expression_heads"


class ExpressionHead(nn.Module):
    """A head that reads expression: linear discriminant analysis for whichever genes are measured.

    Its arrays are those of :class:`cfm.stats._discriminant.GeneDiscriminant`, as buffers; genes of
    abundance 0 were not there to learn from, and are not read.

    Parameters
    ----------
    n_classes, n_genes, n_factors
        Sizes.
    """

    slope: Tensor

    def __init__(self, n_classes: int, n_genes: int, n_factors: int) -> None:
        super().__init__()
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(ARRAYS, (n_genes,))
        shapes |= {"means": (n_classes, n_genes), "factors": (n_genes, n_factors), "slope": ()}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.n_factors = n_factors

    @classmethod
    def of(cls, found: GeneDiscriminant, genes: np.ndarray, n_genes: int) -> Self:
        """Make a head of a discriminant of some of the genes of the model."""
        head = cls(len(found.means), n_genes, found.factors.shape[1])
        head.fill(found, genes, np.arange(len(found.means)))
        return head

    @torch.no_grad()
    def fill(self, found: GeneDiscriminant, genes: np.ndarray, classes: np.ndarray) -> None:
        """Set the arrays to those of a discriminant of some genes, its classes in this order.

        What it has fewer of, classes or factors, is 0.
        """
        device = self.slope.device
        at = torch.from_numpy(genes).to(device)
        for name in ARRAYS:
            array = torch.as_tensor(np.asarray(getattr(found, name)), dtype=torch.float32)
            array, buffer = array.to(device), getattr(self, name)
            if name == "slope":
                buffer.copy_(array)
                continue
            buffer.zero_()
            if name == "means":
                buffer[: len(classes), at] = array[torch.from_numpy(classes)]
            elif name == "factors":
                buffer[at, : array.shape[1]] = array
            else:
                buffer[at] = array

    def found(self) -> GeneDiscriminant:
        """Return the discriminant."""
        arrays = {name: getattr(self, name).cpu().numpy().astype(float) for name in ARRAYS}
        return GeneDiscriminant(**arrays | {"slope": float(arrays["slope"])})

    def predict(self, values: sparse.csr_matrix, measured: np.ndarray) -> np.ndarray:
        """Return probabilities of cells.

        Parameters
        ----------
        values
            ``(b, n_genes)``, ``log1p`` of counts per 10,000.
        measured
            ``(n_genes,)`` bool, which genes are measured.

        Returns
        -------
        ``(b, n_classes)`` float64; ``NaN`` for cells without a count of the genes of the head.
        """
        found = self.found()
        genes = np.flatnonzero(measured & (found.abundance > 0))
        counts = np.expm1(values[:, genes].toarray().astype(float))
        out = np.exp(found.log_probabilities(counts, genes))
        out[counts.sum(axis=1) == 0] = np.nan
        return out


class PropertyHeads(nn.ModuleList):
    """Heads, one per property, and their confidence.

    A module of the network, because linear heads and encoder are trained together. A head is a
    ``torch.nn.Linear`` on the embedding or an :class:`ExpressionHead`, in the order of
    :attr:`classes`.

    Parameters
    ----------
    n_features
        Width of the embedding.
    classes
        Classes of each head by the name of its property.

    Attributes
    ----------
    n_features
        See above.
    classes
        Classes of each head, lists of str by the name of the property.
    confidence_levels
        By name of a head the quantiles 0, 0.01, …, 0.5 of the largest probability that it gives
        held-out cells; see :meth:`least_confidence`. Missing for heads that were not trained here.
    """

    classes: dict[str, list[str]]
    confidence_levels: dict[str, list[float]]

    def __init__(self, n_features: int, classes: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__()
        self.n_features = n_features
        self.classes = check_classes(classes or {})
        self.confidence_levels = {}
        self.extend(nn.Linear(n_features, len(names)) for names in self.classes.values())

    @classmethod
    def from_state(
        cls, n_features: int, n_genes: int, settings: Mapping[str, Any], files: Mapping[str, str]
    ) -> Self:
        """Make heads, untrained, from what :meth:`state` returned.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is damaged.
        """
        heads = cls(n_features, json.loads(files[CLASSES_FILE]))
        heads.confidence_levels = check_levels(settings.get(LEVELS, {}), heads.classes)
        for name, n_factors in dict(settings.get(EXPRESSION, {})).items():
            n_classes = len(heads.classes[name])
            heads.put(name, ExpressionHead(n_classes, n_genes, check_whole("n_factors", n_factors)))
        return heads

    def state(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return settings and text files of a checkpoint; weights are in ``state_dict()``."""
        settings: dict[str, Any] = {}
        if self.confidence_levels:
            settings[LEVELS] = self.confidence_levels
        expression = {name: head.n_factors for name, head in self.expression().items()}
        if expression:
            settings[EXPRESSION] = expression
        # in a file, as there may be thousands of names
        text = json.dumps(self.classes, ensure_ascii=False, indent=0) + "\n"
        return settings, {CLASSES_FILE: text}

    def choose(self, names: str | Sequence[str] | None, default: Sequence[str] = ()) -> list[str]:
        """Return the names of the chosen heads, each once, in the order of ``names``.

        Parameters
        ----------
        names
            One or more heads; by default those of ``default`` that exist, or all.

        Raises
        ------
        KeyError
            If there is no head of a name.
        ValueError
            If there are no heads at all, or ``names`` is empty.
        """
        if not self.classes:
            raise ValueError(
                "The model has no property heads; train it with setup_anndata(adata, "
                "labels_keys=[…]), or learn a property from its embeddings with cfm.tl.probe."
            )
        if names is None:
            names = [name for name in self.classes if name in default] or list(self.classes)
        names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        if not names:
            raise ValueError(
                f"properties= is empty; expected some of {list(self.classes)}, or None for all."
            )
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise KeyError(
                f"The model has no property heads {unknown}; it has {list(self.classes)}."
            )
        return names

    def change(self, properties: Mapping[str, Sequence[str] | None], *, seed: int = 0) -> None:
        """Add or replace heads, untrained; ``None`` removes a head, others stay.

        Raises
        ------
        KeyError
            If a head to remove does not exist.
        TypeError, ValueError
            If classes are one text, none, empty or named twice.
        """
        removed = [name for name, names in properties.items() if names is None]
        unknown = [name for name in removed if name not in self.classes]
        if unknown:
            raise KeyError(f"The model has no heads {unknown}; it has {list(self.classes)}.")
        new = check_classes({k: v for k, v in properties.items() if v is not None})
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        heads = dict(zip(self.classes, self, strict=True))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for name, names in new.items():
                heads[name] = nn.Linear(self.n_features, len(names)).to(device)
        for name in properties:
            self.confidence_levels.pop(name, None)
        self.classes = {k: v for k, v in (self.classes | new).items() if k not in removed}
        del self[:]
        self.extend(heads[name] for name in self.classes)

    def put(self, name: str, head: nn.Module) -> None:
        """Replace a head by another one of the same classes."""
        self[list(self.classes).index(name)] = head

    def expression(self) -> dict[str, ExpressionHead]:
        """Return the heads that read expression, by name."""
        found = zip(self.classes, self, strict=True)
        return {name: head for name, head in found if isinstance(head, ExpressionHead)}

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """Return logits ``(b, n_classes)`` by name of ``(b, n_features)`` embeddings.

        Heads that read expression are left out.
        """
        heads = zip(self.classes, self, strict=True)
        return {name: head(embedding) for name, head in heads if isinstance(head, nn.Linear)}

    @torch.no_grad()
    def predict(self, embedding: Tensor) -> dict[str, np.ndarray]:
        """Return probabilities ``(b, n_classes)`` float64 by name of embeddings."""
        return {
            name: torch.softmax(logits.double(), dim=-1).cpu().numpy()
            for name, logits in self(embedding.float()).items()
        }

    def fit_expression(
        self,
        name: str,
        counts: np.ndarray,
        labels: np.ndarray,
        *,
        genes: np.ndarray,
        n_genes: int,
        studies: np.ndarray | None = None,
    ) -> None:
        """Fit a head on expression; an existing one is replaced.

        Its confidence levels are those of cells that were held out: a study at a time, or a fifth
        of the cells where no two studies share classes.

        Parameters
        ----------
        name
            Property.
        counts
            ``(n, n_measured)``, counts of cells.
        labels
            ``(n,)`` text, the class of each cell.
        genes
            ``(n_measured,)`` int, which genes of the model these are.
        n_genes
            Genes of the model.
        studies
            ``(n,)`` study of each cell.
        """
        names = self.classes.get(name, [])
        if set(labels) - set(names):
            names = sorted(set(labels))
            self.change({name: names})
        present, classes = np.unique(labels, return_inverse=True)
        if len(present) < len(names):
            raise ValueError(f"No cell has the classes {sorted(set(names) - set(present))}.")
        order = np.argsort(np.argsort(names))
        found, sure = GeneDiscriminant.fit(counts, classes, studies)
        found = replace(found, means=found.means[order])
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        self.put(name, ExpressionHead.of(found, genes, n_genes).to(device))
        self.confidence_levels.pop(name, None)
        if len(sure):
            self.set_confidence_levels(name, sure)

    def set_confidence_levels(self, name: str, confidence: np.ndarray) -> None:
        """Store the quantiles of ``(n_cells,)`` largest probabilities of held-out cells."""
        self.confidence_levels[name] = np.quantile(confidence.astype(float), QUANTILES).tolist()

    def least_confidence(self, name: str, unknown: float) -> float:
        """Return the probability below which a share ``unknown`` of held-out cells lies, or 0."""
        levels = self.confidence_levels.get(name)
        if levels is None or unknown <= 0:
            return 0.0
        return float(np.interp(unknown, QUANTILES, levels))


def check_classes(classes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the classes of properties as lists of text.

    Raises
    ------
    TypeError, ValueError
        If classes are one text, none, empty or named twice, or the name of a property is empty.
    """
    out = {}
    for name, given in classes.items():
        if isinstance(given, str):
            raise TypeError(f"The classes of {name!r} are one text ({given!r}); expected a list.")
        names = [str(c) for c in given]
        if not name or not names or "" in names or len(set(names)) < len(names):
            raise ValueError(
                f"The property {name!r} has the classes {names[:8]}; expected at least one, each "
                "with a name of its own."
            )
        out[str(name)] = names
    return out


def check_levels(levels: Any, classes: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the confidence levels of heads by name.

    Raises
    ------
    ValueError
        If they are of other heads, or are not rising probabilities.
    """
    found = {}
    for name, numbers in dict(levels).items():
        values = np.array(numbers, dtype=np.float64)
        rising = values.shape == QUANTILES.shape and bool((np.diff(values) >= 0).all())
        if name not in classes or not rising or values[0] < 0 or values[-1] > 1:
            raise ValueError(f"The confidence levels of {name!r} are damaged.")
        found[name] = values.tolist()
    return found
