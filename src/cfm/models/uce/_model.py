"""UCE: the public class."""

from __future__ import annotations

import logging
from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS, settings
from scvi.data.fields import LayerField
from scvi.utils import track

from cfm._adata import warn_user
from cfm._arguments import checks_arguments
from cfm._docs import fill_docs
from cfm.data import GeneVocabulary
from cfm.data._matrix import get_matrix
from cfm.hub._checkpoint import validate_config
from cfm.hub._resolve import reads_checkpoint
from cfm.models._base import TEXTS, Precision, PretrainedModel, load_weights
from cfm.models.uce._data import SAMPLE_SIZE, SentenceMaker, check_genes, read_sentences
from cfm.models.uce._module import CELL, UCEModule, UCESize
from cfm.models.uce._published import CHROMOSOME_SEED, GENES_TABLE, read_published

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from cfm.data import GeneAlignment
    from cfm.hub import Checkpoint

#: Least number of the model's genes that data must measure, and the share below which is warned.
_MIN_GENES, _LOW_SHARE = 50, 0.25
#: Tokens that the layers work on at a time.
_TOKENS_AT_ONCE = 16_384


class UCE(PretrainedModel):
    """Universal cell embeddings: single cells of any tissue, from counts.

    A cell is read as a sentence: genes drawn by how much they are expressed, laid out along their
    chromosomes, each given by an embedding of the protein it encodes. PULSAR reads what comes out.

    Parameters
    ----------
    genes
        Table of the genes of the model: index = symbols, columns ``token``,
        ``chromosome`` (the token of the gene's chromosome) and ``start``. Without it the model
        reads tokens only.
    size
        Sizes of the network, by default those of the published 33-layer model.
    seed
        Seed of the initial weights, for a model that is not loaded.

    Attributes
    ----------
    module
        The network; ``model.module(tokens, mask)`` returns the outputs of all tokens and the cell
        embedding.
    vocabulary
        Its genes, in the order of ``genes``; ``None`` without a table.

    Notes
    -----
    Rosen et al., Universal Cell Embeddings, bioRxiv 2023.11.28.568918; released weights are read
    by :meth:`from_pretrained` and not trained further. A cell's sentence is drawn from its counts
    and a seed, so its embedding does not depend on other cells, and it is not padded; the
    published code pads sentences and lets padding take part in attention.

    Examples
    --------
    >>> import cfm, pandas as pd
    >>> genes = pd.DataFrame(
    ...     {"token": [4, 5], "chromosome": [6, 6], "start": [10, 20]}, index=["A", "B"]
    ... )
    >>> from cfm.models.uce import UCESize
    >>> size = UCESize(n_tokens=7, token_dim=8, dim=8, n_heads=2, n_layers=1, ff_dim=8)
    >>> cfm.models.UCE(genes, size=size).vocabulary
    GeneVocabulary(2 genes: A, B, …)
    """

    module: UCEModule

    def __init__(
        self, genes: pd.DataFrame | None = None, *, size: UCESize | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.size = UCESize() if size is None else size
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = UCEModule(self.size)
        self._set_genes(genes)
        self._summarise()

    def _set_genes(self, genes: pd.DataFrame | None) -> None:
        self.genes = None if genes is None else check_genes(genes, self.size.n_tokens, "genes")
        self.vocabulary = None if self.genes is None else GeneVocabulary(self.genes.index.tolist())

    def _summarise(self) -> None:
        n = sum(p.numel() for p in self.module.parameters())
        genes = "no gene table" if self.genes is None else f"{len(self.genes)} genes"
        self._model_summary_string = (
            f"UCE: {genes}, width {self.size.dim}, {self.size.n_layers} layers, {n:,} parameters"
        )

    def set_proteins(self, proteins: pd.DataFrame) -> None:
        """Replace the genes of the model by those of a table of proteins, of any species.

        The network stays. The embeddings of the proteins become the token embeddings of the genes;
        those of the chromosomes are normal random numbers, as in the published model.

        Parameters
        ----------
        proteins
            A row per gene, named as in ``var_names``: ``chromosome`` (name), ``start`` (position
            on it), and in all other columns the embedding of the protein, of the width that the
            network was trained with (``size.token_dim``; ESM2 of 15 billion parameters, the mean
            over the residues, for the published weights).

        Raises
        ------
        ValueError
            If columns are missing, the width is another, values are missing or infinite, or a gene
            is named twice.

        Examples
        --------
        >>> import cfm, numpy as np, pandas as pd
        >>> from cfm.models.uce import UCESize
        >>> size = UCESize(n_tokens=5, token_dim=8, dim=8, n_heads=2, n_layers=1, ff_dim=8)
        >>> model = cfm.models.UCE(size=size)
        >>> mouse = pd.DataFrame(np.eye(2, 8), index=["Actb", "Gapdh"])
        >>> model.set_proteins(mouse.assign(chromosome=["5", "6"], start=[142_903, 125_161]))
        >>> model.vocabulary
        GeneVocabulary(2 genes: Actb, Gapdh, …)
        """
        lacking = {"chromosome", "start"} - set(proteins.columns)
        if lacking:
            raise ValueError(f"proteins lacks the columns {sorted(lacking)}.")
        values = proteins.drop(columns=["chromosome", "start"]).to_numpy(np.float32)
        if values.shape[1] != self.size.token_dim or not np.isfinite(values).all():
            raise ValueError(
                f"proteins has {values.shape[1]} numbers per gene; {self.size.token_dim} finite "
                "ones are expected, of the protein model that the network was trained with."
            )
        names, place = np.unique(proteins["chromosome"].astype(str), return_inverse=True)
        first = CELL + 1  # the tokens before it are neither genes nor chromosomes
        columns = {
            "token": first + np.arange(len(values)),
            "chromosome": first + len(values) + place,
            "start": proteins["start"].to_numpy(),
        }
        n_tokens = first + len(values) + len(names)
        genes = check_genes(pd.DataFrame(columns, proteins.index), n_tokens, "proteins")
        generator = torch.Generator().manual_seed(CHROMOSOME_SEED)
        drawn = torch.normal(0.0, 1.0, (len(names), self.size.token_dim), generator=generator)
        old = self.module.token_embedding.weight
        table = torch.cat([old[:first].cpu(), torch.from_numpy(values), drawn]).to(old.device)
        self.module.token_embedding = torch.nn.Embedding.from_pretrained(table)
        self.module.size = self.size = replace(self.size, n_tokens=n_tokens)
        self.mark_trained(np.empty(0))  # the weights are no longer those of the checkpoint
        self._set_genes(genes)
        self._summarise()

    @classmethod
    @fill_docs(TEXTS)
    def setup_anndata(cls, adata: AnnData, layer: str | None = None, **kwargs: Any) -> None:
        """Register cells, so that the model can hold them; it embeds any AnnData without.

        Parameters
        ----------
        adata
            Cells by genes, counts.
        %(counts_layer)s
        %(register_fields)s
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        get_matrix(adata, layer=layer)
        fields = [LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False)]
        cls._register(adata, fields, setup_method_args, **kwargs)

    def vocabulary_share(self, adata: AnnData) -> float:
        """Return the share of the model's genes that ``adata`` measures."""
        return self._align(adata, warn=False).found_share

    def _align(self, adata: AnnData, *, warn: bool = True) -> GeneAlignment:
        if self.vocabulary is None:
            raise ValueError(
                "The weights came without the authors' tables (species_chrom.csv, "
                "species_offsets.pkl, protein_embeddings), so the tokens of the genes are "
                "unknown; put those files beside them, or pass from_pretrained(…, genes=table)."
            )
        names = adata.var_names
        if self.provenance.get("species", "human") != "human":
            names = names.str.upper()
        alignment = self.vocabulary.align(names, min_genes=min(_MIN_GENES, len(self.vocabulary)))
        if warn and alignment.found_share < _LOW_SHARE:
            warn_user(
                f"Only {alignment.found_share:.0%} of the model's {len(self.vocabulary)} genes "
                f"are measured ({len(alignment.columns)}); cells are embedded from those alone."
            )
        return alignment

    @checks_arguments()
    def get_sentences(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        sample_size: int = SAMPLE_SIZE,
        seed: int = 0,
    ) -> list[np.ndarray]:
        """Draw the token sentence of each cell.

        Parameters
        ----------
        adata
            Cells by genes, counts; the model's own data if not given.
        layer
            Layer with the counts instead of ``X``.
        sample_size
            Genes to draw for a cell, with replacement.
        seed
            Seed. The draw depends on it and on the cell's counts of the model's genes only.

        Returns
        -------
        For each cell its tokens, ``(n,)`` int64: the cell's token, then for each chromosome its
        token, the genes drawn on it by their start, and an end.

        Raises
        ------
        KeyError
            If the layer does not exist.
        ValueError
            If the model has no gene table, the matrix does not hold counts, too few genes are
            found, or a cell expresses none of them.
        """
        adata, layer = self._given_or_own(adata, layer)
        alignment = self._align(adata)
        assert self.genes is not None
        maker = SentenceMaker.from_table(self.genes, sample_size)
        return read_sentences(adata, layer, alignment, maker, seed)

    @checks_arguments()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        layer: str | None = None,
        sample_size: int = SAMPLE_SIZE,
        seed: int = 0,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> np.ndarray:
        """Embed cells.

        Parameters
        ----------
        adata, layer, sample_size, seed
            As for :meth:`get_sentences`.
        batch_size
            Cells at a time, fewer if sentences are long; the result does not depend on it.
        precision
            ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the processor is fast at
            it and a trial, made once per weights, keeps embeddings at a cosine similarity of
            0.999 to float32.

        Returns
        -------
        ``(n, output_dim)`` float32, rows of length 1.

        Raises
        ------
        KeyError, ValueError
            As :meth:`get_sentences`.
        """
        sentences = self.get_sentences(adata, layer=layer, sample_size=sample_size, seed=seed)
        self.module.eval()
        dtype = self.inference_dtype(precision)
        stack = self.module.prepared(dtype)
        longest = max(len(s) for s in sentences)
        at_once = max(1, min(batch_size, _TOKENS_AT_ONCE // longest))
        out = np.empty((len(sentences), self.size.output_dim), dtype=np.float32)
        starts = range(0, len(sentences), at_once)
        silent = settings.verbosity > logging.INFO or len(starts) < 2
        for start in track(starts, description="Embedding cells", style="tqdm", disable=silent):
            part = [torch.from_numpy(s) for s in sentences[start : start + at_once]]
            embedded = self.module.embed(part, stack=stack)
            out[start : start + at_once] = embedded.cpu().numpy()
        return out

    @classmethod
    @checks_arguments()
    @reads_checkpoint
    @fill_docs(TEXTS)
    def from_pretrained(
        cls,
        source: str | Path,
        adata: AnnData | None = None,
        *,
        device: str = "auto",
        n_heads: int | None = None,
        species: str | None = None,
        genes: pd.DataFrame | None = None,
    ) -> Self:
        """Load a model by name, folder or ``hf://org/name``.

        Parameters
        ----------
        source
            A folder that :meth:`save` wrote, the authors' file of weights, or a folder with it:

            ``*.torch`` (``33l_8ep_1024t_1280.torch``, ``4layer_model.torch``)
                The state dict, with or without ``pe_embedding.weight``.
            ``all_tokens.torch``
                Token embeddings, needed where the state dict has none.
            ``species_chrom.csv``
                Table of species, gene_symbol, chromosome and start, and with it
            ``species_offsets.pkl``
                where the tokens of a species begin (read without running anything in it), and
            ``protein_embeddings/<Species>.….gene_symbol_to_embedding_ESM2.pt``
                whose order gives the token of each gene.

            Without the last three the model reads token sentences but no counts.
        %(adata_to_attach)s
        %(device)s
        n_heads
            Attention heads of the authors' weights, which are not in the file; 20 by default.
        species
            Species whose genes are read from the authors' tables: ``"human"`` (default),
            ``"mouse"``, …
        genes
            Table of genes as for the class, instead of the authors' tables.

        Raises
        ------
        TypeError, ValueError
            If files are missing, damaged or not safe to read, if they do not fit each other, or
            if the weights are of another model.
        """
        return cls._load_from(source, adata, device, n_heads=n_heads, species=species, genes=genes)

    @classmethod
    def _read_published(cls, path: Path, name: str, **published: Any) -> Checkpoint:
        return read_published(path, **published)

    def _contents(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, str]]:
        files = {} if self.genes is None else {GENES_TABLE: self.genes.to_csv()}
        return dict(self.module.state_dict()), {"size": vars(self.size)}, files

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        config, tensors, name = dict(checkpoint.config), checkpoint.tensors, checkpoint.name
        with validate_config("UCE", name, tensors):
            model = cls(size=UCESize(**config.pop("size")))
            text = checkpoint.files.get(GENES_TABLE)
            if text is not None:
                table = pd.read_csv(StringIO(text), dtype={"gene": str}, keep_default_na=False)
                model._set_genes(table.set_index("gene"))
        load_weights(model.module, tensors, name, copy=False)  # very large weights
        model._summarise()
        model.provenance = config
        return model
