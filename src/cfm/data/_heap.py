"""Memory that is given back when it is freed."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

#: Of glibc's ``mallopt``: the size from which a block is mapped, and returned, on its own.
_MMAP_THRESHOLD = -3
_LARGE = 4 * 2**20


@cache
def return_large_blocks() -> bool:
    """Have the C library return large blocks to the system as soon as they are freed.

    By itself glibc keeps blocks of up to 32 MiB once some of that size were freed. Tensors of ever
    other sizes then break its heap into pieces that none fits, and a process that works in chunks
    takes twice the memory that it needs. The setting is of the whole process; whoever sets
    ``MALLOC_MMAP_THRESHOLD_`` is left alone.

    Returns
    -------
    Whether it was set.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    return bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE))
