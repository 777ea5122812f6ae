"""Training repeats with its seed, survives an interruption, and takes data of any storage."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy import sparse

from cfm.models import LingshuCell
from cfm.models._training import held_out_rows
from cfm.models.count_model._module import UNKNOWN
from cfm.models.lingshu._training import CellStream, DiffusionPlan, withhold
from tests._lingshu import KEYS, SIZES, TRAINING, toy_counts, toy_lingshu, untrained

PLAIN = TRAINING | {"count_term": False}
#: Sums of float32 in another order, where threads share the work of a busy machine.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def weights(model: LingshuCell) -> torch.Tensor:
    return torch.cat([p.detach().float().ravel() for p in model.module.state_dict().values()])


def test_history_has_training_and_validation_curves() -> None:
    model = toy_lingshu()
    for name in ("train_loss", "validation_loss"):
        curve = model.history[name][name].to_numpy(dtype=float)
        assert np.isfinite(curve).all()
        assert curve[-1] < 0.6 * curve[0], name
    assert model.is_trained_
    assert not model.module.training
    assert model.provenance["max_steps"] == 350


def test_the_loss_approaches_the_entropy_of_the_counts() -> None:
    # Poisson counts of known means, of which half of the cells' programme is all there is to learn.
    from scipy.stats import poisson

    means = np.random.default_rng(5).uniform(2.0, 6.0, 42)
    found = toy_lingshu().history["validation_loss"]["validation_loss"].iloc[-1]
    assert found > np.mean([poisson(m).entropy() for m in means])
    assert found < 2.8


def test_the_same_seed_repeats_exactly_and_another_does_not() -> None:
    made = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(made))  # what went on before does not matter
        np.random.seed(len(made))  # noqa: NPY002
        model = untrained()
        model.train(max_steps=4, seed=seed, **TRAINING)
        made.append(weights(model))
    torch.testing.assert_close(made[0], made[1], **ROUNDING)
    assert not torch.allclose(made[0], made[2], atol=1e-3)


def test_the_seed_of_a_model_is_that_of_weights_and_gene_order() -> None:
    first, second, other = (untrained(seed=s).module for s in (1, 1, 2))
    assert torch.equal(first.group.permutation, second.group.permutation)
    assert torch.equal(first.embedding.weight, second.embedding.weight)
    assert not torch.equal(first.group.permutation, other.group.permutation)


def test_training_leaves_the_global_random_state_and_the_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = untrained()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    model.train(max_steps=2, **TRAINING)
    assert torch.equal(torch.rand(3), expected)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("storage", ["dense", "csc", "backed", "layer", "turned"])
def test_data_of_any_storage_train_the_same(storage: str, tmp_path: Path) -> None:
    expected = untrained()
    expected.train(max_steps=2, **TRAINING)
    adata, layer, vocabulary = toy_counts(), None, None
    if storage == "dense":
        adata.X = adata.X.toarray().astype(np.int64)
    elif storage == "csc":
        adata.X = sparse.csc_matrix(adata.X)
    elif storage == "backed":
        adata.write_h5ad(tmp_path / "x.h5ad")
        adata = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    elif storage == "layer":
        adata.layers["counts"], layer = adata.X.copy(), "counts"
        adata.X = np.log1p(adata.X)
    else:
        vocabulary = adata.var_names
        adata = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    LingshuCell.setup_anndata(adata, layer=layer, **KEYS)
    model = LingshuCell(adata, vocabulary=vocabulary, **SIZES)
    model.train(max_steps=2, **TRAINING)
    torch.testing.assert_close(weights(model), weights(expected), **ROUNDING)


def test_genes_that_are_not_measured_are_not_learned_from() -> None:
    adata = toy_counts()[:, :30].copy()
    LingshuCell.setup_anndata(adata, **KEYS)
    model = LingshuCell(adata, vocabulary=[f"GENE{i}" for i in range(42)], **SIZES)
    model.train(max_steps=3, **PLAIN)
    assert (model.module.largest[30:] == 280).all()
    assert (model.module.largest[:30] < 280).all()
    assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()
    assert model.generate(2, n_steps=2).n_vars == 42


def test_whole_studies_are_held_out() -> None:
    adata = toy_counts()
    adata.obs["study"] = np.random.default_rng(0).choice(["s1", "s2", "s3", "s4"], adata.n_obs)
    LingshuCell.setup_anndata(adata, study_key="study", **KEYS)
    model = LingshuCell(adata, **SIZES)
    studies = model.registered_categories("study")
    held_out = held_out_rows(studies, 0.1, 0)
    assert len(set(studies[held_out])) == 1
    assert not set(studies[held_out]) & set(studies[~held_out])
    model.train(max_steps=2, validation_share=0.0, balanced=True, **PLAIN)
    assert "validation_loss" not in model.history
    assert model.provenance["training_studies"] == ["s1", "s2", "s3", "s4"]
    none, names = np.full(50, "", dtype=object), np.array([f"c{i:02d}" for i in range(50)])
    assert held_out_rows(none, 0.1, 0, names).sum() == held_out_rows(none, 0.1, 0).sum() == 5


def test_steps_and_epochs() -> None:
    steps: list[int] = []

    class Count(pl.Callback):
        def on_train_end(self, trainer, *arguments) -> None:
            steps.append(trainer.global_step)

    adata = toy_counts(n=360)  # 280 to 310 cells train: 5 batches an epoch
    arguments = PLAIN | {"callbacks": [Count()]}
    untrained(adata).train(2, **arguments)
    untrained(adata).train(max_steps=7, **arguments)
    untrained(adata).train(2, accumulate_grad_batches=2, **arguments)
    assert steps == [10, 7, 6]


def test_an_interrupted_training_leaves_a_usable_model() -> None:
    class Interrupt(pl.Callback):
        def on_train_batch_end(self, trainer, *arguments) -> None:
            if trainer.global_step == 3:
                raise KeyboardInterrupt

    model, last = untrained(), untrained()
    with pytest.raises(KeyboardInterrupt, match="after step 3 of 22; the model keeps"):
        model.train(2, callbacks=[Interrupt()], **PLAIN)
    with pytest.raises(KeyboardInterrupt):
        last.train(2, callbacks=[Interrupt()], average_width=None, **PLAIN)
    assert np.isfinite(model.get_latent_representation()).all()
    assert model.is_trained_
    # What is kept is the average of the three steps, not the last.
    assert not torch.equal(model.module.head.weight, last.module.head.weight)
    model.train(max_steps=2, recompute=True, **PLAIN)
    assert model.module.trunk.recompute is False


def test_an_interruption_during_validation_keeps_the_average_too() -> None:
    class Interrupt(pl.Callback):
        def on_validation_batch_end(self, trainer, *arguments) -> None:
            raise KeyboardInterrupt

    model, expected = untrained(), untrained()
    with pytest.raises(KeyboardInterrupt):
        model.train(2, callbacks=[Interrupt()], **PLAIN)
    # The first epoch has 11 steps; callbacks run before a step is taken into the average.
    with pytest.raises(KeyboardInterrupt):
        expected.train(2, callbacks=[_StopAfter(12)], **PLAIN)
    torch.testing.assert_close(
        model.module.head.weight, expected.module.head.weight, rtol=0, atol=1e-5
    )


class _StopAfter(pl.Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *arguments) -> None:
        if trainer.global_step == self.steps:
            raise KeyboardInterrupt


def test_trained_models_train_on_without_starting_over(tmp_path: Path) -> None:
    adata = toy_counts()
    LingshuCell.setup_anndata(adata, **KEYS)
    model = LingshuCell.load(toy_lingshu().save(tmp_path / "x"), adata)
    before = model.get_latent_representation()
    model.train(max_steps=1, **(PLAIN | {"lr": 1e-7}))
    np.testing.assert_allclose(model.get_latent_representation(), before, atol=1e-3)
    assert model.provenance["started_from"]["name"] == "x"
    other = toy_counts()
    other.obs["cell_type"] = other.obs["cell_type"].cat.rename_categories({"B": "NK"})
    LingshuCell.setup_anndata(other, **KEYS)
    model = LingshuCell.load(tmp_path / "x", other)
    with pytest.raises(KeyError, match="'NK'"):
        model.train(max_steps=1, **PLAIN)


def test_a_stream_shows_each_cell_once_an_epoch_and_checks_stay_the_same() -> None:
    x = torch.arange(40).view(20, 2)
    conditions = untrained().levels.conditions(20)

    def read(rows):
        return x[rows], conditions.rows(torch.from_numpy(rows))

    arguments = {"batch_size": 5, "seed": 0, "least_time": 0.1, "stratified": True}
    stream = CellStream(read, np.arange(3, 20), **arguments)
    epochs = [torch.cat([b.tokens[:, 0] for b in stream]) for _ in range(2)]
    assert not torch.equal(*epochs)
    for seen in epochs:
        assert sorted(seen.tolist()) == x[3:, 0].tolist()
    fixed = CellStream(read, np.arange(20), fixed=True, **arguments)
    first, second = ([b.hidden for b in fixed] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_conditions_are_withheld_together_and_alone() -> None:
    levels = untrained().levels
    n = 4000
    told = levels.conditions(
        n, source=["B"] * n, perturbation=["x+y"] * n, depth=np.ones(n, dtype=np.float32)
    )
    draw = torch.rand(n, 4, generator=torch.Generator().manual_seed(0))
    found = withhold(told, draw < 0.2)
    dropped = torch.stack(
        [found.source == UNKNOWN, found.parts[:, 0] == UNKNOWN, found.depth.isnan()], dim=1
    ).float()
    assert dropped.mean(0).tolist() == pytest.approx([0.36] * 3, abs=0.03)  # 1 - 0.8 * 0.8
    assert float(dropped.all(1).float().mean()) == pytest.approx(0.2 + 0.8 * 0.2**3, abs=0.03)
    assert (found.parts[found.parts[:, 0] == UNKNOWN][:, 1] == -1).all()


def test_the_learning_rate_warms_up_and_follows_a_cosine_to_its_end() -> None:
    plan = DiffusionPlan(
        untrained().module,
        lr=1e-3,
        last_lr=2e-5,
        weight_decay=0.1,
        warm_up=10,
        n_steps=110,
        average_width=None,
    )
    rates = np.array([plan.rate(step) * 1e-3 for step in range(111)])
    np.testing.assert_allclose(rates[:10], 1e-4 * np.arange(1, 11))
    assert rates[60] == pytest.approx(0.5 * (1e-3 + 2e-5), rel=0.01)
    assert rates[110] == pytest.approx(2e-5)
    assert (np.diff(rates[10:]) <= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epochs": 0}, "max_epochs="),
        ({"max_steps": 0}, "max_steps="),
        ({"batch_size": 0}, "batch_size="),
        ({"n_validation": 0}, "n_validation="),
        ({"validation_share": 1.0}, "validation_share="),
        ({"condition_dropout": 1.0}, "condition_dropout="),
        ({"least_time": 0.0}, "least_time="),
        ({"average_width": 0.5}, "between 0 and 0.28"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        untrained().train(**(PLAIN | arguments))


def test_a_model_without_data_cannot_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no data"):
        LingshuCell.load(toy_lingshu().save(tmp_path / "x")).train(1)


def test_training_in_bfloat16_follows_float32() -> None:
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        model = untrained()
        model.train(max_steps=12, precision=precision, **PLAIN)
        losses.append(float(model.history["train_loss"]["train_loss"].iloc[-1]))
        assert model.module.head.weight.dtype == torch.float32
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
