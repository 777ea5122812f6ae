"""The authors' file: the published numbers come out, and what is damaged is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from cfm.models import CellVQ
from cfm.models.cellvq._published import read_published
from tests._golden import assert_close, io_of

io = partial(io_of, "cellvq")

GOLDEN = Path(__file__).parents[2] / "golden" / "cellvq"
HEADS = {"cell_type": 7, "tissue": 5, "disease": 6, "sex": 3, "age": 184}
NAMES = [f"GENE{i}" for i in range(90)]


@cache
def model() -> CellVQ:
    """Not to be changed by a test."""
    return CellVQ.from_pretrained(GOLDEN / "models.ckpt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "released"
    made.mkdir()
    shutil.copy(GOLDEN / "models.ckpt", made)
    return made


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    loaded = torch.load(folder / "models.ckpt", weights_only=True)
    change(loaded)
    torch.save(loaded, folder / "models.ckpt")


def gene_list(folder: Path, names: list[str]) -> None:
    table = pd.DataFrame({"gene_name": names, "index": range(len(names))})
    table.to_csv(folder / "OS_scRNA_gene_index.19264.tsv", sep="\t", index=False)


def counts() -> ad.AnnData:
    return ad.AnnData(io()["counts"].numpy(), var=pd.DataFrame(index=NAMES))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("more", [0, 7])
def test_tensors_give_the_published_numbers(gradients: bool, more: int) -> None:
    """The original takes a cell at a time; here they are one padded batch."""
    lengths = [io()[f"cell{i}_values"].shape[1] for i in range(6)]
    values = torch.full((6, max(lengths) + more), 9.0)
    genes = torch.full(values.shape, 92)
    padding = torch.ones(values.shape, dtype=torch.bool)
    for i, n in enumerate(lengths):
        values[i, :n], genes[i, :n] = (
            io()[f"cell{i}_values"][0],
            io()[f"cell{i}_gene_ids"][0],
        )
        padding[i, :n] = False
    module = model().module
    with torch.set_grad_enabled(gradients):
        encoded = module.encode(values, genes, padding)
        cell, maximum = module.pool(encoded, padding)
        found = module.quantize(maximum)
        logits = module.classify(cell)
    for i, n in enumerate(lengths):
        assert_close(encoded[i : i + 1, :n], io()[f"cell{i}_encoded"])
    assert_close(cell, io()["cell_embedding"])
    assert_close(maximum, io()["cell_embedding_max"])
    assert torch.equal(found.code, io()["cell_code"])
    assert_close(found.vector, io()["quantized"])
    assert list(logits) == list(HEADS)
    for name in HEADS:
        assert_close(logits[name], io()[name])


def test_counts_give_the_published_numbers(folder: Path) -> None:
    """The authors' weights, gene list and counts, as an AnnData with its genes in another order."""
    gene_list(folder, NAMES)
    named, exact = CellVQ.from_pretrained(folder), {"precision": "float32"}
    turned = counts()[:, ::-1].copy()
    found = named.get_cell_codes(turned, batch_size=4, **exact)
    np.testing.assert_array_equal(found.code, io()["cell_code"])
    embedding = named.get_latent_representation(turned, batch_size=4, **exact)
    assert_close(embedding, io()["cell_embedding"])
    for name, table in named.predict_properties(turned, **exact).items():
        np.testing.assert_allclose(table, io()[name].softmax(-1), atol=1e-5)
        assert len(table.columns) == HEADS[name]
    embedded = np.concatenate([x for _, x in named.get_gene_embeddings(turned, **exact)])
    for i in range(6):
        ids = io()[f"cell{i}_gene_ids"][0]
        expected = io()[f"cell{i}_encoded"][0, :-2]
        np.testing.assert_allclose(embedded[i, ids[:-2]], expected, atol=1e-5)
        assert np.isnan(np.delete(embedded[i], ids[:-2], axis=0)).all()


def test_sizes_and_names_are_read() -> None:
    size = model().size
    assert (size.dim, size.n_layers, size.n_heads, size.ff_dim) == (32, 2, 4, 128)
    assert (size.decoder_dim, size.decoder_layers, size.decoder_heads) == (24, 1, 4)
    assert (size.n_bins, size.bin_alpha, size.relation) == (10, 1.0, "full")
    assert (size.n_bits, size.codebook_dim, size.codebook_layers, size.code_dim) == (12, 16, 5, 32)
    assert model().checkpoint_name == "models"
    assert len(model().checkpoint_sha256) == 64
    assert {k: len(v) for k, v in model().properties.items()} == HEADS


def test_the_decoder_is_the_described_arithmetic() -> None:
    """By hand, from the authors' tensors; Performer layers are checked with BulkFormer's."""
    state = torch.load(GOLDEN / "models.ckpt", weights_only=True)["m1"]
    linear, norm = torch.nn.functional.linear, torch.nn.functional.layer_norm

    def weights(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    genes, encoded = io()["cell2_gene_ids"], io()["cell2_encoded"]
    with torch.no_grad():
        x = model().module.value_embedding(torch.zeros(92))
        x[genes[0]] = encoded[0]
        x = x + state["pos_emb.weight"][:92] + linear(state["go"], *weights("go_embed"))
        x = linear(x, *weights("decoder_embed"))
        x = model().module.decoder.layers[0](x[None])[0]
        x = norm(norm(x, (24,), *weights("decoder.norm")), (24,), *weights("norm"))[:90]
        raw = [linear(x, *weights(name))[:, 0] for name in ("mean", "disp", "pi")]
        found = model().module.decode(encoded, genes)
        assert_close(found[0][0], raw[0].exp())
        assert_close(found[1][0], (1 + raw[1].exp()).log())
        assert_close(found[2][0], 1 / (1 + (-raw[2]).exp()))


def test_weights_are_not_copied() -> None:
    loaded = read_published(GOLDEN)
    assert loaded.tensors["relation"].untyped_storage().nbytes() == 4 * 92 * 92
    assert loaded.config["n_genes"] == 90
    assert list(loaded.files) == ["properties.json"]
    made = CellVQ._from_checkpoint(loaded)
    assert made.module.relation.data_ptr() == loaded.tensors["relation"].data_ptr()


def test_modes_are_chosen_by_name(folder: Path) -> None:
    def more(loaded: dict[str, Any]) -> None:
        loaded["m2"] = {f"module.{k}": v for k, v in loaded["m1"].items()}
        loaded["m2"]["module.sex.bias"] = torch.ones(3)

    edit(folder, more)
    assert (CellVQ.from_pretrained(folder, mode="m2").module.property_heads[3].bias == 1.0).all()
    with pytest.raises(ValueError, match=r"no weights of mode='m3'; it has \['m1', 'm2'\]"):
        CellVQ.from_pretrained(folder, mode="m3")


def test_fewer_heads_are_fewer_properties(folder: Path) -> None:
    edit(folder, lambda d: [d["m1"].pop(f"tissue.{k}") for k in ("weight", "bias")])
    assert list(CellVQ.from_pretrained(folder).properties) == ["cell_type", "disease", "sex", "age"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["m1"].update({"extra.weight": torch.ones(1)}), "CellVQ does not have"),
        (lambda d: d["m1"].update({"epoch": 3}), "CellVQ does not have"),
        (
            lambda d: d["m1"].update({"encoder.transformer_encoder.0.x": torch.ones(1)}),
            "CellVQ does not have",
        ),
        (lambda d: d["m1"].pop("pi.bias"), "decoder.heads.dropout.bias: found nothing"),
        (lambda d: d["m1"].pop("pos_emb.weight"), "lacks weights or settings"),
        (lambda d: d["m1"].pop("sex.bias"), "holds half of the head 'sex'"),
        (lambda d: d["m1"].update({"sex.bias": torch.ones(2)}), r"found \(2,\), expected \(3,\)"),
        (lambda d: d["m1"].update({"mean.bias": torch.ones(2)}), r"found \(2,\), expected"),
        (lambda d: d["m1"].update({"go": torch.ones(92, 91)}), "relation: found"),
        (lambda d: d["m1"].pop("go"), "relation_projection.weight: found .* expected nothing"),
        (lambda d: d["m1"]["cell_vq.embedding"][5].zero_(), "numbers its codes otherwise"),
        (lambda d: d["m1"].update({"cell_vq.embedding": torch.ones(3)}), "numbers its codes"),
        (lambda d: d["m1"]["mean.bias"].fill_(float("nan")), "NaN"),
        (lambda d: d["config"].pop("encoder"), "lacks weights or settings"),
        (lambda d: d["config"].update({"decoder": 3}), "lacks weights or settings"),
        (lambda d: d["config"]["encoder"].update({"heads": "x"}), "n_heads=.x.; expected a whole"),
        (lambda d: d["config"]["encoder"].update({"heads": 5}), "divisible by n_heads=5"),
        (lambda d: d["config"]["encoder"].update({"depth": 3}), "encoder depth 3 and 2"),
        (lambda d: d["config"].update({"bin_alpha": None}), "lacks weights or settings"),
        (lambda d: d["config"].update({"seq_len": 93}), "seq_len=93"),
        (lambda d: d.pop("config"), "has no config of CellVQ"),
        (lambda d: (d.clear(), d.update({"gene": {}, "cell": {}})), "scFoundation"),
        (lambda d: d.update({"m1": [1]}), "no weights of mode='m1'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        CellVQ.from_pretrained(folder)
