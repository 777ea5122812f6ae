"""Components of raw counts: any storage, missing genes, what is refused, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cfm
from cfm.models import CellProjection, Pulsar
from tests._same import assert_unchanged
from tests._storages import stored


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return cfm.datasets.toy_donors(n_donors=12, n_cells=40)


@pytest.fixture(scope="module")
def projection(cells: ad.AnnData) -> CellProjection:
    return CellProjection.fit(cells)


@pytest.mark.parametrize("kind", ["csc", "dask", "backed_csr", "lazy", "opened_list", "layer"])
def test_any_storage(
    kind: str, cells: ad.AnnData, projection: CellProjection, tmp_path: Path
) -> None:
    expected = projection.transform(cells)
    assert expected.shape == (cells.n_obs, projection.n_components)
    assert expected.dtype == np.float32
    layer = "counts" if kind == "layer" else None
    if layer:
        same = cells.copy()
        same.layers["counts"], same.X = cells.X.astype(np.int64), np.log1p(cells.X)
    else:
        same = stored(cells, kind, tmp_path)
    np.testing.assert_allclose(projection.transform(same, layer), expected, atol=1e-5)
    again = CellProjection.fit(same, layer=layer)
    np.testing.assert_allclose(again.components, projection.components, atol=1e-4)


def test_a_cell_depends_on_no_other(
    cells: ad.AnnData, projection: CellProjection, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = projection.transform(cells)
    order = np.random.default_rng(0).permutation(cells.n_obs)
    np.testing.assert_allclose(
        projection.transform(cells[order].copy()), expected[order], atol=1e-5
    )
    np.testing.assert_allclose(projection.transform(cells[3:4].copy()), expected[3:4], atol=1e-5)
    monkeypatch.setattr("cfm.models.pulsar._projection._BLOCK", 37)
    np.testing.assert_allclose(projection.transform(cells), expected, atol=1e-5)
    np.testing.assert_allclose(
        CellProjection.fit(cells[order].copy()).components, projection.components, atol=1e-4
    )


def test_components_are_those_of_scaled_logarithms(cells: ad.AnnData) -> None:
    projection = CellProjection.fit(cells, n_components=3)
    x = cells[:, projection.genes.genes].X.toarray().astype(float)
    x = np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4)
    scaled = np.clip((x - projection.mean) / projection.scale, -10, 10)
    shrunk = scaled @ projection.components / 1.1  # the ridge of 0.1
    np.testing.assert_allclose(projection.transform(cells), shrunk, atol=1e-3)
    unit = projection.components.T @ projection.components
    np.testing.assert_allclose(unit, np.eye(3), atol=1e-5)
    types = cells.obs["cell_type"].to_numpy()
    first = projection.transform(cells)[:, 0]
    means = [first[types == t].mean() for t in np.unique(types)]
    assert np.ptp(means) > 3 * first[types == types[0]].std()


def test_only_components_beyond_chance_are_kept(cells: ad.AnnData) -> None:
    assert 3 <= CellProjection.fit(cells).n_components <= 10  # four types and a response
    noise = cells.copy()
    rng = np.random.default_rng(0)
    noise.X = rng.permuted(cells.X.toarray(), axis=0)
    assert CellProjection.fit(noise).n_components <= 3


def test_missing_genes_are_not_zero(cells: ad.AnnData, projection: CellProjection) -> None:
    expected = projection.transform(cells)
    rng = np.random.default_rng(0)
    part = cells[:, rng.random(cells.n_vars) < 0.5].copy()
    found = projection.transform(part)
    zeros = cells.copy()
    zeros.X = sparse.csr_matrix(zeros.X.toarray() * np.isin(cells.var_names, part.var_names))
    error, of_zeros = (
        np.linalg.norm(z - expected, axis=1).mean() for z in (found, projection.transform(zeros))
    )
    assert error < 0.5 * np.linalg.norm(expected, axis=1).mean()
    assert error < 0.7 * of_zeros
    types = cells.obs["cell_type"].to_numpy()
    centre = {t: expected[types == t].mean(axis=0) for t in np.unique(types)}
    nearest = [min(centre, key=lambda t, z=z: np.linalg.norm(z - centre[t])) for z in found]
    assert np.mean(np.array(nearest) == types) > 0.9


def test_names_of_genes(cells: ad.AnnData, projection: CellProjection) -> None:
    extra = ad.concat([cells, _strangers(cells)], axis=1, merge="first")
    np.testing.assert_allclose(projection.transform(extra), projection.transform(cells), atol=1e-5)
    with pytest.raises(ValueError, match=r"Found 0 of the model's 300 genes.*at least 30"):
        projection.transform(_strangers(cells))
    few = cells[:, :29].copy()
    with pytest.raises(ValueError, match="Found 29 of the model's 300 genes"):
        projection.transform(few)
    with pytest.warns(UserWarning, match="Only 10% of the model's 300 genes"):
        projection.transform(cells[:, :31].copy())


def _strangers(cells: ad.AnnData) -> ad.AnnData:
    var = pd.DataFrame(index=[f"stranger{i}" for i in range(500)])
    x = np.random.default_rng(0).poisson(20.0, (cells.n_obs, 500)).astype(np.float32)
    return ad.AnnData(x, obs=cells.obs, var=var)


def _bulk(cells: ad.AnnData) -> ad.AnnData:
    sums = np.asarray(cells.X.sum(axis=0)).ravel()
    x = np.random.default_rng(0).poisson(sums * 1000.0, (8, cells.n_vars)) + 1
    obs = pd.DataFrame({"donor_id": list("aabbccdd")}, index=[f"s{i}" for i in range(8)])
    return ad.AnnData(x.astype(np.float32), obs=obs, var=cells.var)


BAD: dict[str, tuple[Any, str]] = {
    "log": (lambda x: np.log1p(x), "not whole.*not raw counts; raw counts are expected"),
    "scaled": (lambda x: x - x.mean(axis=0), "negative values"),
    "fractions": (lambda x: x / 7, "not whole"),
    "NaN": (lambda x: np.where(x == x.max(), np.nan, x), "NaN or infinite"),
    "infinite": (lambda x: np.where(x == x.max(), np.inf, x), "NaN or infinite"),
    "empty cells": (lambda x: x * (np.arange(len(x)) > 1)[:, None], "2 of .* no counts"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_counts_is_refused(
    name: str, cells: ad.AnnData, projection: CellProjection
) -> None:
    change, message = BAD[name]
    bad = cells.copy()
    bad.X = change(cells.X.toarray()).astype(np.float32)
    before = bad.copy()
    with pytest.raises(ValueError, match=message):
        projection.transform(bad)
    if name != "empty cells":
        with pytest.raises(ValueError, match=message):
            Pulsar.setup_anndata(bad)
        with pytest.raises(ValueError, match=message):
            CellProjection.fit(bad)
    assert_unchanged(bad, before)


def test_bulk_samples_are_refused(cells: ad.AnnData, projection: CellProjection) -> None:
    bulk = _bulk(cells)
    for call in (projection.transform, CellProjection.fit):
        with pytest.raises(ValueError, match="bulk samples"):
            call(bulk)


def test_too_little_to_fit(cells: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="at least 3 of each"):
        CellProjection.fit(cells[:2].copy())
    with pytest.raises(ValueError, match="no observations"):
        CellProjection.fit(cells[:0].copy())
    with pytest.raises(ValueError, match="adata has no genes"):
        CellProjection.fit(cells[:, :0].copy())
    with pytest.raises(KeyError, match="no column 'study'"):
        CellProjection.fit(cells, study_key="study")
    twice = cells.copy()
    twice.var_names = ["ISG15", *twice.var_names[1:-1], "ISG15"]
    with pytest.raises(ValueError, match="occur more than once"):
        CellProjection.fit(twice)


def test_studies_are_centred() -> None:
    cells = cfm.datasets.toy_donors(n_donors=12, n_cells=40)
    second = np.arange(cells.n_obs) % 2 == 1
    factor = np.exp(np.random.default_rng(0).normal(size=cells.n_vars))
    x = cells.X.toarray()
    x[second] = np.rint(x[second] * factor)
    cells.X = x
    cells.obs["study"] = np.where(second, "b", "a")

    def between(projection: CellProjection) -> float:
        z = projection.transform(cells)
        gap = z[second].mean(axis=0) - z[~second].mean(axis=0)
        return float((gap**2).sum() / z.var(axis=0).sum())

    centred = CellProjection.fit(cells, study_key="study", n_components=4)
    assert between(centred) < 0.3 * between(CellProjection.fit(cells, n_components=4))


def test_unknown_cells(cells: ad.AnnData, projection: CellProjection) -> None:
    new = cfm.datasets.toy_donors(seed=1, n_donors=12, n_cells=40)
    assert projection.unknown(projection.transform(new)).mean() < 0.15
    shuffled = cells.copy()
    shuffled.X = cells.X[:, np.random.default_rng(0).permutation(cells.n_vars)]
    assert projection.unknown(projection.transform(shuffled)).mean() > 0.95
    held = projection.distance(projection.cells)
    assert held.shape == (len(projection.cells),)
    assert len(projection.cells) <= 1000


@pytest.fixture
def saved(cells: ad.AnnData, tmp_path: Path) -> Path:
    Pulsar.setup_anndata(cells, donor_key="donor_id")
    return Pulsar(cells, dim=16, encoder_layers=1).save(tmp_path / "model")


def test_a_model_is_saved_with_its_projection(cells: ad.AnnData, saved: Path) -> None:
    model = Pulsar(cells, dim=16, encoder_layers=1)
    back = Pulsar.load(saved)
    for name in ("abundance", "mean", "scale", "components", "cells"):
        np.testing.assert_array_equal(
            getattr(back.projection, name), getattr(model.projection, name)
        )
    assert back.projection.genes == model.projection.genes
    expected = model.get_donor_embeddings(precision="float32")
    found = back.get_donor_embeddings(cells, precision="float32")
    np.testing.assert_allclose(found.embedding, expected.embedding, atol=1e-6)
    np.testing.assert_array_equal(found.unknown, expected.unknown)
    assert back.weights_digest() == model.weights_digest()
    assert cfm.models.load_model(str(saved)).projection is not None
    compact = Pulsar.load(model.save(saved.parent / "compact", compact=True))
    rough = compact.get_donor_embeddings(cells, precision="float32")
    np.testing.assert_allclose(rough.embedding, expected.embedding, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("genes", "do not belong together"),
        ("no genes", "no genes.txt"),
        ("radius", "no radius"),
        ("array", "is damaged"),
        ("width", "but the network reads"),
    ],
)
def test_a_projection_that_does_not_fit_is_refused(
    change: str, message: str, saved: Path, tmp_path: Path
) -> None:
    found = cfm.hub.load_checkpoint(saved)
    tensors, config, files = dict(found.tensors), dict(found.config), dict(found.files)
    if change == "genes":
        files["genes.txt"] = "ISG15\nMX1"
    elif change == "no genes":
        del files["genes.txt"]
    elif change == "radius":
        del config["radius"]
    elif change == "array":
        del tensors["projection.mean"]
    else:
        for name in ("components", "cells"):
            tensors[f"projection.{name}"] = tensors[f"projection.{name}"][:, :2].contiguous()
    path = cfm.hub.save_checkpoint(
        tmp_path / "changed", tensors, config, model="Pulsar", files=files
    )
    with pytest.raises(ValueError, match=message):
        Pulsar.load(path)


def test_parts_that_cannot_be_are_refused(projection: CellProjection) -> None:
    parts = dict(vars(projection))
    with pytest.raises(ValueError, match="negative radius, scale"):
        CellProjection(**(parts | {"scale": -parts["scale"]}))
