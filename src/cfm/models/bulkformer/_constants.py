"""What the tensor side and the AnnData side of BulkFormer both know."""

from __future__ import annotations

import math

#: Expression of a gene that is not measured, or hidden.
MISSING = -10.0
#: What is appended to every gene's embedding: share of missing genes, mean of the observed
#: values, share of values that are not zero.
N_SUMMARY = 3
#: log1p of a million: no TPM is larger.
LARGEST_LOG_TPM = math.log1p(1e6)
