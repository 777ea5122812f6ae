"""Property heads: what they say, of which cells, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cfm.models import CellVQ
from cfm.models.cellvq._property_heads import PropertyHeads
from tests._cellvq import CLASSES, GENES, SIZES, counted_cells, small_model
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


def test_a_head_of_one_class_is_warned_of() -> None:
    single = small_model(properties={"tissue": ["blood"], "cell_type": ["B", "T"]})
    with pytest.warns(UserWarning, match=r"heads \['tissue'\] have a single class"):
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


def two_kinds(n: int = 160) -> tuple[Any, np.ndarray]:
    """Cells of two kinds that express different genes."""
    cells = counted_cells(n, genes=GENES)
    cells.X[::2, :8] = 0
    cells.X[1::2, 8:16] = 0
    return cells, np.tile(["even", "odd"], n // 2)


def expression_model(cells: Any, truth: np.ndarray) -> CellVQ:
    told = small_model(properties={"tissue": ["x", "y"], "kind": ["odd", "even"]})
    index = pd.Index(told.vocabulary.genes)
    told.module.property_heads.fit_expression(
        "kind", cells.X, truth, genes=index.get_indexer(cells.var_names), n_genes=len(index)
    )
    return told


def test_a_head_that_reads_expression_names_new_cells_of_any_genes(tmp_path: Path) -> None:
    cells, truth = two_kinds()
    model = expression_model(cells[:120], truth[:120])
    assert model.properties["kind"] == ["odd", "even"]
    new = cells[120:].copy()
    found = model.predict_properties(new)
    assert (found["kind"].idxmax(axis=1) == truth[120:]).mean() > 0.95
    np.testing.assert_allclose(found["kind"].sum(axis=1), 1, atol=1e-6)
    part = model.predict_properties(new[:, 4:20].copy(), "kind")["kind"]
    assert (part.idxmax(axis=1) == truth[120:]).mean() > 0.95
    backwards = model.predict_properties(new[::-1, ::-1].copy(), "kind", batch_size=3)["kind"]
    np.testing.assert_allclose(backwards[::-1], found["kind"], atol=1e-6)
    again = CellVQ.load(model.save(tmp_path / "heads"))
    for name, table in again.predict_properties(new).items():
        pd.testing.assert_frame_equal(table, found[name])
    levels = again.module.property_heads.confidence_levels
    assert list(levels) == ["kind"]
    assert levels == model.module.property_heads.confidence_levels
    assert again.weights_digest() == model.weights_digest()
    model.set_properties({"kind": None})
    assert list(model.properties) == ["tissue"]


def test_a_training_reads_what_names_held_out_cells_right() -> None:
    cells, truth = two_kinds()
    cells.obs["kind"] = pd.Categorical(truth)
    CellVQ.setup_anndata(cells, labels_keys=["kind"])
    answers = {}
    for head_input in ("best", "embedding"):
        model = CellVQ(cells, **SIZES)
        model.train(max_steps=2, head_input=head_input, enable_progress_bar=False)
        answers[head_input] = model
    kinds = {k: list(m.module.property_heads.expression()) for k, m in answers.items()}
    assert kinds == {"best": ["kind"], "embedding": []}
    # two steps teach the network nothing
    right = [
        (m.predict_properties(cells)["kind"].idxmax(axis=1) == truth).mean()
        for m in answers.values()
    ]
    assert right[0] > 0.95 > right[1]
    # a head that reads expression is learned anew
    answers["best"].train(max_steps=2, head_input="embedding", enable_progress_bar=False)
    assert not answers["best"].module.property_heads.expression()


def test_a_class_without_cells_is_refused() -> None:
    cells, truth = two_kinds(40)
    heads = PropertyHeads(6, {"kind": ["odd", "even", "prime"]})
    with pytest.raises(ValueError, match="No cell has the classes"):
        heads.fit_expression("kind", cells.X, truth, genes=np.arange(cells.n_vars), n_genes=99)


def test_cells_without_the_genes_of_a_head_are_missing() -> None:
    cells, truth = two_kinds(40)
    told = small_model(properties={"kind": ["even", "odd"]})
    index = pd.Index(told.vocabulary.genes)
    own = cells[:, :20]
    told.module.property_heads.fit_expression(
        "kind", own.X, truth, genes=index.get_indexer(own.var_names), n_genes=len(index)
    )
    cells.X[3, :20] = 0  # it expresses other genes of the model
    found = told.predict_properties(cells)["kind"].isna().any(axis=1)
    assert found.to_numpy().nonzero()[0].tolist() == [3]


def test_heads_that_are_not_learned_stay() -> None:
    cells, truth = two_kinds(60)
    cells.obs["kind"], cells.obs["other"] = pd.Categorical(truth), pd.Categorical(truth)
    CellVQ.setup_anndata(cells, labels_keys=["kind", "other"])
    model = expression_model(cells, truth)
    model.attach(cells)
    before = model.predict_properties(cells, "kind")["kind"]
    with pytest.raises(KeyError, match="names no heads"):
        model.train(max_steps=1, property_weight={"none": 1.0}, enable_progress_bar=False)
    pd.testing.assert_frame_equal(model.predict_properties(cells, "kind")["kind"], before)
    model.train(max_steps=1, property_weight={"kind": 0.0}, enable_progress_bar=False)
    pd.testing.assert_frame_equal(model.predict_properties(cells, "kind")["kind"], before)
