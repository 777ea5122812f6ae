"""Every public function checks its arguments at its beginning, by what its signature says."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, Optional, get_args, get_origin

import numpy as np
import pytest

import cfm

ROOMS = (cfm.pp, cfm.tl, cfm.pl, cfm.get, cfm.metrics, cfm.datasets)
#: What a function is called with: each check is the first thing that it does.
NOTHING = object()
#: Checked where they are used: by the runs in chunks, and by what a name means.
ELSEWHERE = {"num_nodes", "join"}
#: Text that stands for a path or a name in the same parameter.
_UNIONS = {"label", "contrast", "frozen_layers", "effect"}


def _functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for room in ROOMS:
        for name in room.__all__:
            if inspect.isfunction(function := getattr(room, name)):
                yield f"{room.__name__[4:]}.{name}", function
    for name in cfm.models.__all__:
        model = getattr(cfm.models, name)
        if not inspect.isclass(model) or not issubclass(model, cfm.models.PretrainedModel):
            continue
        for method in dir(model):
            found = inspect.getattr_static(model, method)
            function = getattr(found, "__func__", found)
            ours = inspect.isfunction(function) and function.__module__.startswith("cfm.")
            if ours and method[0] != "_":
                yield f"{name}.{method}", function


FUNCTIONS = dict(_functions())


def _annotation(function: Callable[..., Any], name: str) -> Any:
    """The annotation of a parameter as an object; as text where it is for type checks only."""
    text = str(inspect.signature(function).parameters[name].annotation)
    module = inspect.getmodule(inspect.unwrap(function))
    try:
        return eval(text, {"Literal": Literal, **vars(typing)}, vars(module))
    except (NameError, TypeError, SyntaxError):
        return text


def _parameters(kind: Callable[[Any], bool]) -> list[tuple[str, str]]:
    return [
        (name, parameter)
        for name, function in FUNCTIONS.items()
        for parameter in inspect.signature(function).parameters
        if parameter not in ELSEWHERE | _UNIONS and kind(_annotation(function, parameter))
    ]


def _is(wanted: type) -> Callable[[Any], bool]:
    return lambda annotation: annotation in (wanted, Optional[wanted])  # noqa: UP045


def _is_choice(annotation: Any) -> bool:
    parts = [p for p in get_args(annotation) if p is not type(None)]
    literal = get_origin(annotation) is Literal
    return literal or (len(parts) == 1 and get_origin(parts[0]) is Literal)


def _call(name: str, parameter: str, value: Any) -> None:
    """Call with a value of one parameter, and nothing that can be worked on."""
    function = FUNCTIONS[name]
    signature = inspect.signature(function)
    given = {
        p.name: 1 if p.annotation == "int" else NOTHING
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    } | {parameter: value}
    first = [
        given.pop(p.name)
        for p in signature.parameters.values()
        if p.kind is p.POSITIONAL_ONLY and p.name in given
    ]
    function(*first, **given)


def _refused(name: str, parameter: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{parameter}=.*; expected ") as caught:
        _call(name, parameter, value)
    assert type(caught.value) is ValueError


def _passes(name: str, parameter: str, value: Any) -> None:
    """The value itself is no reason for an error; what else is given is."""
    try:
        _call(name, parameter, value)
    except Exception as error:  # noqa: BLE001
        assert f"{parameter}=" not in str(error), error


@pytest.mark.parametrize(("name", "parameter"), _parameters(_is(bool)))
def test_flags_take_only_bools(name: str, parameter: str) -> None:
    for value in ("False", 0, NOTHING):
        _refused(name, parameter, value)
    _passes(name, parameter, np.False_)


@pytest.mark.parametrize(("name", "parameter"), _parameters(_is(int)))
def test_whole_numbers_take_no_bools_texts_and_fractions(name: str, parameter: str) -> None:
    for value in (True, "3", 1.5, np.nan, -5):
        _refused(name, parameter, value)
    if name.split(".")[0] != "datasets":  # which would be made
        _passes(name, parameter, np.int64(12))


@pytest.mark.parametrize(
    ("name", "parameter"), [case for case in _parameters(_is(int)) if case[1] == "seed"]
)
def test_seeds_are_what_all_libraries_take(name: str, parameter: str) -> None:
    for value in (-1, 2**32, 1.5, "0", True, NOTHING):
        _refused(name, parameter, value)


@pytest.mark.parametrize(("name", "parameter"), _parameters(_is(float)))
def test_numbers_are_finite(name: str, parameter: str) -> None:
    for value in (np.nan, np.inf, "0.5", True, NOTHING):
        _refused(name, parameter, value)
    _passes(name, parameter, np.float32(1.5 if parameter in ("multiplier", "max_fold") else 0.5))


@pytest.mark.parametrize(("name", "parameter"), _parameters(_is_choice))
def test_choices_are_named(name: str, parameter: str) -> None:
    for value in ("nonsense", 3, NOTHING):
        _refused(name, parameter, value)


def test_nothing_is_left_unchecked_because_its_annotation_is_for_type_checks_only() -> None:
    """An annotation that only type checkers can read may hide choices."""
    unread = {
        annotation
        for function in FUNCTIONS.values()
        for parameter in inspect.signature(function).parameters
        if isinstance(annotation := _annotation(function, parameter), str)
    }
    words = {word for text in unread for word in re.findall(r"\w+", text)}
    assert not words & {"Dequantise", "Distance", "Kind", "Method", "Mode", "Precision", "Reversal"}
    assert {text for text in unread if "Units" in text} <= {"Units | Mapping[str, Units]"}


def test_seeds_and_numbers_of_numpy_give_what_plain_ones_give() -> None:
    first = cfm.datasets.toy_donors(seed=np.int64(3), n_donors=np.int32(4), n_cells=np.int64(10))
    second = cfm.datasets.toy_donors(seed=3, n_donors=4, n_cells=10)
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    assert type(first.uns["params"]["seed"]) is int
