"""Harmony and the scores of scib-metrics, in an environment of their own; see ``cell_integration``.

``python _integration_run.py IN.npz OUT.json`` imports nothing of cfm: scib-metrics 0.5.10 needs JAX
(harmonypy 2.1.0 was used).
"""

import json
import sys

import harmonypy
import numpy as np
import pandas as pd
from scib_metrics import clisi_knn, ilisi_knn, silhouette_batch, silhouette_label
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors


def harmony(x: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Return 30 components with the batch removed."""
    x = x if x.shape[1] <= 30 else PCA(30, random_state=0).fit_transform(x)
    found = harmonypy.run_harmony(
        x.astype(np.float64), pd.DataFrame({"batch": batch}), ["batch"], random_state=0
    )
    corrected = np.asarray(found.Z_corr)
    return corrected if corrected.shape == x.shape else corrected.T


def main(given: str, out: str) -> None:
    """Score each representation, and those that Harmony makes of two of them."""
    read = dict(np.load(given, allow_pickle=False))
    batch, label = read.pop("batch"), read.pop("label")
    for name in ("PCA", "CellVQ"):
        read[f"{name}, Harmony"] = harmony(read[name], batch)
    scores = {}
    for name, x in read.items():
        distance, place = NearestNeighbors(n_neighbors=91).fit(x).kneighbors(x)
        near = NeighborsResults(indices=place, distances=distance)
        scores[name] = {
            "graph iLISI": float(ilisi_knn(near, batch)),
            "graph cLISI": float(clisi_knn(near, label)),
            "silhouette of types": float(silhouette_label(x, label)),
            "silhouette of batches": float(silhouette_batch(x, label, batch)),
        }
    with open(out, "w") as file:
        json.dump(scores, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
