"""Property heads: what they say, of which cells, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cfm.models import CellVQ
from cfm.models.cellvq._property_heads import PropertyHeads
from tests._cellvq import CLASSES, GENES, counted_cells, small_model
from tests._same import assert_unchanged


@pytest.fixture(scope="module")
def model() -> CellVQ:
    return small_model()


def test_probabilities_are_those_of_the_heads(model: CellVQ) -> None:
    cells = counted_cells()
    before = cells.copy()
    found = model.predict_properties(cells, precision="float32")
    assert list(found) == ["cell_type", "tissue"]
    embedding = torch.from_numpy(model.get_latent_representation(cells, precision="float32"))
    with torch.no_grad():
        logits = model.module.classify(embedding)
    for name, table in found.items():
        assert table.columns.tolist() == CLASSES[name]
        assert table.index.equals(cells.obs_names)
        assert (table.dtypes == np.float32).all()
        np.testing.assert_allclose(table, torch.softmax(logits[name], dim=-1), atol=1e-5)
        np.testing.assert_allclose(table.sum(axis=1), 1.0, atol=1e-6)
    assert_unchanged(cells, before)


def test_some_properties_in_the_order_that_was_asked_for(model: CellVQ) -> None:
    cells = counted_cells()
    every = model.predict_properties(cells)
    assert list(model.predict_properties(cells, ["tissue", "cell_type", "tissue"])) == [
        "tissue",
        "cell_type",
    ]
    one = model.predict_properties(cells, "tissue")
    assert list(one) == ["tissue"]
    assert one["tissue"].equals(every["tissue"])


def test_neighbours_and_batches_are_no_matter(model: CellVQ) -> None:
    cells = counted_cells()
    every = model.predict_properties(cells, precision="float32")["cell_type"]
    rows = [7, 2, 9]
    some = model.predict_properties(cells[rows].copy(), batch_size=2, precision="float32")
    np.testing.assert_allclose(some["cell_type"], every.iloc[rows], atol=1e-5)


def test_a_head_that_was_fitted_answers_for_other_cells() -> None:
    """Two kinds of cells that express different genes."""
    told = small_model(properties={"kind": ["even", "odd"]})
    cells = counted_cells(160)
    cells.X[::2, :8] = 0
    cells.X[1::2, 8:16] = 0
    truth = np.tile(["even", "odd"], 80)
    embedding = told.get_latent_representation(cells[:120].copy(), precision="float32")
    fitted = LogisticRegression(max_iter=1000).fit(embedding, truth[:120] == "odd")
    with torch.no_grad():
        for sign, i in ((-0.5, 0), (0.5, 1)):
            head = told.module.property_heads[0]
            head.weight[i] = torch.from_numpy(sign * fitted.coef_[0])
            head.bias[i] = sign * float(fitted.intercept_[0])
    called = told.predict_properties(cells[120:].copy())["kind"].idxmax(axis=1)
    assert (called == truth[120:]).mean() > 0.75  # 0.5 by chance


def test_cells_without_genes_are_missing(model: CellVQ) -> None:
    cells = counted_cells()
    cells.X[4] = 0
    with pytest.warns(UserWarning, match="1 of 12 cells express none"):
        found = model.predict_properties(cells, "tissue")["tissue"]
    assert found.isna().any(axis=1).to_numpy().nonzero()[0].tolist() == [4]


def test_a_head_of_one_class_is_warned_of() -> None:
    single = small_model(properties={"tissue": ["blood"], "cell_type": ["B", "T"]})
    with pytest.warns(UserWarning, match=r"heads \['tissue'\] know a single class"):
        found = single.predict_properties(counted_cells())
    assert (found["tissue"] == 1.0).all(axis=None)
    single.predict_properties(counted_cells(), "cell_type")  # no warning


@pytest.mark.parametrize(
    ("properties", "error", "message"),
    [
        ("age", KeyError, r"no property heads \['age'\]; it has \['cell_type', 'tissue'\]"),
        (["tissue", "sex"], KeyError, r"\['sex'\]"),
        ([], ValueError, "properties= is empty"),
    ],
)
def test_unknown_properties(
    model: CellVQ, properties: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.predict_properties(counted_cells(), properties)


def test_a_model_without_heads_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no property heads; .* cfm\.tl\.probe"):
        small_model(properties={}).predict_properties(counted_cells())


def test_normalised_values_have_to_be_declared(model: CellVQ) -> None:
    cells = counted_cells(genes=GENES)
    expected = model.predict_properties(cells, precision="float32")["tissue"]
    cells.obs["n"] = cells.X.sum(axis=1)
    cells.X = np.log1p(cells.X / cells.X.sum(axis=1, keepdims=True) * 1e4)
    with pytest.raises(ValueError, match="declare units='log1p_cp10k'"):
        model.predict_properties(cells)
    found = model.predict_properties(
        cells, units="log1p_cp10k", total_counts="n", precision="float32"
    )
    np.testing.assert_allclose(found["tissue"], expected, atol=1e-5)


def _embedded(n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of cells around the centre of their class, labels, and folds of pairs of rows."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, n_classes, 120)
    centres = 2.0 * rng.standard_normal((n_classes, 6)) * [1, 1, 1, 50, 0.1, 0]
    spread = [1.0, 1.0, 1.0, 50.0, 0.1, 0.0]  # features of any scale, and a constant one
    embedding = centres[kind] + rng.standard_normal((120, 6)) * spread
    return embedding, np.array(["a", "b", "c"])[kind], np.arange(120) // 2 % 5


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_fitted_head_predicts_as_its_regression(n_classes: int) -> None:
    embedding, labels, fold = _embedded(n_classes)
    heads = PropertyHeads(6, {"tissue": ["x", "y"]})
    kept = heads[0]
    heads.fit("kind", embedding, labels, fold=fold, inverse_penalty=0.5)
    assert heads[0] is kept
    assert heads.classes == {"tissue": ["x", "y"], "kind": ["a", "b", "c"][:n_classes]}
    found = heads.predict(torch.from_numpy(embedding))["kind"]
    spread = np.where(embedding.std(axis=0) > 0, embedding.std(axis=0), 1.0)
    expected = LogisticRegression(C=0.5, max_iter=500).fit(embedding / spread, labels)
    np.testing.assert_allclose(found, expected.predict_proba(embedding / spread), atol=1e-4)
    held_out = [
        LogisticRegression(C=0.5, max_iter=500)
        .fit((embedding / spread)[fold != k], labels[fold != k])
        .predict_proba((embedding / spread)[fold == k])
        .max(axis=1)
        for k in range(5)
    ]
    least = heads.least_confidence("kind", 0.2)
    assert least == pytest.approx(np.quantile(np.concatenate(held_out), 0.2))
    assert heads.least_confidence("kind", 0.0) == heads.least_confidence("tissue", 0.2) == 0.0


def test_heads_come_back_from_their_state() -> None:
    embedding, labels, fold = _embedded(3)
    heads = PropertyHeads(6, {"tissue": ["x", "y"]})
    heads.fit("kind", embedding, labels, fold=fold)
    settings, files = heads.state()
    again = PropertyHeads.from_state(6, json.loads(json.dumps(settings)), files)
    again.load_state_dict(heads.state_dict())
    assert again.classes == heads.classes
    assert again.confidence_levels == heads.confidence_levels
    x = torch.from_numpy(embedding)
    np.testing.assert_array_equal(again.predict(x)["kind"], heads.predict(x)["kind"])
    again.change({"kind": None})
    assert (list(again.classes), again.confidence_levels, len(again)) == (["tissue"], {}, 1)
