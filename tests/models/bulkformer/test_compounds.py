"""What BulkFormer learns of compounds."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import cfm
from cfm.models import BulkFormer
from tests._bulk import toy_log_tpm
from tests.models.bulkformer._compounds import (
    TRAINING,
    fresh_model,
    taught,
    toy_compounds,
    up_and_down,
)


def _correlations(model: BulkFormer, samples: ad.AnnData, truth: pd.DataFrame) -> np.ndarray:
    found = pd.DataFrame([model.predict_compound(samples, name).mean() for name in truth.index])
    head = model.compound_head
    mean = pd.Series(head.mean.numpy(), model.vocabulary.genes[head.genes.numpy()])
    shared = found.columns.intersection(truth.columns)
    assert len(shared) > 50
    pairs = zip((found - mean)[shared].to_numpy(), (truth - mean)[shared].to_numpy(), strict=True)
    return np.array([np.corrcoef(*pair)[0, 1] for pair in pairs])


def test_planted_effects_are_predicted_for_compounds_without_a_signature() -> None:
    model, scores = taught()
    changes, _ = toy_compounds()
    unseen = changes.to_df().iloc[50:].dropna(axis=1)
    assert _correlations(model, toy_log_tpm(n=4), unseen).mean() > 0.7
    assert scores["shrinkage"] > 0.7
    assert scores["validation_centred_correlation"] > 0.7
    assert scores["validation_correlation"] > 0.7
    assert model.compounds[:2] == ["drug0", "drug1"]
    assert len(model.compounds) == 60


def test_directions_are_learned_as_well() -> None:
    changes, features = toy_compounds()
    model = fresh_model()
    table = up_and_down(changes[:50].copy())
    model.train_compounds(table, toy_log_tpm(), features=features, **TRAINING)
    unseen = changes.to_df().iloc[50:].dropna(axis=1)
    assert _correlations(model, toy_log_tpm(n=4), unseen).mean() > 0.6
    made = model.predict_compound(toy_log_tpm(n=4), "drug55")
    assert made.abs().to_numpy().max() < 2.5
    assert model.compound_head.settings["signed"]


def test_several_signatures_of_a_compound_count_one_each() -> None:
    rows = [(f"drug{i}", f"GENE{g}", 1, f"s{g}") for i in range(5) for g in range(4)]
    table = pd.DataFrame(rows, columns=["compound", "gene", "direction", "signature"])
    model = fresh_model()
    model.train_compounds(table, toy_log_tpm(), n_steps=1)
    np.testing.assert_allclose(model.compound_head.mean, 0.25, atol=1e-6)
    model.train_compounds(table.drop(columns="signature"), toy_log_tpm(), n_steps=1)
    np.testing.assert_allclose(model.compound_head.mean, 1.0, atol=1e-6)


def test_features_that_say_nothing_leave_the_mean() -> None:
    changes, features = toy_compounds()
    shuffled = features.set_axis(np.random.default_rng(1).permutation(features.index), axis=0)
    model = fresh_model()
    scores = model.train_compounds(changes, toy_log_tpm(), features=shuffled, **TRAINING)
    assert scores["shrinkage"] < 0.1
    mean = changes.X[:, :-10].mean(axis=0)
    found = model.predict_compound(toy_log_tpm(n=4), "drug3").iloc[0]
    assert np.corrcoef(found, mean)[0, 1] > 0.8


def test_without_features_an_embedding_is_learned() -> None:
    changes, _ = toy_compounds()
    model = fresh_model()
    settings = TRAINING | {"n_steps": 400}
    scores = model.train_compounds(changes, toy_log_tpm(), **settings)
    assert scores == {"shrinkage": 1.0}
    seen = changes.to_df().dropna(axis=1).iloc[:10]
    assert _correlations(model, toy_log_tpm(n=4), seen).mean() > 0.6
    with pytest.raises(KeyError, match="was not trained on 'drug99'"):
        model.predict_compound(toy_log_tpm(n=4), "drug99")


def test_the_sample_that_was_treated_matters() -> None:
    samples = toy_log_tpm(n=8)[:2].copy()
    changes, features = toy_compounds()
    both = ad.concat([changes, changes], index_unique="-")
    both.X[len(changes) :] *= -1
    both.obs["compound"] = list(changes.obs_names) * 2
    both.obs["sample"] = np.repeat(samples.obs_names, len(changes))
    model = fresh_model()
    model.train_compounds(both, samples, features=features, **(TRAINING | {"n_steps": 600}))
    first, second = model.predict_compound(samples, "drug1").to_numpy()
    assert np.corrcoef(first, second)[0, 1] < 0.6  # .49 to .51 by the processor


def test_training_repeats_and_leaves_the_rest_of_the_model_alone() -> None:
    changes, features = toy_compounds()
    before = fresh_model().module.state_dict()
    made = []
    for seed in (3, 3, 4):
        model = fresh_model()
        settings = TRAINING | {"n_steps": 20, "seed": seed}
        model.train_compounds(changes, toy_log_tpm(), features=features, **settings)
        made.append(model.predict_compound(toy_log_tpm(n=4), "drug1"))
        for name, tensor in before.items():
            assert torch.equal(model.module.state_dict()[name], tensor)
    pd.testing.assert_frame_equal(made[0], made[1])
    assert not made[0].equals(made[2])


def test_a_prediction_does_not_depend_on_batches_or_the_order_of_genes() -> None:
    model, _ = taught()
    samples = toy_log_tpm(n=8)
    together = model.predict_compound(samples, "DRUG7 ", precision="float32")
    np.testing.assert_allclose(
        model.predict_compound(samples[[5], ::-1].copy(), "drug7", precision="float32"),
        together.iloc[[5]],
        atol=1e-4,
    )
    small = model.predict_compound(samples, "drug7", batch_size=1, precision="float32")
    np.testing.assert_allclose(small, together, atol=1e-4)


def test_features_of_an_unknown_compound_can_be_given() -> None:
    model, _ = taught()
    _, features = toy_compounds()
    samples = toy_log_tpm(n=4)
    named = model.predict_compound(samples, "drug55")
    given = model.predict_compound(samples, "new", features=features.loc["drug55"])
    pd.testing.assert_frame_equal(given, named)
    with pytest.raises(KeyError, match=r"no compound features \['f9'\]"):
        model.predict_compound(samples, "new", features=pd.Series({"f9": 1.0}))


@pytest.mark.parametrize("compact", [False, True])
def test_what_was_learned_is_saved_with_the_model(tmp_path: Path, compact: bool) -> None:
    model, scores = taught()
    loaded = BulkFormer.load(model.save(tmp_path / "model", compact=compact))
    assert loaded.compounds == model.compounds
    assert loaded.provenance["compound_scores"] == scores
    samples = toy_log_tpm(n=4)
    np.testing.assert_allclose(
        loaded.predict_compound(samples, "drug55"),
        model.predict_compound(samples, "drug55"),
        atol=0.05 if compact else 1e-6,
    )
    again = BulkFormer.load(loaded.save(tmp_path / "again"))
    assert again.compounds == model.compounds


def test_new_weights_drop_what_was_learned(tmp_path: Path) -> None:
    changes, features = toy_compounds()
    model = fresh_model()
    settings = TRAINING | {"n_steps": 2}
    model.train_compounds(changes, toy_log_tpm(), features=features, **settings)
    with pytest.warns(UserWarning, match="compound head is removed"):
        model.train(max_steps=1, batch_size=8, enable_progress_bar=False)
    assert model.compounds == []
    assert BulkFormer.load(model.save(tmp_path / "model")).compounds == []
    with pytest.raises(KeyError, match="was not trained on compounds"):
        model.predict_compound(toy_log_tpm(n=4), "drug1")


def test_a_damaged_head_is_refused(tmp_path: Path) -> None:
    import json

    folder = taught()[0].save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["config"]["compounds"]["rank"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="do not fit"):
        BulkFormer.load(folder)
    del config["config"]["compounds"]["rank"]
    config["config"]["compounds"]["width"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks or garbles"):
        BulkFormer.load(folder)


def test_targets_make_features() -> None:
    changes, _ = toy_compounds()
    targets = pd.DataFrame(
        {
            "compound": [f"Drug{i}" for i in range(20) for _ in range(2)],
            "gene": [g for i in range(20) for g in (f"T{i % 4}", "ALL")],
        }
    )
    model = fresh_model()
    settings = TRAINING | {"n_steps": 2}
    with pytest.warns(UserWarning, match="40 of 60 compounds have no features"):
        model.train_compounds(changes, toy_log_tpm(), features=targets, **settings)
    head = model.compound_head
    assert head.settings["feature_names"] == ["ALL", "T0", "T1", "T2", "T3"]
    np.testing.assert_allclose(head.features.norm(dim=1), 1.0, atol=1e-6)


def _bad(**changed):
    changes, features = toy_compounds()
    given = {"signatures": changes, "baseline": toy_log_tpm(n=4), "features": features} | changed
    return given | {"n_steps": 1}


SIGNED = pd.DataFrame({"compound": ["drug1"], "gene": ["GENE1"], "direction": [1]})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"signatures": [1]}, TypeError, "signatures= is a list"),
        ({"signatures": SIGNED.drop(columns="gene")}, KeyError, r"lacks \['gene'\]"),
        ({"signatures": SIGNED.assign(direction=2)}, ValueError, "directions other than"),
        ({"signatures": SIGNED.assign(direction="up")}, ValueError, "of no number"),
        ({"signatures": SIGNED[:0]}, ValueError, "no row"),
        ({"signatures": SIGNED.assign(direction=0)}, ValueError, "has a change"),
        ({"signatures": SIGNED.assign(gene="FOO")}, ValueError, "Found 0 of the model's"),
        ({"signatures": SIGNED}, ValueError, "Found 1 compounds with a signature and features"),
        ({"signatures": SIGNED.assign(effect=np.inf)}, ValueError, "infinite"),
        ({"features": [1]}, TypeError, "features= is a list"),
        ({"features": pd.DataFrame([["x"]])}, ValueError, "something else than numbers"),
        ({"features": pd.DataFrame([[np.nan]])}, ValueError, "NaN"),
        ({"features": pd.DataFrame([[1], [2]], index=["A", "a"])}, ValueError, "more than one row"),
        ({"unlisted_weight": 2.0}, ValueError, "unlisted_weight="),
        ({"validation_share": 1.0}, ValueError, "validation_share="),
        ({"n_steps": 0}, ValueError, "n_steps="),
    ],
)
def test_bad_input_is_refused(arguments, error, message) -> None:
    model = fresh_model()
    with pytest.raises(error, match=message):
        model.train_compounds(**(_bad() | arguments))
    assert model.compounds == []


def test_the_bundled_signatures_and_targets_fit_together() -> None:
    signatures, targets = cfm.datasets.cmap_signatures(), cfm.datasets.drug_targets()
    genes = signatures["gene"].value_counts().index[:60].tolist()
    rng = np.random.default_rng(0)
    samples = ad.AnnData(rng.uniform(1, 5, (3, 60)).astype(np.float32))
    samples.var_names = genes
    graph = (np.stack([np.arange(60), (np.arange(60) + 1) % 60]), np.ones(60))
    model = BulkFormer(vocabulary=genes, graph=graph, dim=16, n_layers=1, n_heads=2)
    with pytest.warns(UserWarning, match="compounds have no features"):
        model.train_compounds(signatures, samples, features=targets, n_steps=2)
    made = cfm.tl.simulate_perturbation(samples, "dexamethasone", model=model)
    assert made.shape == samples.shape
    assert set(made.obs["perturbation"]) == {"dexamethasone"}
