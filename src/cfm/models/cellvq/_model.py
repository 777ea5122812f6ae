"""CellVQ: the public class."""

from __future__ import annotations

from cfm.models.cellvq._perturb import Perturbable
from cfm.models.cellvq._properties import Predicting
from cfm.models.cellvq._train import Trainable


class CellVQ(Trainable, Predicting, Perturbable):
    """Model of single cells with a discrete code per cell.

    A cell is the sentence of the genes it expresses; what is not measured is missing, not zero. The
    encoder turns it into a cell embedding, and the quantiser gives it one of ``2 ** n_bits`` codes;
    codes with similar binary numbers need not be similar cells, codes with similar vectors are.
    Heads on the embedding answer for properties: cell type, tissue, disease, any label.

    Parameters
    ----------
    adata
        Cells by genes, registered with :meth:`setup_anndata`.
    vocabulary
        Genes that the model is to know; by default ``adata.var_names``.
    size
        ``"mini"``, ``"published"``, or a ``CellVQSize``.
    properties
        Classes of each property head by its name, that of the column of ``obs`` to learn from; by
        default the levels of the registered ``labels_keys``.
    seed
        Seed of the initial weights.
    **sizes
        Single numbers to change in the size: ``dim``, ``n_layers``, ``n_bits``, … (see
        :class:`cfm.models.cellvq.CellVQSize`).

    Notes
    -----
    The architecture of Nat Commun 2026, 17:4037 (514 million parameters in the published size, of
    which 371 million are the table of relations between genes). The weights of the losses and the
    schedule of the temperature were not published; those here are ours, see :meth:`train`.

    Examples
    --------
    >>> import cfm
    >>> model = cfm.models.CellVQ(vocabulary=["A", "B", "C"], n_layers=1)
    >>> model.module.codebook().shape
    torch.Size([256, 32])
    """
