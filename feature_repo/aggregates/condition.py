"""A condition on the columns of an event, as text: ``type == "view" and value >= 10``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from feature_repo import columns as c
from feature_repo.units import MICROS

Columns = Mapping[str, Any]
"""Columns of an event by name; numbers are in millionths, what is missing is None."""

Predicate = Callable[[Columns], bool]

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, choices: value in choices,
    ast.NotIn: lambda value, choices: value not in choices,
}
_ORDERED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


class BadCondition(ValueError):
    """A condition cannot be read; the message says why."""


@cache
def predicate(text: str) -> Predicate:
    """Return the function that says whether an event fulfils a condition.

    A comparison with a missing value is false.

    Raises:
        BadCondition: the text is no condition.

    """
    return _compiled(_parsed(text))


def columns_of(text: str) -> dict[str, set[type]]:
    """Return the columns that a condition reads, each with the types it is compared with.

    Raises:
        BadCondition: the text is no condition.

    """
    read: dict[str, set[type]] = {}
    for node in ast.walk(_parsed(text)) if text else ():
        if isinstance(node, ast.Compare):
            name, _, value = _comparison(node)
            values = value if isinstance(value, tuple) else (value,)
            read.setdefault(name, set()).update(type(one) for one in values)
    return read


def _parsed(text: str) -> ast.expr:
    try:
        expression = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise BadCondition(f"{text!r} is not a condition such as 'value >= 10'") from None
    _compiled(expression)
    return expression


def _compiled(node: ast.expr) -> Predicate:
    if isinstance(node, ast.BoolOp):
        parts = [_compiled(value) for value in node.values]
        every = all if isinstance(node.op, ast.And) else any
        return lambda columns: every(part(columns) for part in parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        part = _compiled(node.operand)
        return lambda columns: not part(columns)
    if not isinstance(node, ast.Compare):
        raise BadCondition(
            f"'{ast.unparse(node)}' is not a comparison of a column with a value; "
            "'and', 'or' and 'not' join comparisons"
        )
    name, compare, value = _comparison(node)
    if _is_number(name, value):
        value = _in_units(value)

    def holds(columns: Columns) -> bool:
        given = columns.get(name)
        return given is not None and compare(given, value)

    return holds


def _comparison(node: ast.Compare) -> tuple[str, Callable[[Any, Any], bool], Any]:
    """Return the column, the operator and the constant of a comparison."""
    said = ast.unparse(node)
    if len(node.ops) != 1 or not isinstance(node.left, ast.Name):
        raise BadCondition(f"'{said}': a comparison is of one column, left, with a value, right")
    compare = _COMPARISONS.get(type(node.ops[0]))
    try:
        value = ast.literal_eval(node.comparators[0])
    except ValueError:
        raise BadCondition(f"'{said}': what a column is compared with is a constant") from None
    is_list = isinstance(node.ops[0], ast.In | ast.NotIn)
    if compare is None or is_list != isinstance(value, tuple | list | set):
        raise BadCondition(f"'{said}': compare by ==, !=, <, <=, >, >=, or 'in' a list of values")
    values = tuple(value) if is_list else (value,)
    if any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in values):
        raise BadCondition(f"'{said}': values are numbers or texts")
    if isinstance(node.ops[0], _ORDERED) and isinstance(value, str):
        raise BadCondition(f"'{said}': texts have no order")
    return node.left.id, compare, values if is_list else value


def _is_number(name: str, value: Any) -> bool:
    first = value[0] if isinstance(value, tuple) and value else value
    return name != c.DAY and isinstance(first, int | float)


def _in_units(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_in_units(one) for one in value)
    return round(value * MICROS)
