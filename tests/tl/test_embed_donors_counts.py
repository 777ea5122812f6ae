"""``cfm.tl.embed_donors`` on raw counts: what shows, what does not matter, what is refused."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import cfm
from cfm.models import Pulsar
from cfm.tl import _donor_rows
from tests._pulsar import donors
from tests._same import assert_unchanged

ARGUMENTS: dict[str, Any] = {"n_cells": 20, "n_draws": 2, "precision": "float32"}


@pytest.fixture(autouse=True)
def donors_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_donor_rows, "DONORS_AT_ONCE", 5)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return cfm.datasets.toy_donors(n_donors=12, n_cells=40)


@pytest.fixture(scope="module")
def model(cells: ad.AnnData) -> Pulsar:
    Pulsar.setup_anndata(cells, donor_key="donor_id")
    return Pulsar(cells, dim=32, encoder_layers=1, encoder_ff=64, decoder_ff=64)


@pytest.fixture(scope="module")
def expected(cells: ad.AnnData, model: Pulsar) -> ad.AnnData:
    return cfm.tl.embed_donors(cells, "donor_id", model, **ARGUMENTS)


def _assert_same(found: ad.AnnData, expected: ad.AnnData) -> None:
    assert found.obs_names.equals(expected.obs_names)
    embeddings = (np.asarray(found.obsm["X_pulsar"][:]), expected.obsm["X_pulsar"])
    np.testing.assert_allclose(*embeddings, atol=1e-5)
    for name in ("X_pulsar_spread", "X_pulsar_unknown", "n_cells"):
        np.testing.assert_allclose(found.obs[name], expected.obs[name], atol=1e-5)


def test_what_is_stored(cells: ad.AnnData, model: Pulsar, expected: ad.AnnData) -> None:
    before = cells.copy()
    found = cfm.tl.embed_donors(cells, "donor_id", model, **ARGUMENTS)
    assert_unchanged(cells, before)
    assert found.obs["X_pulsar_unknown"].dtype == np.float32
    assert found.obs["X_pulsar_unknown"].between(0, 0.3).all()
    params = found.uns["X_pulsar"]["params"]
    assert params["vocabulary_share"] == 1.0
    assert "use_rep" not in params
    _assert_same(found, expected)
    assert list(found.obsm) == ["X_pulsar"]
    half = cfm.tl.embed_donors(cells[:, ::2].copy(), "donor_id", model, **ARGUMENTS)
    assert half.uns["X_pulsar"]["params"]["vocabulary_share"] == 0.5


def test_moments_are_mean_and_log_variance(cells: ad.AnnData, model: Pulsar) -> None:
    found = cfm.tl.embed_donors(cells, "donor_id", model, n_cells=None, pooling="moments")
    assert found.obsm["X_pulsar"].dtype == np.float32
    assert model.projection is not None
    z = (model.projection.transform(cells) - model.module.input_mean.numpy()) / (
        model.module.input_scale.numpy()
    )
    donors = pd.DataFrame(z, index=cells.obs["donor_id"]).groupby(level=0, observed=True)
    n = donors.size().to_numpy()[:, None]
    variance = (1 + n * donors.var(ddof=0).to_numpy()) / (1 + n)
    expected = np.hstack([donors.mean().to_numpy(), np.log(variance)])
    np.testing.assert_allclose(found.obsm["X_pulsar"], expected, atol=1e-4)
    network = cfm.tl.embed_donors(cells, "donor_id", model, n_cells=None)  # a model trained here
    assert network.obsm["X_pulsar"].shape[1] == model.size.dim


def test_moments_do_not_depend_on_order_or_other_donors(cells: ad.AnnData, model: Pulsar) -> None:
    settings: dict[str, Any] = ARGUMENTS | {"pooling": "moments"}
    expected = cfm.tl.embed_donors(cells, "donor_id", model, **settings)
    shuffled = cells[np.random.default_rng(0).permutation(cells.n_obs)].copy()
    _assert_same(cfm.tl.embed_donors(shuffled, "donor_id", model, **settings), expected)
    part = cells[cells.obs["donor_id"].isin(["donor03", "donor07"])].copy()
    found = cfm.tl.embed_donors(part, "donor_id", model, **settings)
    _assert_same(found, expected[["donor03", "donor07"]])


@pytest.mark.filterwarnings("ignore:1 of 1 donors have fewer")
def test_moments_of_a_single_cell_are_finite(cells: ad.AnnData, model: Pulsar) -> None:
    found = cfm.tl.embed_donors(cells[:1].copy(), "donor_id", model, pooling="moments")
    assert np.isfinite(found.obsm["X_pulsar"]).all()


@pytest.mark.parametrize("how", ["genes", "shuffled"])
def test_order_does_not_matter(
    how: str, cells: ad.AnnData, model: Pulsar, expected: ad.AnnData
) -> None:
    order = np.random.default_rng(0).permutation(cells.n_obs)
    same = cells[:, ::-1] if how == "genes" else cells[order].copy()
    _assert_same(cfm.tl.embed_donors(same, "donor_id", model, **ARGUMENTS), expected)


def test_other_donors_do_not_matter(cells: ad.AnnData, model: Pulsar, expected: ad.AnnData) -> None:
    part = cells[cells.obs["donor_id"].isin(["donor03", "donor07"])].copy()
    found = cfm.tl.embed_donors(part, "donor_id", model, **ARGUMENTS)
    _assert_same(found, expected[["donor03", "donor07"]])


def test_files_and_output(
    cells: ad.AnnData, model: Pulsar, expected: ad.AnnData, tmp_path: Path
) -> None:
    cells.write_h5ad(tmp_path / "in.h5ad")
    backed = ad.read_h5ad(tmp_path / "in.h5ad", backed="r")
    out = tmp_path / "out.zarr"
    _assert_same(cfm.tl.embed_donors(backed, "donor_id", model, output=out, **ARGUMENTS), expected)
    _assert_same(ad.read_zarr(out), expected)


def test_a_stopped_run_goes_on_with_the_same_counts_only(
    cells: ad.AnnData, model: Pulsar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = Pulsar.get_donor_embeddings, []

    def stopping(self: Pulsar, adata: ad.AnnData, **kwargs: Any) -> Any:
        calls.append(adata.n_obs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, adata, **kwargs)

    monkeypatch.setattr(Pulsar, "get_donor_embeddings", stopping)
    shared: dict[str, Any] = ARGUMENTS | {"output": tmp_path / "out.zarr"}
    with pytest.raises(KeyboardInterrupt):
        cfm.tl.embed_donors(cells, "donor_id", model, **shared)
    changed = cells.copy()
    changed.X = changed.X * 2
    with pytest.raises(ValueError, match="X changed"):
        cfm.tl.embed_donors(changed, "donor_id", model, **shared)
    cfm.tl.embed_donors(cells, "donor_id", model, **shared)
    assert len(calls) == 4


def test_the_three_lines_separate_what_was_planted() -> None:
    """Two compositions of two kinds of cells: the mean over donors of a class is another."""
    rng = np.random.default_rng(0)
    level = np.exp(rng.normal(size=(2, 200)))
    donor = np.repeat(np.arange(16), 50)
    kind = (rng.random(len(donor)) < np.where(donor % 2, 0.7, 0.3)).astype(int)
    obs = pd.DataFrame(
        {"donor_id": [f"d{i:02d}" for i in donor]}, index=[f"c{i}" for i in range(len(donor))]
    )
    adata = ad.AnnData(csr_matrix(rng.poisson(2 * level[kind]).astype(np.float32)), obs=obs)
    Pulsar.setup_anndata(adata, donor_key="donor_id")
    model = Pulsar(adata)
    model.train(max_steps=20, n_cells=20, enable_progress_bar=False)
    found = cfm.tl.embed_donors(adata, "donor_id", model).obsm["X_pulsar"]
    first = np.linalg.svd(found - found.mean(axis=0))[0][:, 0]
    odd = np.arange(16) % 2 == 1
    assert first[odd].min() > first[~odd].max() or first[odd].max() < first[~odd].min()


def test_a_representation_is_refused(cells: ad.AnnData, model: Pulsar) -> None:
    cells = cells.copy()
    cells.obsm["X_random"] = np.random.default_rng(0).normal(size=(cells.n_obs, 50))
    before = cells.copy()
    for source in (model, "pulsar-mini"):
        for call in (cfm.tl.embed_donors, cfm.tl.cell_importance):
            with pytest.raises(ValueError, match=r"projection of its own.*'X_random'.*train a mod"):
                call(cells, "donor_id", source, use_rep="X_random")
    assert_unchanged(cells, before)
    Pulsar.setup_anndata(cells, use_rep="X_random")
    with pytest.raises(ValueError, match="projection of its own"):
        Pulsar.from_pretrained("pulsar-mini", cells)
    other = Pulsar(cells, dim=16, encoder_layers=1)
    assert other.projection is None
    plain = cfm.tl.embed_donors(cells, "donor_id", other)
    assert "X_pulsar_unknown" not in plain.obs
    assert list(plain.obsm) == ["X_pulsar"]
    with pytest.raises(ValueError, match=r"layer='counts' goes with a model that reads raw"):
        cfm.tl.embed_donors(cells, "donor_id", other, layer="counts")
    Pulsar.setup_anndata(cells)
    with pytest.raises(ValueError, match=r"Counts are registered.*setup_anndata\(adata, use_rep="):
        other.attach(cells)
    with pytest.raises(ValueError, match="goes with a model that reads raw"):
        Pulsar.setup_anndata(cells, use_rep="X_random", layer="counts")


def test_bad_counts_are_refused(cells: ad.AnnData, model: Pulsar) -> None:
    log = cells.copy()
    log.X = np.log1p(log.X)
    before = log.copy()
    with pytest.raises(ValueError, match=r"not raw counts.*pass the layer"):
        cfm.tl.embed_donors(log, "donor_id", model)
    assert_unchanged(log, before)
    with pytest.raises(ValueError, match="adata has no genes"):
        cfm.tl.embed_donors(donors(), "donor_id", "pulsar-mini")


def test_donors_of_other_cells_are_warned_of(cells: ad.AnnData, model: Pulsar) -> None:
    shuffled = cells.copy()
    shuffled.X = cells.X[:, np.random.default_rng(0).permutation(cells.n_vars)]
    with pytest.warns(UserWarning, match="In 12 of 12 donors over half of the cells are unknown"):
        found = cfm.tl.embed_donors(shuffled, "donor_id", model)
    assert (found.obs["X_pulsar_unknown"] > 0.9).all()


def test_a_layer_is_registered(cells: ad.AnnData, model: Pulsar) -> None:
    other = cells.copy()
    other.layers["counts"] = other.X.copy()
    other.X = np.log1p(other.X)
    Pulsar.setup_anndata(other, layer="counts", labels_key="disease")
    again = Pulsar(other, dim=32, encoder_layers=1, encoder_ff=64, decoder_ff=64)
    settings = {"n_cells": None, "precision": "float32"}
    np.testing.assert_allclose(
        again.get_latent_representation(**settings),
        model.get_latent_representation(cells, **settings),
        atol=1e-5,
    )
    again.train(max_steps=2, n_cells=10, enable_progress_bar=False)
    projected = Pulsar(other, projection=model.projection)
    assert projected.projection is model.projection
    assert Pulsar(projection=model.projection).size.input_dim == model.size.input_dim


def test_a_released_model_without_network(
    cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(**_: Any) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    for call in (cfm.tl.embed_donors, cfm.tl.cell_importance):
        with pytest.raises(ConnectionError) as raised:
            call(cells, "donor_id", "hf://KuanP/PULSAR-pbmc")
        for part in ("could not be reached", "X_uce", "model='pulsar-mini'", "train a"):
            assert part in str(raised.value)


def test_the_default_needs_no_network(cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refused)
    with pytest.warns(UserWarning, match="unknown"):  # invented cells, 300 genes
        found = cfm.tl.embed_donors(cells)
    assert found.uns["X_pulsar"]["params"]["model"] == "pulsar-mini"
    assert np.isfinite(found.obsm["X_pulsar"]).all()


def test_a_released_model_without_its_representation(cells: ad.AnnData) -> None:
    from tests._pulsar import GOLDEN

    with pytest.raises(KeyError, match=r"no 'X_uce'.*cfm\.tl\.embed.*model='pulsar-mini'"):
        cfm.tl.embed_donors(cells, "donor_id", str(GOLDEN / "PULSAR-tiny"))
