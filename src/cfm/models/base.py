"""Building blocks of models, for authors of new ones; the guide uses all of them."""

from cfm._arguments import Range, checks_arguments
from cfm.data._matrix import check_counts, get_matrix, read_rows, row_blocks, to_dense
from cfm.data._row_buffer import RowBuffer
from cfm.hub._checkpoint import sha256_of_file, validate_config
from cfm.models._base import PretrainedModel, check_column, load_weights
from cfm.models._load import Layout
from cfm.models._streams import Drawn, RowStream
from cfm.models._training import (
    Recipe,
    Training,
    TrainingPlan,
    TrainingRun,
    held_out_rows,
    root_weights,
)

__all__ = [
    "Drawn",
    "Layout",
    "PretrainedModel",
    "Range",
    "Recipe",
    "RowBuffer",
    "RowStream",
    "Training",
    "TrainingPlan",
    "TrainingRun",
    "check_column",
    "check_counts",
    "checks_arguments",
    "get_matrix",
    "held_out_rows",
    "load_weights",
    "read_rows",
    "root_weights",
    "row_blocks",
    "sha256_of_file",
    "to_dense",
    "validate_config",
]
