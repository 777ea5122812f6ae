"""Codes that are clusters of the training cells, read from expression."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from cfm.models import CellVQ
from cfm.models.cellvq._data import CellReader
from tests._planted_codes import QUIET, SMALL, planted_cells, untrained

CODES: dict[str, Any] = SMALL | {"expression_codes": True, "n_bits": 2, "code_dim": 8}
EXACT: dict[str, Any] = {"precision": "float32"}


def made(n: int = 200, *, steps: int = 1, seed: int = 0, **kwargs: Any) -> CellVQ:
    """A model with the codes of planted cells."""
    training = {k: kwargs.pop(k) for k in list(kwargs) if k.endswith(("weight", "share"))}
    model = untrained(planted_cells(n), **(CODES | kwargs), seed=seed)
    model.train(max_steps=steps, seed=seed, **QUIET, **training)
    return model


@cache
def plain() -> CellVQ:
    return made()


def types(n: int = 150) -> tuple[Any, np.ndarray]:
    cells = planted_cells(n, seed=5)
    return cells, cells.obs["cell_type"].to_numpy()


def test_codes_of_unseen_cells_agree_with_types_as_well_as_clusters_of_these_cells() -> None:
    cells, truth = types()
    found = plain().get_cell_codes(cells, **EXACT)
    log = np.log1p(cells.X / cells.X.sum(1, keepdims=True) * 1e4)
    space = np.linalg.svd(log - log.mean(0))[0][:, :10]
    clusters = KMeans(4, n_init=10, random_state=0).fit_predict(space)
    ours = adjusted_rand_score(truth, found.code)
    assert ours > 0.9
    assert ours >= adjusted_rand_score(truth, clusters) - 0.02


def test_codes_do_not_depend_on_the_seed_or_the_steps() -> None:
    cells, _ = types()
    models = made(validation_share=0.0), made(seed=1, steps=4, validation_share=0.0)
    one, two = (model.get_cell_codes(cells, **EXACT) for model in models)
    np.testing.assert_array_equal(one.code, two.code)
    np.testing.assert_array_equal(one.latent, two.latent)
    embedded = [model.get_latent_representation(cells, **EXACT) for model in models]
    assert not np.array_equal(*embedded)


def test_codes_are_read_without_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, _ = types()
    model = made(validation_share=0.0)
    expected = model.get_cell_codes(cells, **EXACT).code
    monkeypatch.setattr(model.module, "layers", None)
    np.testing.assert_array_equal(model.get_cell_codes(cells, **EXACT).code, expected)
    with pytest.raises(AttributeError, match="parameters"):
        model.get_latent_representation(cells, **EXACT)


def test_the_nearest_code_is_the_most_probable_cluster() -> None:
    cells, _ = types()
    model = made(n_bits=3, code_dim=16)
    quantiser = model.module.quantiser
    found = model.get_cell_codes(cells, **EXACT)
    scores = quantiser.discriminant.found().log_probabilities(cells.X, np.arange(60))
    np.testing.assert_array_equal(found.code, scores.argmax(axis=1))
    book = model.get_codebook().vectors
    np.testing.assert_allclose(np.linalg.norm(book, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.latent, axis=1), 1.0, rtol=1e-5)
    cosine = found.latent @ book.T
    np.testing.assert_array_equal(cosine.argmax(axis=1), found.code)
    np.testing.assert_allclose(np.sort(cosine)[:, -1], found.similarity, rtol=1e-5)
    assert float(quantiser.share.sum()) == pytest.approx(1.0)


def test_genes_that_are_not_measured_are_no_zeros() -> None:
    cells, truth = types()
    whole = plain().get_cell_codes(cells, **EXACT).code
    part = plain().get_cell_codes(cells[:, ::2].copy(), **EXACT).code
    assert (part == whole).mean() > 0.85
    assert adjusted_rand_score(truth, part) > 0.7


def test_log_values_and_other_cells_give_the_same_codes() -> None:
    cells, _ = types(40)
    whole = plain().get_cell_codes(cells, **EXACT)
    one = plain().get_cell_codes(cells[7:8].copy(), **EXACT)
    np.testing.assert_allclose(one.latent, whole.latent[7:8], rtol=1e-6)
    log = cells.copy()
    log.X = np.log1p(cells.X / cells.X.sum(1, keepdims=True) * 1e4)
    found = plain().get_cell_codes(log, units="log1p_cp10k", **EXACT)
    np.testing.assert_allclose(found.latent, whole.latent, atol=1e-5)
    np.testing.assert_allclose(
        plain().get_latent_representation(cells, representation="code", **EXACT), whole.latent
    )


@pytest.mark.parametrize("n_cells", [1, 3])
def test_few_cells_leave_codes_unused(n_cells: int) -> None:
    model = made(n_cells, n_bits=3, validation_share=0.0)
    codes = model.get_cell_codes(**EXACT).code
    assert len(set(codes)) <= n_cells
    quantiser = model.module.quantiser
    assert int((quantiser.share > 0).sum()) == (0 if n_cells == 1 else 3)
    assert np.isfinite(model.get_codebook().vectors).all()


def test_fewer_dimensions_than_codes() -> None:
    model = made(n_bits=4, code_dim=6)
    cells, truth = types()
    found = model.get_cell_codes(cells, **EXACT)
    assert 8 < len(set(found.code)) <= 16
    kind = {code: truth[found.code == code] for code in set(found.code)}
    pure = sum(np.unique(t, return_counts=True)[1].max() for t in kind.values())
    assert pure / len(truth) > 0.8
    with pytest.raises(ValueError, match="code_dim must be above 2"):
        untrained(**CODES | {"code_dim": 2})


def test_labels_shape_codes_only_with_their_weight() -> None:
    """``even`` joins two types each, which expression alone keeps apart."""

    def split(model: CellVQ) -> float:
        codes = model.get_cell_codes(**EXACT).code
        return adjusted_rand_score(model.adata.obs["even"], codes)

    found = [
        split(made(labels_keys=["even"], n_bits=1, code_label_weight=weight))
        for weight in (0.0, 10.0)
    ]
    assert found[0] < 0.6
    assert found[1] > 0.9


def test_codes_stay_in_further_training_unless_labels_shape_them(tmp_path: Path) -> None:
    cells, _ = types()
    plain().save(tmp_path / "m", compact=True)
    registered = planted_cells(60, seed=11)
    CellVQ.setup_anndata(registered, labels_keys=["even"])
    model = CellVQ.from_pretrained(tmp_path / "m", registered)
    before = plain().get_cell_codes(cells, **EXACT)
    np.testing.assert_array_equal(model.get_cell_codes(cells, **EXACT).code, before.code)
    state = {k: v.clone() for k, v in model.module.quantiser.state_dict().items()}
    model.train(max_steps=2, **QUIET)
    after = model.module.quantiser.state_dict()
    kept = [k for k in state if torch.equal(state[k], after[k])]
    assert set(kept) == {k for k in state if not k.startswith("proj_inv")}
    model.train(max_steps=1, code_label_weight=1.0, **QUIET)
    assert not torch.equal(state["places"], model.module.quantiser.places)


def test_the_decoder_learns_from_the_code() -> None:
    model = made(steps=60)
    curve = model.history["train_reconstruction"].to_numpy(dtype=float).ravel()
    assert curve[-1] < 0.95 * curve[0]
    assert "train_separation" not in model.history
    assert model.history["perplexity"].to_numpy()[-1] > 2
    cells = planted_cells(30, seed=8)
    highest = str(cells.var_names[cells.X.sum(0).argmax()])
    predicted = model.simulate(cells, [highest])
    assert set(predicted.obs["cell_code_before"].dropna()) <= {"0", "1", "2", "3"}


def test_codes_of_a_never_trained_model_say_nothing() -> None:
    codes = untrained(**CODES).get_cell_codes(planted_cells(10), **EXACT)
    assert set(codes.code) == {0}
    assert np.isfinite(codes.latent).all()


def test_cells_that_are_fitted_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a file that are in memory at once do not grow with the training cells."""
    cells, _ = types(1500)
    reader, read, sizes = CellReader(cells, plain().vocabulary), CellReader.read, []

    def counted(self: CellReader, rows: np.ndarray) -> Any:
        sizes.append(len(rows))
        return read(self, rows)

    monkeypatch.setattr(CellReader, "read", counted)
    rows, genes = np.arange(0, 1500, 2), np.array([3, 1])
    np.testing.assert_array_equal(reader.dense_counts(rows, genes), cells.X[rows][:, genes])
    assert max(sizes) <= 256
