"""What the authors published, of all models: names, sizes, numbers of parameters, gene lists."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cfm import models
from cfm._arguments import named_size
from cfm.models import bulkformer, cellpulse, cellvq, lingshu, load_model, pulsar
from tests import _bulk
from tests._golden import GOLDEN

PUBLISHED = {
    "BulkFormer": ("bulkformer", "bulkformer_tiny.pt", "bulkformer_tiny"),
    "CellVQ": ("cellvq", "models.ckpt", "models"),
    "Pulsar": ("pulsar/PULSAR-tiny", "", "PULSAR-tiny"),
    "VirtualInstrument": ("pulsar", "virtual_instrument.pt", "virtual_instrument"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_any_way_to_name_it(name: str, tmp_path: Path) -> None:
    folder, file, expected = PUBLISHED[name]
    place, cls = GOLDEN / folder, getattr(models, name)
    sources = {place, place / file} if name != "VirtualInstrument" else {place / file}
    for load in (cls.from_pretrained, load_model):
        for source in (*sources, *map(str, sources)):
            assert cls.recognises(Path(source))
            found = load(source)
            assert type(found) is cls
            assert found.checkpoint_name in (expected, place.name)
            assert len(found.checkpoint_sha256) == 64
    assert not cls.recognises(found.save(tmp_path / "ours"))
    assert not cls.recognises(tmp_path)
    assert not cls.recognises(tmp_path / "nowhere")


def _bulkformer(size: str) -> torch.nn.Module:
    return bulkformer.BulkFormerModule(20_010, **bulkformer.SIZES[size].module_arguments())


def _latest() -> torch.nn.Module:
    return bulkformer.SIZES["latest"].module(19_973)


def _cellpulse(size: str) -> torch.nn.Module:
    return cellpulse.CellPulseModule(20_000, **cellpulse.SIZES[size].module_arguments())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: _bulkformer("37M"), 13_368_647),
        (lambda: _bulkformer("50M"), 28_641_159),
        (lambda: _bulkformer("93M"), 75_921_159),
        (lambda: _bulkformer("127M"), 112_448_967),
        (lambda: _bulkformer("147M"), 132_143_047),
        (_latest, 101_323_778),
        (lambda: pulsar.PulsarModule(pulsar.SIZES["released"]), 87_372_288),
        (lambda: _cellpulse("published"), 114_252_175),
        (lambda: pulsar.InstrumentModule(pulsar.InstrumentSize()), 12_597_248),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(
    make: Callable[[], torch.nn.Module], expected: int
) -> None:
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in make().named_parameters()}
    assert sum(sizes.values()) == expected
    if expected == 87_372_288:
        assert sum(n for name, n in sizes.items() if "_template" not in name) == 76_869_120


@pytest.mark.parametrize(
    ("sizes", "change", "message"),
    [
        *(
            (sizes, {"dim": value}, "dim=.*; expected a whole number of at least 1")
            for sizes in (bulkformer.SIZES, cellpulse.SIZES, cellvq.SIZES, lingshu.SIZES)
            for value in (0, -1, 2.0, True, "8", None)
        ),
        *(
            (sizes, {"dropout": value}, "dropout=.*at least 0 and below 1")
            for sizes in (cellpulse.SIZES, cellvq.SIZES, pulsar.SIZES)
            for value in (-0.1, 1.0)
        ),
        (cellvq.SIZES, {"n_bits": True}, "n_bits=True; expected a whole number"),
        (cellvq.SIZES, {"n_bits": 21}, "n_bits must be at most 20"),
        (cellvq.SIZES, {"dim": 16, "n_heads": 5}, "dim=16 must be divisible by n_heads=5"),
        (cellvq.SIZES, {"decoder_dim": 16, "decoder_heads": 3}, "decoder_dim=16 must be divisible"),
        *((cellvq.SIZES, {"relation": x}, "relation must be") for x in ("some", 0, True)),
        (cellvq.SIZES, {"code_term": 1}, "code_term=1; expected True or False"),
        (lingshu.SIZES, {"dim": 30, "n_heads": 4}, "even width"),
        (lingshu.SIZES, {"depth": 1}, "True or False"),
        (lingshu.SIZES, {"group_size": 2.5}, "whole number"),
        (pulsar.SIZES, {"dim": 0}, "dim=0; expected a whole number"),
        (pulsar.SIZES, {"templates": 1}, "templates=1; expected True or False"),
    ],
)
def test_sizes_are_checked(sizes: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named_size("mini", sizes, change)
    with pytest.raises(ValueError, match="Unknown size 'huge'"):
        named_size("huge", sizes, {})
    with pytest.raises(TypeError, match="no argument 'width'; of the size can be set: "):
        named_size("mini", sizes, {"width": 3})
    assert named_size(sizes["mini"], sizes, {}) == sizes["mini"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID\nA\nB\n", "lists 2 genes"),
        ("symbol\nA\n", "expected 'ID'"),
        ("ID\n{same}", "1 of them different"),
        ('ID\n"A\n', "no table"),
    ],
)
@pytest.mark.parametrize("name", ["BulkFormer", "CellVQ"])
def test_gene_lists_that_do_not_fit_are_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    folder, column = tmp_path / "theirs", "ensg_id" if name == "BulkFormer" else "gene_name"
    if name == "BulkFormer":
        file, n_genes = _bulk.published(folder) / "bulkformer_gene_info.csv", 160
    else:
        shutil.copytree(GOLDEN / "cellvq", folder)
        file, n_genes = folder / "OS_scRNA_gene_index.19264.tsv", 90
    file.write_text(text.replace("ID", column).format(same="A\n" * n_genes))
    with pytest.raises(ValueError, match=message.replace("ID", column)):
        getattr(models, name).from_pretrained(folder)
