"""Files with the state of a training: written whole or not at all, the last two of them kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from cfm.data._warn import warn_user
from cfm.hub._torch import read_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEPT = 2
_PATTERN = "step-*.ckpt"
#: What a state has: of Lightning, and under "cfm" of the training plan and of its checkpoints.
_PARTS = {"cfm", "global_step", "loops", "lr_schedulers", "optimizer_states", "state_dict"}
_OWN_PARTS = {"curves", "finished", "plan", "random", "sums"}


class CheckpointFiles(CheckpointIO):
    """Writes and reads the states of a training in a folder.

    A state is written under another name, brought to disk, and then takes its own, so that a
    state with its name is whole whenever the machine stops. A full disk costs a warning, and the
    states that are there stay.

    Parameters
    ----------
    folder
        Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Return the file of the state after an optimiser step."""
        return self.folder / f"step-{step:09d}.ckpt"

    def found(self) -> list[Path]:
        """Return the states that are there, the newest first."""
        return sorted(self.folder.glob(_PATTERN), reverse=True)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a state, and remove all but the newest two.

        Warns
        -----
        UserWarning
            If it could not be written.
        """
        path = Path(path)
        for draft in self.folder.glob(f".{_PATTERN}.*.partial"):  # of a run that was killed
            draft.unlink(missing_ok=True)
        try:
            write_whole(path, lambda file: _save(checkpoint, file))
        except OSError as error:
            kept = ", ".join(p.name for p in self.found()) or "none"
            warn_user(
                f"The state of the training could not be written to {path} ({error}); training "
                f"goes on. States that are there: {kept}. Make room, or a kill will cost what was "
                "learned since."
            )
            return
        for old in self.found()[_KEPT:]:
            old.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a state, or the one before it if it is damaged; never runs code that is in it.

        Raises
        ------
        ValueError
            If all are damaged.

        Warns
        -----
        UserWarning
            If one is damaged.
        """
        path = Path(path)
        for candidate in [path, *(p for p in self.found() if p.name < path.name)]:
            try:
                found: dict[str, Any] = read_plain(candidate)
            except (ValueError, OSError) as error:
                said = (str(error).splitlines() or [type(error).__name__])[0]
                warn_user(f"{candidate.name} cannot be read ({said}).")
                continue
            if _is_state(found):
                return found
            warn_user(f"{candidate} cannot be read as a state of a training: parts are missing.")
        raise ValueError(
            f"No state of the training in {self.folder} can be read; delete the folder to begin "
            "anew."
        )

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a state."""
        Path(path).unlink(missing_ok=True)


def _is_state(found: object) -> bool:
    return (
        isinstance(found, dict)
        and found.keys() >= _PARTS
        and isinstance(found["cfm"], dict)
        and found["cfm"].keys() >= _OWN_PARTS
    )


def write_whole(path: Path, write: Any) -> None:
    """Write a file so that it is there whole, or not: ``write`` is given the open file.

    Raises
    ------
    OSError
        If it could not be written; what was there before is there still.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:  # where it took its name there is nothing left
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _save(checkpoint: Mapping[str, Any], file: Any) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # what torch makes of a full disk
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
