"""BulkFormer: bulk expression of all genes, with a co-expression graph."""

from cfm.models.bulkformer._factor_model import LocalFactorModel
from cfm.models.bulkformer._latest import SIZES, BulkFormerLatestModule, BulkFormerLatestSize
from cfm.models.bulkformer._model import BulkFormer
from cfm.models.bulkformer._module import BulkFormerModule, BulkFormerSize
from cfm.models.bulkformer._training import BulkFormerRecipe

__all__ = [
    "SIZES",
    "BulkFormer",
    "BulkFormerLatestModule",
    "BulkFormerLatestSize",
    "BulkFormerModule",
    "BulkFormerRecipe",
    "BulkFormerSize",
    "LocalFactorModel",
]
