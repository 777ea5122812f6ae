"""Validate the settings of a checkpoint against its weights, before memory is taken for them."""

from __future__ import annotations

from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized

#: What reading settings and making modules of them raises, depending on what is wrong.
_WRONG = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def validate_config(model: str, name: str, tensors: Sized) -> Iterator[None]:
    """Read settings, and make modules of them on the ``meta`` device: without memory.

    Fill the modules with :func:`cfm.models.base.load_weights`, which compares every shape with
    that of the stored tensor.

    Parameters
    ----------
    model, name
        Of the model and the checkpoint, for the error.
    tensors
        Those of the checkpoint. Modules with far more parameters are not made to their end: a
        layer costs time on ``meta``, too.

    Raises
    ------
    ValueError
        If settings are missing or of no use, or claim more layers than there are weights of.
    """
    thread, n_parameters = get_ident(), 0

    def count(*_: object) -> None:
        nonlocal n_parameters
        n_parameters += get_ident() == thread
        # some parameters are made twice
        if n_parameters > 2 * len(tensors) + 16:
            raise ValueError(f"more layers than the {len(tensors)} tensors are weights of")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    except _WRONG as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"The config.json or a text file of checkpoint {name!r} lacks or garbles a setting of "
            f"{model} ({said[:500]}). It may be damaged or from another version; download it again."
        ) from error
    finally:
        hook.remove()
