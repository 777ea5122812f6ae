"""UCE on counts: the authors' tables, sentences, embeddings, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import cfm
from cfm.models import UCE
from cfm.models.uce import UCESize
from tests._uce import FIRST, GENES, N_GENES, N_HEADS, cells, published


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return published(tmp_path / "released")


@pytest.fixture
def model(folder: Path) -> UCE:
    return UCE.from_pretrained(folder, n_heads=N_HEADS)


def test_the_tables_say_which_token_a_gene_has(model: UCE, folder: Path) -> None:
    assert model.genes.index.tolist() == GENES
    assert model.genes["token"].tolist() == list(range(FIRST, FIRST + N_GENES))
    # categories of species and chromosome together, sorted, are the last tokens: human first
    assert model.genes["chromosome"].tolist() == [53 + i % 5 for i in range(N_GENES)]
    table = pd.read_csv(folder / "species_chrom.csv").query("species == 'human'")
    starts = table.set_index("gene_symbol")["start"]
    assert model.genes["start"].tolist() == starts.loc[GENES].tolist()


def test_values_that_are_stored_in_parts_are_one_count(model: UCE) -> None:
    adata = cells(3)
    adata.X = sparse.csr_matrix(adata.X)
    parts = adata.copy()
    x = adata.X
    halves = np.stack([np.ones_like(x.data), x.data - 1], axis=1).ravel()
    parts.X = sparse.csr_matrix(
        (halves, np.repeat(x.indices, 2), 2 * x.indptr.astype(np.int64)), shape=x.shape
    )
    assert parts.X.nnz == 2 * x.nnz
    for one, other in zip(
        model.get_sentences(adata, sample_size=64),
        model.get_sentences(parts, sample_size=64),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_it_is_the_embedding_of_the_sentence(model: UCE) -> None:
    adata = cells(3)
    sentences = model.get_sentences(adata, sample_size=64)
    found = model.get_latent_representation(adata, sample_size=64, precision="float32")
    for sentence, row in zip(sentences, found, strict=True):
        tokens = torch.from_numpy(sentence)[None]
        with torch.no_grad():
            _, expected = model.module(tokens, torch.ones(tokens.shape))
        np.testing.assert_allclose(row, expected[0], atol=1e-5)


def test_few_genes_are_a_warning_and_fewer_an_error(model: UCE) -> None:
    with pytest.raises(ValueError, match="Found 8 of the model's 40 genes"):
        model.get_latent_representation(cells()[:, :8].copy())
    names = [f"GENE{i}" for i in range(300)]
    table = pd.DataFrame({"token": range(4, 304), "chromosome": 304, "start": 0}, index=names)
    sizes = {"token_dim": 4, "dim": 8, "n_heads": 2, "n_layers": 1, "ff_dim": 8, "output_dim": 4}
    wide = UCE(table, size=UCESize(n_tokens=305, **sizes))
    adata = ad.AnnData(np.ones((2, 60), dtype=np.float32), var=pd.DataFrame(index=names[:60]))
    with pytest.warns(UserWarning, match="Only 20% of the model's 300 genes"):
        assert wide.get_latent_representation(adata, sample_size=8).shape == (2, 4)


def test_weights_without_tables_read_tokens_only(folder: Path) -> None:
    model = UCE.from_pretrained(folder / "uce_tiny.torch", n_heads=N_HEADS)
    assert model.genes is not None  # the tables lie beside it
    table = model.genes
    for name in ("species_chrom.csv", "species_offsets.pkl"):
        (folder / name).unlink()
    model = UCE.from_pretrained(folder, n_heads=N_HEADS)
    with pytest.raises(ValueError, match="without the authors' tables"):
        model.get_latent_representation(cells())
    given = UCE.from_pretrained(folder, n_heads=N_HEADS, genes=table)
    assert given.get_latent_representation(cells(2), sample_size=8).shape == (2, 16)


def test_token_embeddings_may_lie_beside_the_weights(folder: Path) -> None:
    expected = UCE.from_pretrained(folder, n_heads=N_HEADS)
    state = torch.load(folder / "uce_tiny.torch", weights_only=True)
    tokens = state.pop("pe_embedding.weight")
    torch.save(state, folder / "uce_tiny.torch")
    with pytest.raises(ValueError, match=r"no all_tokens.torch"):
        UCE.from_pretrained(folder, n_heads=N_HEADS)
    torch.save(tokens, folder / "all_tokens.torch")
    found = UCE.from_pretrained(folder, n_heads=N_HEADS)
    assert torch.equal(found.module.token_embedding.weight, expected.module.token_embedding.weight)


def test_files_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="20 heads do not divide"):
        UCE.from_pretrained(folder)
    with pytest.raises(ValueError, match="expected one of"):
        UCE.from_pretrained(folder, n_heads=N_HEADS, species="cat")
    with pytest.raises(ValueError, match="holds 0 files Mus_musculus"):
        UCE.from_pretrained(folder, n_heads=N_HEADS, species="mouse")
    offsets = folder / "species_offsets.pkl"
    offsets.write_bytes(pickle.dumps({"human": FIRST + 1}))
    with pytest.raises(ValueError, match="belong to different releases"):
        UCE.from_pretrained(folder, n_heads=N_HEADS)
    offsets.write_bytes(pickle.dumps({"human": Path}))
    with pytest.raises(ValueError, match=r"needs more than numbers .*nothing in it was executed"):
        UCE.from_pretrained(folder, n_heads=N_HEADS)
    offsets.unlink()
    with pytest.raises(ValueError, match=r"no species_offsets.pkl"):
        UCE.from_pretrained(folder, n_heads=N_HEADS)


def test_weights_of_something_else_are_refused(folder: Path) -> None:
    path = folder / "uce_tiny.torch"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"something.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="does not have"):
        UCE.from_pretrained(folder, n_heads=N_HEADS)
    del state["transformer_encoder.layers.1.linear1.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match="do not fit"):
        UCE.from_pretrained(folder, n_heads=N_HEADS)
    (folder / "second.torch").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="holds 2 files of weights"):
        UCE.from_pretrained(folder, n_heads=N_HEADS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="start"), "expected a row per gene"),
        (lambda t: t.assign(token=999), "more than once"),
        (lambda t: t.assign(chromosome=999), "tokens from 999"),
        (lambda t: t.assign(start=np.nan), "missing values"),
    ],
)
def test_gene_tables_are_checked(model: UCE, folder: Path, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UCE.from_pretrained(folder, n_heads=N_HEADS, genes=change(model.genes))


def test_the_trial_in_bfloat16_fits_into_few_positions() -> None:
    size = UCESize(
        n_tokens=40, max_length=8, token_dim=4, dim=8, n_heads=2, n_layers=1, ff_dim=8, output_dim=4
    )
    assert UCE(size=size).module.eval().bfloat16_agreement() > 0.99


def _mouse(model: UCE) -> pd.DataFrame:
    """Return a table of mouse proteins: those of the human genes, named as in the mouse."""
    of = model.genes["token"].to_numpy()
    proteins = pd.DataFrame(
        model.module.token_embedding.weight[of].numpy(), index=[g.capitalize() for g in GENES]
    )
    return proteins.assign(chromosome=[str(i % 5) for i in range(N_GENES)], start=range(N_GENES))


def test_mouse_cells_are_embedded_by_a_table_of_proteins(model: UCE, tmp_path: Path) -> None:
    adata = cells(40)
    adata.var_names = [g.capitalize() for g in GENES]
    adata.obs["donor_id"] = [f"mouse{i % 4}" for i in range(40)]
    proteins = _mouse(model)
    model.set_proteins(proteins)
    assert model.size.n_tokens == len(model.module.token_embedding.weight) == 4 + N_GENES + 5
    assert model.vocabulary_share(adata) == 1
    cfm.tl.embed(adata, model, sample_size=32)
    assert adata.obsm["X_uce"].shape == (40, model.size.output_dim)
    model.save(tmp_path / "mouse")
    again = cfm.tl.embed(adata, UCE.load(tmp_path / "mouse"), sample_size=32, copy=True)
    np.testing.assert_array_equal(again.obsm["X_uce"], adata.obsm["X_uce"])
    cfm.models.Pulsar.setup_anndata(adata, "donor_id", use_rep="X_uce")
    donors = cfm.tl.embed_donors(adata, "donor_id", cfm.models.Pulsar(adata))
    assert donors.obs_names.tolist() == [f"mouse{i}" for i in range(4)]


def test_a_gene_is_its_protein_and_not_its_name(model: UCE) -> None:
    proteins, adata = _mouse(model), cells(6)
    model.set_proteins(proteins.set_axis(GENES))
    human = model.get_latent_representation(adata, sample_size=32)
    adata.var_names = proteins.index
    model.set_proteins(proteins)
    np.testing.assert_array_equal(model.get_latent_representation(adata, sample_size=32), human)
    # genes of one chromosome are read together, each chromosome behind a token of its own
    model.set_proteins(proteins.assign(chromosome="1"))
    assert np.abs(model.get_latent_representation(adata, sample_size=32) - human).max() > 1e-3
    assert model.genes["chromosome"].nunique() == 1
    model.set_proteins(proteins)
    assert model.genes["chromosome"].nunique() == proteins["chromosome"].nunique() > 1
    proteins.iloc[:, 0] += 1.0
    model.set_proteins(proteins)
    assert np.abs(model.get_latent_representation(adata, sample_size=32) - human).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="start"), "lacks the columns"),
        (lambda t: t.drop(columns=3), "numbers per gene"),
        (lambda t: t.replace({3: {t.iloc[0, 3]: np.nan}}), "finite"),
        (lambda t: t.assign(start=np.nan), "missing values"),
        (lambda t: t.iloc[[0, 0]], "more than once"),
    ],
)
def test_tables_of_proteins_are_checked(model: UCE, change, message: str) -> None:
    proteins, before = change(_mouse(model)), model.size
    with pytest.raises(ValueError, match=message):
        model.set_proteins(proteins)
    assert model.size == before
