"""BulkFormer: bulk expression of all genes, with a co-expression graph."""

from cfm.models.bulkformer._model import BulkFormer
from cfm.models.bulkformer._module import BulkFormerModule
from cfm.models.bulkformer._sizes import SIZES, BulkFormerSize

__all__ = ["SIZES", "BulkFormer", "BulkFormerModule", "BulkFormerSize"]
