"""Training learns planted types, repeats with its seed, and survives what goes wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from anndata import AnnData
from sklearn.metrics import normalized_mutual_info_score

from cfm.models import CellVQ
from cfm.nn._genes import zinb_nll
from tests._planted_codes import SMALL, TRAINING, planted_cells, trained, untrained


def weights(model: CellVQ) -> torch.Tensor:
    return torch.cat([p.detach().float().ravel() for p in model.module.state_dict().values()])


def curve(model: CellVQ, name: str) -> np.ndarray:
    return model.history[name][name].to_numpy(dtype=float)


@pytest.mark.slow
def test_codes_and_heads_learn_planted_types() -> None:
    model, cells = trained(), planted_cells(120, seed=3)
    codes = model.get_cell_codes(cells, precision="float32")
    assert normalized_mutual_info_score(cells.obs["cell_type"], codes.code) > 0.7
    named = model.predict_properties(cells)["cell_type"].idxmax(axis=1)
    assert (named.to_numpy() == cells.obs["cell_type"].to_numpy()).mean() > 0.9


def test_hidden_counts_are_predicted_better_than_by_the_mean_of_each_gene() -> None:
    """Of cells that training did not see, and from the code alone."""
    model, cells = trained(), planted_cells(120, seed=3)
    reader = model._reader(cells, None, "counts", None)
    values, genes, padding = reader.tokens(np.arange(120))
    counts = torch.from_numpy(cells.X)
    total = counts.sum(1, keepdim=True)
    module = model.module
    with torch.inference_mode():
        encoded = module.encode(values, genes, padding)
        vector = module.quantize(module.pool(encoded, padding)[1]).vector
        nothing = torch.ones_like(padding)
        mean, dispersion, dropout = module.decode(encoded, genes, nothing, vector=vector)
    found = zinb_nll(counts, mean * total / 1e4, dispersion, dropout).mean()
    seen = torch.from_numpy(planted_cells().X)
    constant = (seen.sum(0) / seen.sum() * total).clamp(min=1e-3)
    dispersions = torch.tensor([0.3, 1.0, 3.0, 10.0])
    never = torch.tensor(0.0)
    baseline = min(zinb_nll(counts, constant, d, never).mean() for d in dispersions)
    assert found < 0.9 * baseline


def test_history_says_how_losses_and_codes_went() -> None:
    model = trained()
    parts = {"loss", "reconstruction", "separation", "property_cell_type", "accuracy_cell_type"}
    expected = {f"{kind}_{part}" for kind in ("train", "validation") for part in parts}
    assert expected | {"temperature", "perplexity", "n_live_codes", "live_codes"} <= set(
        model.history
    )
    for name in ("train_loss", "validation_loss", "train_reconstruction"):
        values = curve(model, name)
        assert np.isfinite(values).all()
        assert values[-1] < 0.8 * values[0], name
    live, used = curve(model, "n_live_codes"), curve(model, "perplexity")
    np.testing.assert_allclose(curve(model, "live_codes"), live / 32, rtol=1e-6)
    assert (used >= 1 - 1e-6).all()
    assert (used <= live + 1e-4).all()
    assert curve(model, "temperature")[0] > 0.9
    assert curve(model, "temperature")[-1] == pytest.approx(0.02)
    # what the last epoch counted are the codes of the finished model
    held_out = model.adata[model.adata.obs["study"].isin(_unseen(model))]
    assert len(set(model.get_cell_codes(held_out, precision="float32").code)) == live[-1]
    assert model.is_trained_
    assert not model.module.training
    assert model.provenance["max_steps"] == 200
    assert type(model.module.quantiser.proj) is torch.nn.Linear


def _unseen(model: CellVQ) -> list[str]:
    from cfm.models._training import held_out_studies

    return held_out_studies(model.adata.obs["study"].to_numpy(dtype=object), 0.1, 0)


def test_a_loss_that_is_no_number_stops_with_a_sentence() -> None:
    model = untrained()
    with torch.no_grad():
        model.module.decoder.projection.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"loss became nan in step 1 of 4.*smaller lr"):
        model.train(max_steps=4, **TRAINING)
    assert type(model.module.quantiser.proj) is torch.nn.Linear


def test_log_values_train_the_same() -> None:
    plain = untrained()
    cells = planted_cells(60)
    cells.obs["total"] = total = cells.X.sum(1)
    cells.X = np.log1p(cells.X / total[:, None] * 1e4)
    other = untrained(cells, units="log1p_cp10k", total_counts="total")
    for model in (plain, other):
        model.train(max_steps=3, **TRAINING | {"lr": 1e-4})
    close = torch.isclose(weights(plain), weights(other), rtol=1e-3, atol=1e-4)
    assert close.float().mean() > 0.999  # the sign of a gradient of 0 is decided by rounding


def test_cells_without_genes_are_left_out_and_counted() -> None:
    cells = planted_cells(30)
    cells.X[:4] = 0
    model = untrained(cells)
    with pytest.warns(UserWarning, match="4 of 30 cells express none"):
        model.train(max_steps=2, validation_share=0.0, **TRAINING)
    assert model.provenance["n_training_cells"] == 26
    cells.X[:] = 0
    with pytest.raises(ValueError, match="None of 30 cells expresses a gene"):
        model.train(max_steps=2, **TRAINING)


def test_one_cell_is_enough_to_run() -> None:
    model = untrained(planted_cells(1))
    model.train(max_steps=2, **TRAINING)
    assert np.isfinite(weights(model).numpy()).all()
    assert curve(model, "perplexity")[-1] == 1.0


def test_genes_that_are_not_measured_are_not_judged() -> None:
    """A panel trains the model of more genes; its other genes keep their factors."""
    cells = planted_cells(40)[:, :30].copy()
    genes = [f"G{i}" for i in range(60)]
    CellVQ.setup_anndata(cells)
    model = CellVQ(cells, vocabulary=genes, **SMALL)
    before = model.module.code_term.genes.detach().clone()
    model.train(max_steps=3, weight_decay=0.0, **TRAINING)
    after = model.module.code_term.genes.detach()
    assert not torch.equal(before[:30], after[:30])
    assert torch.equal(before[30:], after[30:])


def test_other_genes_are_refused() -> None:
    cells: AnnData = planted_cells(20)
    CellVQ.setup_anndata(cells)
    model = CellVQ(cells, vocabulary=[f"H{i}" for i in range(60)], **SMALL)
    with pytest.raises(ValueError, match="Found 0 of the model's 60 genes"):
        model.train(max_steps=1, **TRAINING)
