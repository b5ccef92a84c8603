"""What pydantic found wrong, in words for the person who wrote the file, at its line."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from fieldbus.errors import Problem, closest
from fieldbus.gateway.config.source import Source

_WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_USUAL = {
    "float": "float32", "real": "float32", "single": "float32", "double": "float64", "lreal": "float64",
    "int": "int16", "short": "int16", "uint": "uint16", "word": "uint16", "dint": "int32", "long": "int32",
    "udint": "uint32", "dword": "uint32", "lint": "int64", "lword": "uint64", "boolean": "bool",
    "str": "string", "text": "string", "bcd": "bcd16",
}  # fmt: skip
"""What other programs call the types of registers."""
_NUMBER = re.compile(r"\s*[-+]?\d+([.,]\d+)?\s*")
_LONGEST_NUMBER = 20
_COMPARISONS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
_QUOTED = re.compile(r"'([^']*)'")


def problems_of(
    source: Source,
    prefix: Sequence[str | int],
    data: Any,
    model: type[BaseModel],
    error: ValidationError,
) -> list[Problem]:
    """Return the problems that a validation of the data at `prefix` found, one per place."""
    found: dict[tuple[str | int, ...], Problem] = {}
    for item in error.errors(include_url=False):
        kind, context = item["type"], item.get("ctx", {})
        # A validator of a whole section may say which of its keys it means.
        path = _path_in(data, (*item["loc"], *context.get("path", ())), is_missing=kind == "missing")
        whole = (*prefix, *path)
        given = item.get("input")
        at_key, hint = False, None
        if kind == "extra_forbidden":
            names = _fields_at(model, path[:-1])
            message = f"unknown key '{path[-1]}'"
            hint = closest(str(path[-1]), names) or (f"one of {', '.join(names)}" if names else None)
            if not prefix and len(path) == 1 and hint is not None and hint.startswith("one of"):
                hint += "; what begins with x- is yours"
            at_key = True
        elif kind == "missing":
            message = f"'{path[-1]}' is missing"
        elif kind == "literal_error":
            choices = _QUOTED.findall(context["expected"])
            message = f"{_shown(given)} is not one of {', '.join(choices)}" if len(choices) > 1 else (
                f"{_shown(given)} is not {context['expected']}")  # fmt: skip
            usual = _USUAL.get(str(given).lower())
            hint = f"did you mean '{usual}'?" if usual in choices else closest(str(given), choices)
        elif kind in _WORDS:
            message = f"{_shown(given)} is not {_WORDS[kind]}"
            if kind.startswith(("int_", "float_")) and _is_number(given):
                number = given.strip().replace(",", ".")
                hint = f"write {number}, without quotes" if number == given.strip() else f"write {number}"
        elif kind in _COMPARISONS:
            name, words = _COMPARISONS[kind]
            message = f"{_shown(given)} is not {words} {context[name]}"
        elif kind == "string_pattern_mismatch":
            message = f"{_shown(given)} has a character that a name cannot have"
            hint = "letters, digits, _ and -"
        else:
            message = item["msg"]
        earlier = found.get(whole)
        # The branches of a union each complain; the one that lists the choices helps most. Of a mapping,
        # the branch that is a mapping helps: the others only say that they are none.
        is_better = (
            (kind == "literal_error" and hint is not None)
            or kind == "float_type"
            or (isinstance(given, dict) and kind not in _WORDS)
        )
        if earlier is None or is_better:
            found[whole] = source.problem(whole, message, hint, at_key=at_key)
    # A union that failed at a deeper place needs no word at the place itself.
    return [
        problem
        for whole, problem in found.items()
        if not any(len(other) > len(whole) and other[: len(whole)] == whole for other in found)
    ]


def _is_number(given: object) -> bool:
    """Return whether a text is a number for people, and not too long to be shown."""
    return isinstance(given, str) and len(given) <= _LONGEST_NUMBER and _NUMBER.fullmatch(given) is not None


def _path_in(data: Any, location: Sequence[str | int], *, is_missing: bool) -> tuple[str | int, ...]:
    """Keep the steps of a pydantic location that are a path in the data, without names of union branches.

    The last step of a missing key is kept, although the data does not have it.
    """
    path: list[str | int] = []
    for index, step in enumerate(location):
        if isinstance(data, Mapping):
            if step in data:
                path.append(step)
                data = data[step]
            elif is_missing and index == len(location) - 1:
                path.append(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            path.append(step)
            data = data[step]
    return tuple(path)


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    annotation: Any = model
    for step in path:
        models = _models_in(annotation)
        if models and isinstance(step, str):
            by_name = {item.alias or name: item.annotation for name, item in models[0].model_fields.items()}
            annotation = by_name.get(step)
        else:
            annotation = _item_of(annotation)
    return [
        item.alias or name for found in _models_in(annotation) for name, item in found.model_fields.items()
    ]


def _item_of(annotation: Any) -> Any:
    """Return what the items of a list or a mapping are, which may be one branch of a union."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _item_of(typing.get_args(annotation)[0])
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((found for branch in arguments if (found := _item_of(branch)) is not None), None)
    return arguments[-1] if arguments else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [found for part in typing.get_args(annotation) for found in _models_in(part)]
    return []


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f"'{value[:60]}'"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)[:60]
