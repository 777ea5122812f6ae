"""Property heads: linear classifiers on the cell embedding, such as of cell type or tissue."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Text file of a checkpoint with the classes, and setting with the confidence levels.
CLASSES_FILE, LEVELS = "properties.json", "confidence_levels"
#: Quantiles of the confidence that are kept: 0, 0.01, …, 0.5.
QUANTILES = np.linspace(0.0, 0.5, 51)
#: Iterations of the logistic regression at most.
_MAX_ITER = 500


class PropertyHeads(nn.ModuleList):
    """Linear heads on the embedding of a cell, one per property, and their confidence.

    A module of the network, because heads and encoder are trained together; :meth:`fit` fits one
    head on fixed embeddings. Heads are ``torch.nn.Linear``, in the order of :attr:`classes`.

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
        cls, n_features: int, settings: Mapping[str, Any], files: Mapping[str, str]
    ) -> Self:
        """Make heads, untrained, from what :meth:`state` returned.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is damaged.
        """
        heads = cls(n_features, json.loads(files[CLASSES_FILE]))
        heads.confidence_levels = check_levels(settings.get(LEVELS, {}), heads.classes)
        return heads

    def state(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return settings and text files of a checkpoint; weights are in ``state_dict()``."""
        settings = {LEVELS: self.confidence_levels} if self.confidence_levels else {}
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

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """Return logits ``(b, n_classes)`` by name of ``(b, n_features)`` embeddings."""
        return {name: head(embedding) for name, head in zip(self.classes, self, strict=True)}

    @torch.no_grad()
    def predict(self, embedding: Tensor) -> dict[str, np.ndarray]:
        """Return probabilities ``(b, n_classes)`` float64 by name of embeddings."""
        return {
            name: torch.softmax(logits.double(), dim=-1).cpu().numpy()
            for name, logits in self(embedding.float()).items()
        }

    def fit(
        self,
        name: str,
        embedding: np.ndarray,
        labels: np.ndarray,
        *,
        fold: np.ndarray,
        weight: np.ndarray | None = None,
        inverse_penalty: float = 1.0,
    ) -> None:
        """Fit one head by logistic regression on embeddings; an existing one is replaced.

        Its confidence levels are those of cells that were held out, fold by fold.

        Parameters
        ----------
        name
            Property.
        embedding
            ``(n, n_features)``.
        labels
            ``(n,)`` text, the class of each row.
        fold
            ``(n,)`` int, which rows are held out together, such as all rows of one cell.
        weight
            ``(n,)`` of the rows; by default they weigh the same.
        inverse_penalty
            ``C`` of :class:`sklearn.linear_model.LogisticRegression`, on features of unit variance.
        """
        spread = embedding.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        features = embedding / spread
        weight = np.ones(len(labels)) if weight is None else weight

        def fitted(rows: np.ndarray) -> LogisticRegression:
            regression = LogisticRegression(C=inverse_penalty, max_iter=_MAX_ITER)
            return regression.fit(features[rows], labels[rows], sample_weight=weight[rows])

        held_out = np.zeros(len(labels))
        for number in np.unique(fold):
            rows = fold == number
            held_out[rows] = fitted(~rows).predict_proba(features[rows]).max(axis=1)
        regression = fitted(np.ones(len(labels), dtype=bool))
        coefficients, intercept = regression.coef_ / spread, regression.intercept_
        if len(intercept) == 1:  # of two classes scikit-learn keeps the log odds of the second
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercept = np.concatenate([-intercept, intercept]) / 2
        self.change({name: [str(c) for c in regression.classes_]})
        head: Any = self[list(self.classes).index(name)]
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(coefficients))
            head.bias.copy_(torch.from_numpy(intercept))
        self.set_confidence_levels(name, held_out)

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
