"""Methods of scvi-tools' base class that cannot work here: neither listed nor callable."""

from __future__ import annotations

from typing import Any, NoReturn

from scvi.model.base import BaseModelClass

#: They raise NotImplementedError, read scvi-tools' own files, train without data in memory, or
#: fail in one of the versions of scvi-tools that are tested.
NOT_OFFERED = (
    "convert_legacy_save",
    "differential_abundance",
    "get_normalized_expression",
    "get_normalized_function_name",
    "load_registry",
    "setup_annbatch",
    "update_setup_method_args",
    "view_registry",
    "view_setup_args",
    "view_setup_method_args",
)


class NotOffered:
    """An attribute that a class does not have, although a parent has it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(
            f"{owner.__name__!r} has no attribute {self._name!r}: scvi-tools' method of this name "
            "cannot work with this model."
        )


def list_offered(model: object) -> list[str]:
    """Return what ``dir`` lists of a model."""
    return sorted(set(object.__dir__(model)) - set(NOT_OFFERED))


class OfferedOnly(type(BaseModelClass)):  # type: ignore[misc]
    """Metaclass that takes what is :data:`NOT_OFFERED` away from a class."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        if not any(isinstance(base, OfferedOnly) for base in bases):
            for missing in NOT_OFFERED:
                setattr(cls, missing, NotOffered(missing))

    def __dir__(cls) -> list[str]:
        return sorted(set(super().__dir__()) - set(NOT_OFFERED))
