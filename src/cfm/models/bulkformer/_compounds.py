"""Compound head: the change of expression by a compound, from gene embeddings and its features.

An addition of this package, apart from the published architecture of BulkFormer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings
from scvi.utils import track
from torch import Tensor, nn

from cfm._adata import warn_user
from cfm._arguments import check_flag, check_number, check_whole
from cfm.data._matrix import get_matrix, row_blocks, to_dense
from cfm.models.bulkformer._module import MISSING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.data import GeneVocabulary

#: Least number of compounds to train on.
MIN_COMPOUNDS = 4
#: Least number of held-out compounds for a fit of the shrinkage.
MIN_HELD_OUT = 3
#: Learning rate of the gene factors, relative to that of the networks.
_FACTOR_RATE = 0.1


@dataclass(frozen=True)
class Signatures:
    """Changes of expression by compounds.

    Attributes
    ----------
    compound
        ``(n,)`` object, the compound of each signature (:func:`compound_key`).
    sample
        ``(n,)`` object, name of its baseline sample, ``""`` if not given.
    positions
        ``(g,)`` int64 places in the vocabulary, ascending; genes that some signature measures.
    values
        ``(n, g)`` float32 change, ``NaN`` = not known.
    signed
        Whether values are directions. Then 0 means "not among the strongest".
    """

    compound: np.ndarray
    sample: np.ndarray
    positions: np.ndarray
    values: np.ndarray
    signed: bool


def compound_key(name: object) -> str:
    """Return the name of a compound without regard to case."""
    return str(name).strip().casefold()


def read_signatures(
    signatures: Any, vocabulary: GeneVocabulary, features: pd.DataFrame | None
) -> Signatures:
    """Read the signatures of compounds with features; see :meth:`BulkFormer.train_compounds`.

    Raises
    ------
    TypeError, KeyError, ValueError
        If they have another form, lack a column, contain values that cannot be used, or share
        no gene with the model, or if too few compounds have features.
    """
    if isinstance(signatures, AnnData):
        table, signed = _table_of_anndata(signatures), False
    elif isinstance(signatures, pd.DataFrame):
        signed = "effect" not in signatures
        table = _table_of_frame(signatures, "direction" if signed else "effect")
    else:
        raise TypeError(
            f"signatures= is a {type(signatures).__name__}; expected a DataFrame with compound, "
            "gene and direction (or effect), or an AnnData of compounds by genes."
        )
    alignment = vocabulary.align(table.columns)
    order = np.argsort(alignment.positions)
    values = table.to_numpy(dtype=np.float32)[:, alignment.columns[order]]
    if np.isinf(values).any():
        raise ValueError("signatures= holds infinite values; drop them.")
    if signed:
        values = np.nan_to_num(values, nan=0.0)
    kept = ~np.isnan(values).all(axis=1) & (np.nan_to_num(values) != 0).any(axis=1)
    if not kept.any():
        raise ValueError("No signature has a change of one of the model's genes.")
    measured = ~np.isnan(values[kept]).all(axis=0)
    compound = table.index.get_level_values(0)
    has_features = np.ones(len(compound), dtype=bool)
    if features is not None:
        has_features = compound.isin(features.index)
    n_lost = compound[kept & ~has_features].nunique()
    kept &= has_features
    n_found = compound[kept].nunique()
    if n_found < MIN_COMPOUNDS:
        raise ValueError(
            f"Found {n_found} compounds with a signature"
            f"{'' if features is None else ' and features'}; at least {MIN_COMPOUNDS} are needed. "
            "Check that names agree (case does not matter)."
        )
    if n_lost:
        warn_user(f"{n_lost} of {n_lost + n_found} compounds have no features and are left out.")
    return Signatures(
        compound[kept].to_numpy(dtype=object),
        table.index.get_level_values(1)[kept].to_numpy(dtype=object),
        alignment.positions[order][measured].astype(np.int64),
        values[kept][:, measured],
        signed,
    )


def read_features(features: Any) -> pd.DataFrame:
    """Return a table of compounds (:func:`compound_key`) by features, as given or from targets.

    Raises
    ------
    TypeError, ValueError
        If it is neither a table of numbers nor of compounds and their target genes.
    """
    if not isinstance(features, pd.DataFrame):
        raise TypeError(
            f"features= is a {type(features).__name__}; expected a DataFrame, compounds by "
            "features, or with the columns compound and gene (such as "
            "cfm.datasets.drug_targets())."
        )
    if {"compound", "gene"} <= set(features.columns):
        table = pd.crosstab(features["compound"].map(compound_key), features["gene"])
        table = (table > 0).astype(np.float32)
        # Unit length: many targets do not make a compound stronger.
        return table.div(np.sqrt(table.sum(axis=1)), axis=0)
    table = features.set_axis([compound_key(c) for c in features.index], axis=0)
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()].unique()[:5].tolist()
        raise ValueError(f"features= has more than one row for {twice} (case does not matter).")
    try:
        table = table.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"features= holds something else than numbers ({error}).") from error
    if not np.isfinite(table.to_numpy()).all() or not table.shape[1]:
        raise ValueError("features= holds NaN or infinite values, or no column.")
    return table.set_axis([str(c) for c in table.columns], axis=1)


def _table_of_frame(table: pd.DataFrame, column: str) -> pd.DataFrame:
    missing = [c for c in ("compound", "gene", column) if c not in table]
    if missing:
        raise KeyError(
            f"signatures= has the columns {table.columns.tolist()}; it lacks {missing}: expected "
            "compound, gene, and direction (1 or −1) or effect."
        )
    values = pd.to_numeric(table[column], errors="coerce")
    if values.isna().any():
        raise ValueError(f"signatures= holds {int(values.isna().sum())} {column}s of no number.")
    if column == "direction" and not values.isin([-1, 0, 1]).all():
        raise ValueError(
            "signatures= holds directions other than −1, 0 and 1; call the column 'effect' if "
            "these are sizes."
        )
    sample = table["sample"].astype(str) if "sample" in table else ""
    tidy = pd.DataFrame(
        {
            "compound": table["compound"].map(compound_key),
            "sample": sample,
            "signature": table["signature"].astype(str) if "signature" in table else "",
            "gene": table["gene"].astype(str),
            "value": values.astype(np.float32),
        }
    )
    if tidy.empty:
        raise ValueError("signatures= has no row.")
    return tidy.pivot_table(
        index=["compound", "sample", "signature"], columns="gene", values="value"
    )


def _table_of_anndata(adata: AnnData) -> pd.DataFrame:
    blocks = row_blocks(get_matrix(adata))
    values = np.concatenate([to_dense(block, np.float32) for _, block in blocks])
    names = adata.obs.get("compound", adata.obs_names)
    sample = adata.obs["sample"].astype(str) if "sample" in adata.obs else [""] * adata.n_obs
    index = pd.MultiIndex.from_arrays([[compound_key(n) for n in names], list(sample)])
    return pd.DataFrame(values, index=index, columns=adata.var_names.astype(str))


def baseline_profiles(
    expression: Tensor, names: pd.Index, signatures: Signatures
) -> tuple[Tensor, np.ndarray]:
    """Return the baseline profiles of signatures.

    Parameters
    ----------
    expression
        ``(n, n_genes)`` log TPM of untreated samples; −10 = missing.
    names
        Names of these samples.
    signatures
        Signatures; those without a ``sample`` have the mean of all as baseline.

    Returns
    -------
    ``(b, n_genes)`` profiles, and ``(n,)`` int64 the profile of each signature.

    Raises
    ------
    KeyError
        If a signature names a sample that is not there.
    """
    wanted = sorted(set(signatures.sample))
    unknown = [s for s in wanted if s and s not in names]
    if unknown:
        raise KeyError(f"baseline has no samples {unknown[:5]}; its obs_names name them.")
    observed = expression != MISSING
    mean = torch.where(observed, expression, 0.0).sum(0) / observed.sum(0).clamp(min=1)
    mean = torch.where(observed.any(0), mean, torch.full_like(mean, MISSING))
    profiles = [mean if not s else expression[names.get_loc(s)] for s in wanted]
    number = np.array([wanted.index(s) for s in signatures.sample], dtype=np.int64)
    return torch.stack(profiles), number


class CompoundHead(nn.Module):
    r"""Change of expression by a compound, around the mean of the training compounds.

    .. math:: \hat y_{cg} = m_g + \lambda \, \frac{1}{\sqrt{r}} \, (u(h_g) + w_g)^\top v(f_c)

    with :math:`m_g` the mean change of gene :math:`g`, :math:`h_g` its embedding in the baseline
    sample, :math:`f_c` the compound's features, :math:`u` and :math:`v` networks with one hidden
    layer, :math:`w_g` factors of the gene (at first the principal directions of the signatures),
    :math:`r` their number and :math:`\lambda` a shrinkage fitted to compounds held out of training.
    :math:`v` starts as 0, so an untrained head predicts the mean. Train it with :meth:`fit`.

    Parameters
    ----------
    n_genes
        Genes that the signatures measure.
    dim
        Width of gene embeddings, ``dim + 3`` of the module.
    compounds
        Names of the compounds with features, or with an embedding.
    feature_names
        Names of the features; empty where every compound has a learned embedding instead.
    rank, hidden
        Number of factors and width of the networks.
    dropout
        Of the compound's network.
    signed
        Whether the signatures were directions, not sizes.
    n_embedding
        Width of the learned embedding.
    """

    genes: Tensor
    mean: Tensor
    features: Tensor
    shrinkage: Tensor

    def __init__(
        self,
        n_genes: int,
        dim: int,
        compounds: Sequence[str],
        feature_names: Sequence[str],
        *,
        rank: int = 32,
        hidden: int = 64,
        dropout: float = 0.3,
        signed: bool = True,
        n_embedding: int = 16,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "n_genes": n_genes,
            "dim": dim,
            "compounds": list(compounds),
            "feature_names": list(feature_names),
            "rank": check_whole("rank", rank),
            "hidden": check_whole("hidden", hidden),
            "dropout": check_number("dropout", dropout, 0, 1),
            "signed": check_flag("signed", signed),
            "n_embedding": check_whole("n_embedding", n_embedding),
        }
        self.rank = rank
        width = len(feature_names) or n_embedding
        table = torch.zeros(len(compounds), width)
        if feature_names:
            self.embedding = None
            self.register_buffer("features", table)
        else:
            self.embedding = nn.Embedding(len(compounds), width)
        self.of_gene = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, rank)
        )
        self.of_compound = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, rank)
        )
        for parameter in cast("nn.Linear", self.of_compound[-1]).parameters():
            nn.init.zeros_(parameter)
        self.gene_factors = nn.Parameter(torch.zeros(n_genes, rank))
        self.register_buffer("genes", torch.arange(n_genes))
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("shrinkage", torch.ones(()))

    @property
    def compounds(self) -> list[str]:
        """Names of the compounds with features or with an embedding."""
        return list(self.settings["compounds"])

    @classmethod
    def of_signatures(
        cls, signatures: Signatures, features: pd.DataFrame | None, dim: int, rank: int
    ) -> CompoundHead:
        """Return an untrained head for the genes of signatures.

        Parameters
        ----------
        signatures
            Signatures to train on.
        features
            Compounds by features; all of them can be predicted. Without it an embedding is learned
            for each compound with a signature.
        dim, rank
            As of the class.
        """
        if features is None:
            names, columns = sorted(set(signatures.compound)), []
        else:
            names, columns = features.index.tolist(), features.columns.tolist()
        head = cls(
            len(signatures.positions), dim, names, columns, rank=rank, signed=signatures.signed
        )
        head.genes.copy_(torch.from_numpy(signatures.positions))
        if features is not None:
            head.features.copy_(torch.from_numpy(features.to_numpy(np.float32, copy=True)))
        return head

    @torch.no_grad()
    def _start_from(self, mean: Tensor, deviations: Tensor) -> None:
        """Set the mean, and the gene factors to the principal directions of the deviations.

        ``deviations`` are ``(signatures, n_genes)``, 0 where not known.
        """
        self.mean.copy_(mean)
        rank = min(self.rank, *deviations.shape)
        # Exact and reproducible, unlike a randomised decomposition; over signatures, not genes.
        value, vector = torch.linalg.eigh((deviations @ deviations.T).double())
        kept = value[-rank:].clamp(min=1e-12).sqrt()
        direction = (deviations.T.double() @ vector[:, -rank:]) / kept
        self.gene_factors.zero_()
        self.gene_factors[:, :rank] = (direction * len(mean) ** 0.5).float()

    def describe(self, number: Tensor) -> Tensor:
        """Return the features, or embeddings, of compounds by their number."""
        return self.features[number] if self.embedding is None else self.embedding(number)

    def describe_named(self, compound: str, features: pd.Series | None = None) -> Tensor:
        """Return the features, or the embedding, of one compound, ``(1, n_features)``.

        Parameters
        ----------
        compound
            Its name.
        features
            Its features, instead of those of that name; 0 where not given.

        Raises
        ------
        KeyError
            If there is no compound or feature of that name.
        """
        device = self.mean.device
        if features is None:
            known = self.compounds
            if compound_key(compound) not in known:
                raise KeyError(
                    f"The model was not trained on {compound!r}, but on {len(known)} compounds "
                    f"such as {', '.join(known[:3])} (model.compounds)."
                    + (" Pass features= of it." if self.embedding is None else "")
                )
            return self.describe(torch.tensor([known.index(compound_key(compound))], device=device))
        names = self.settings["feature_names"]
        given = pd.Series(features, dtype=np.float32)
        unknown = [str(n) for n in given.index if str(n) not in names]
        if unknown or not len(given):
            raise KeyError(
                f"The model has no compound features {unknown[:5]}; expected {names[:5]} …"
            )
        row = given.set_axis([str(n) for n in given.index]).reindex(names, fill_value=0.0)
        return torch.from_numpy(row.to_numpy(np.float32, copy=True)[None]).to(device)

    def deviation(self, embedded: Tensor, described: Tensor) -> Tensor:
        """Return the difference of the change from the mean, before shrinkage.

        Parameters
        ----------
        embedded
            ``(b, n_genes, dim)`` or ``(n_genes, dim)`` embeddings of the head's genes.
        described
            ``(b, n_features)``.

        Returns
        -------
        ``(b, n_genes)``.
        """
        genes = self.of_gene(embedded) + self.gene_factors  # (b, g, r) or (g, r)
        compound = self.of_compound(described) / self.rank**0.5  # (b, r)
        return (genes @ compound.unsqueeze(-1)).squeeze(-1)

    def forward(self, embedded: Tensor, described: Tensor) -> Tensor:
        """Return the change of each gene, ``(b, n_genes)``; as :meth:`deviation`."""
        return self.mean + self.shrinkage * self.deviation(embedded, described)

    def fit(
        self,
        embedded: Tensor,
        sample: np.ndarray,
        signatures: Signatures,
        *,
        validation_share: float,
        n_steps: int,
        batch_size: int,
        lr: float,
        weight_decay: float,
        unlisted_weight: float,
        seed: int,
    ) -> dict[str, float]:
        """Train the head, then fit the shrinkage, then set the mean to that of all signatures.

        Parameters
        ----------
        embedded
            ``(samples, g, dim)`` embeddings of the signatures' genes in the baseline samples.
        sample
            ``(n,)`` int64, number of each signature's baseline sample.
        signatures
            Signatures of this head's genes and compounds.
        validation_share
            Share of the compounds that is held out; none without features of compounds.
        n_steps, batch_size, lr, weight_decay
            Of AdamW.
        unlisted_weight
            Weight of a 0 in directions; the weight of all other known values is 1.
        seed
            Of the held-out compounds and of the order.

        Returns
        -------
        ``shrinkage``, and if compounds were held out ``validation_correlation`` and
        ``validation_centred_correlation``: means over them of Pearson's r between signature and
        prediction, and of the same after subtraction of the mean of the training compounds.
        """
        names = pd.Index(signatures.compound)
        compound = pd.Index(self.compounds).get_indexer(names).astype(np.int64)
        held_out = np.zeros(len(compound), dtype=bool)
        if self.embedding is None:
            held_out = split_compounds(signatures.compound, validation_share, seed)
        values = torch.from_numpy(np.nan_to_num(signatures.values)).to(embedded.device)
        weight = torch.from_numpy((~np.isnan(signatures.values)).astype(np.float32))
        weight = weight.to(embedded.device)
        if signatures.signed:
            weight = torch.where(values != 0, weight, weight * unlisted_weight)
        train = np.flatnonzero(~held_out)
        mean = _mean(weight[train], values[train])
        self._start_from(mean, torch.where(weight[train] > 0, values[train] - mean, 0.0))
        networks = [p for p in self.parameters() if p is not self.gene_factors]
        optimizer = torch.optim.AdamW(
            [
                {"params": networks, "lr": lr, "weight_decay": weight_decay},
                {"params": [self.gene_factors], "lr": lr * _FACTOR_RATE, "weight_decay": 0.0},
            ]
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / n_steps)
        rng = np.random.default_rng(seed)
        self.train()
        for _ in track(
            range(n_steps),
            description="Training on compounds",
            style="tqdm",
            disable=settings.verbosity > logging.INFO,
        ):
            # A batch has one baseline sample, so that its genes are projected once.
            of_sample = train[sample[train] == sample[rng.choice(train)]]
            rows = rng.choice(of_sample, min(batch_size, len(of_sample)), replace=False)
            described = self.describe(torch.from_numpy(compound[rows]).to(embedded.device))
            made = self(embedded[sample[rows[0]]], described)
            loss = (weight[rows] * (made - values[rows]).square()).sum()
            loss = loss / weight[rows].sum().clamp(min=1e-9)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.eval()
        scores = self._shrink(embedded, values, weight, sample, compound, np.flatnonzero(held_out))
        # After validation, the held-out compounds join the mean.
        self.mean.copy_(_mean(weight, values))
        return scores

    @torch.inference_mode()
    def _shrink(
        self,
        embedded: Tensor,
        values: Tensor,
        weight: Tensor,
        sample: np.ndarray,
        compound: np.ndarray,
        rows: np.ndarray,
    ) -> dict[str, float]:
        """Fit the shrinkage by least squares on held-out signatures, between 0 and 1.

        A standard error over signatures is subtracted, against gains by chance.
        """
        if not len(rows):
            return {"shrinkage": 1.0}
        across, within = [], []
        whole, centred = [], []
        for row in rows:
            described = self.describe(torch.tensor([compound[row]], device=embedded.device))
            deviation = self.deviation(embedded[sample[row]], described)[0]
            left = values[row] - self.mean
            across.append(float((weight[row] * deviation * left).sum()))
            within.append(float((weight[row] * deviation.square()).sum()))
            known = weight[row] > 0
            whole.append((values[row][known], self.mean[known], deviation[known]))
            centred.append(_correlation(left[known], deviation[known]))
        lower = np.mean(across) - np.std(across, ddof=1) / np.sqrt(len(rows))
        shrinkage = float(np.clip(lower / max(np.mean(within), 1e-12), 0.0, 1.0))
        self.shrinkage.fill_(shrinkage)
        plain = [_correlation(y, mean + shrinkage * d) for y, mean, d in whole]
        return {
            "shrinkage": shrinkage,
            "validation_correlation": float(np.mean(plain)),
            "validation_centred_correlation": float(np.mean(centred)),
        }


def split_compounds(names: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the held-out signatures, ``(n,)`` bool: all of a compound or none."""
    unique = sorted(set(names))
    n = round(share * len(unique))
    if n < MIN_HELD_OUT or len(unique) - n < MIN_HELD_OUT:
        return np.zeros(len(names), dtype=bool)
    return np.isin(names, np.random.default_rng(seed).permutation(unique)[:n])


def _mean(weight: Tensor, values: Tensor) -> Tensor:
    """Return the weighted mean of each column."""
    return (weight * values).sum(0) / weight.sum(0).clamp(min=1e-9)


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    length = float(x.norm() * y.norm())
    return float(x @ y) / length if length > 1e-12 else 0.0
