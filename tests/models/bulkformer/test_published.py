"""Files as the authors lay them out: what is read, and what is refused before it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cfm.models import BulkFormer
from cfm.models.bulkformer._published import read_published
from tests._bulk import published

LAYER = "module.gb_formers.0.f.0.net.layers.0."
COPY = "module.gb_formers.0.f.0.proj_updater.instance.layers.0."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return published(tmp_path / "released")


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "bulkformer_tiny.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_genes_are_named_by_the_list(folder: Path) -> None:
    model = BulkFormer.from_pretrained(folder)
    assert model.knows_genes
    assert model.vocabulary.genes[0] == "ENSG00001000000"
    with pytest.raises(ValueError, match="its own"):
        BulkFormer.from_pretrained(model.save(folder.parent / "ours"), genes=["A"])


def test_known_ids_get_their_symbols(folder: Path) -> None:
    table = pd.read_csv(folder / "bulkformer_gene_info.csv")
    table.loc[:1, "ensg_id"] = ["ENSG00000187608", "ENSG00000157601"]
    table.to_csv(folder / "bulkformer_gene_info.csv", index=False)
    genes = BulkFormer.from_pretrained(folder).vocabulary.genes
    assert genes[:3].tolist() == ["ISG15", "MX1", "ENSG00001000002"]


def test_without_a_list_names_can_be_given(tmp_path: Path) -> None:
    folder = published(tmp_path / "x", genes=False)
    names = [f"ENSG{i + 5:011d}" for i in range(160)]
    assert BulkFormer.from_pretrained(folder, genes=names).knows_genes
    with pytest.raises(ValueError, match="names 3 genes; the weights have 160"):
        BulkFormer.from_pretrained(folder, genes=names[:3])
    model = BulkFormer.from_pretrained(folder)
    assert not model.knows_genes
    with pytest.raises(ValueError, match=r"without their gene list \(bulkformer_gene_info.csv"):
        model.require_genes()


def test_two_versions_of_a_tensor_are_refused(folder: Path) -> None:
    edit(folder, lambda s: s.update({COPY + "0.fn.to_q.bias": torch.ones(32)}))
    with pytest.raises(ValueError, match=r"two versions of one tensor, and .*to_q.bias"):
        BulkFormer.from_pretrained(folder)


def test_a_checkpoint_without_copies_is_read(folder: Path) -> None:
    def drop(state: dict[str, Any]) -> None:
        for key in [k for k in state if "proj_updater" in k]:
            del state[key]

    edit(folder, drop)
    assert read_published(folder).config["size"]["n_layers"] == 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"expression_scale": 1}, "lacks weights of BulkFormer"),
        ({"module.graph_block.norm.weight": 1}, "lacks weights of BulkFormer"),
        ({"gene_emb": 1, "gb_formers.0.which_b.weight": 1}, r"first .*\(v1"),
        ({"module.gb_formers.0.g.bias": 1, "gene_emb_proj.0.weight": 1}, r"first .*\(v1"),
        ({"encoder.weight": 1}, "does not hold weights of BulkFormer"),
    ],
)
def test_other_weights_are_named_and_refused(
    folder: Path, state: dict[str, int], message: str
) -> None:
    torch.save({k: torch.zeros(v) for k, v in state.items()}, folder / "bulkformer_tiny.pt")
    with pytest.raises(ValueError, match=message):
        BulkFormer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"module.extra.weight": torch.ones(1)}), "BulkFormer does not have"),
        (lambda s: s.update({LAYER + "0.fn.to_z.bias": torch.ones(1)}), "does not have"),
        (lambda s: s.pop("module.head.3.bias"), "head.3.bias: found nothing"),
        (lambda s: s.update({"module.head.3.bias": torch.ones(2)}), r"found \(2,\), expected"),
        (lambda s: s.update({"epoch": 3}), "more than tensors"),
        (lambda s: s.pop(LAYER + "0.fn.fast_attention.projection_matrix"), "two versions"),
        (
            lambda s: [
                s.update({p + "0.fn.fast_attention.projection_matrix": torch.ones(16, 7)})
                for p in (LAYER, COPY)
            ],
            "contradict each other",
        ),
        (
            lambda s: s.update({"module.gene_emb_onehot_layer.weight": torch.ones(5, 32)}),
            "do not fit the 5 genes",
        ),
        (lambda s: s["module.head.3.bias"].fill_(float("nan")), "NaN"),
        (lambda s: [s.pop(k) for k in list(s) if ".f.0." in k], "lacks weights of BulkFormer"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        BulkFormer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("edges", "weights", "message"),
    [
        (torch.tensor([[0, 160], [1, 2]]), torch.ones(2), "do not fit the 160 genes"),
        (torch.tensor([[0, 1], [1, 2]]), torch.ones(3), "one weight per edge"),
        (torch.tensor([[0, 1], [1, 2]]), -torch.ones(2), "not negative"),
        (torch.zeros(160, 160), torch.ones(2), r"expected \(2, n_edges\)"),
        ({"graph": torch.ones(2)}, torch.ones(2), "expected one tensor"),
    ],
)
def test_graphs_of_another_size_or_kind_are_refused(
    folder: Path, edges: object, weights: torch.Tensor, message: str
) -> None:
    torch.save(edges, folder / "G_tcga.pt")
    torch.save(weights, folder / "G_tcga_weight.pt")
    with pytest.raises(ValueError, match=message):
        BulkFormer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["G_tcga.pt", "G_tcga_weight.pt"])
def test_a_missing_graph_is_said(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"no {name} beside the weights"):
        BulkFormer.from_pretrained(folder)


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.pt"
    (folder / "G_tcga.pt").rename(outside)
    (folder / "G_tcga.pt").symlink_to(outside)
    with pytest.raises(ValueError, match="outside the checkpoint's folder"):
        BulkFormer.from_pretrained(folder)


def test_several_sizes_in_one_folder_have_to_be_told_apart(folder: Path) -> None:
    (folder / "BulkFormer_37M.pt").write_bytes((folder / "bulkformer_tiny.pt").read_bytes())
    with pytest.raises(ValueError, match="holds 2 files of weights"):
        BulkFormer.from_pretrained(folder)
    assert BulkFormer.from_pretrained(folder / "BulkFormer_37M.pt").size.dim == 32
