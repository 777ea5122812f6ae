"""A training in two processes of which one is killed: a script for a test.

``python -m tests._killed_process NUMBER`` kills process ``NUMBER`` in its third step.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import lightning.pytorch as pl

from tests._two_processes import bulkformer, settings


class Kill(pl.Callback):
    """Ends this process without a word."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 2 and trainer.global_rank == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    bulkformer(**settings(2), callbacks=[Kill()])
