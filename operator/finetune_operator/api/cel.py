"""Rules of a schema (x-kubernetes-validations), decided as the API server decides them for a new object.

A rule is an expression in CEL. Three operators aside, what rules use of CEL is Python's own grammar: Python parses it,
and `_Evaluation` gives it CEL's meaning. A rule that uses more is a `NotImplementedError`, which a test would show.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.schema import Finding, Path, Schema, regular_expression, without_nulls


@dataclass(frozen=True)
class Verdict:
    """What the rules say."""

    broken: tuple[Finding, ...]
    undecided: tuple[Finding, ...]
    """Rules that stumbled over a value of a wrong type; the API server refuses an object for them too."""


class _EvaluationError(Exception):
    """A rule met a value that it cannot work on."""


class _Fraction:
    """A float where a whole number belongs: the schema takes 1.0, a rule that looks at it does not."""


def check_rules(schema: Schema, value: Any) -> Verdict:
    """Decide all rules below a schema; those about the change of an object (oldSelf) are left out."""
    broken, undecided = [], []
    for path, rule, self in _rules(schema, without_nulls(schema, value, _leaf), ()):
        tree = parse(rule["rule"])
        where = (*path, *_subject(tree))
        try:
            if _Evaluation({"self": self}).value(tree) is not True:
                broken.append(Finding(where, rule["message"]))
        except _EvaluationError as problem:
            undecided.append(Finding(where, f"{problem}, and so it is unknown whether: {rule['message']}"))
    return Verdict(tuple(broken), tuple(undecided))


def _rules(schema: Schema, value: Any, path: Path) -> Iterator[tuple[Path, Mapping[str, str], Any]]:
    """Every rule with the value that it is about."""
    if value is None:
        return
    yield from ((path, rule, value) for rule in schema.get("x-kubernetes-validations", ()) if "oldSelf" not in rule["rule"])
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rules(schema.get("items", {}), item, (*path, index))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _rules(_inner(schema, name), item, (*path, name))


def _inner(schema: Schema, name: str) -> Schema:
    inner: Schema = schema.get("properties", {}).get(name) or schema.get("additionalProperties") or {}
    return inner


def _leaf(schema: Schema, value: Any) -> Any:
    return _Fraction() if isinstance(value, float) and schema.get("type") == "integer" else value


_SPELLING = {"&&": " and ", "||": " or ", "!": "~"}  # as `!`, `~` binds closer than comparisons, and `not` does not


@functools.cache
def parse(rule: str) -> ast.expr:
    """The syntax tree of a rule.

    Raises:
        NotImplementedError: it is not in the part of CEL that is known here.
    """
    text = re.sub(r"'(?:[^'\\]|\\.)*'|&&|\|\||!(?!=)", lambda found: _SPELLING.get(found[0], found[0]), rule)
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise NotImplementedError(f"this part of CEL is not known here: {rule}") from None
    if unknown := [node for node in ast.walk(tree) if not _is_known(node)]:
        raise NotImplementedError(f"this part of CEL is not known here: {unknown[0]} in {rule}")
    return tree


def _is_known(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        known = _METHODS.keys() | _MACROS if isinstance(node.func, ast.Attribute) else _FUNCTIONS
        return getattr(node.func, "attr", getattr(node.func, "id", "")) in known
    return len(node.ops) == 1 if isinstance(node, ast.Compare) else isinstance(node, _HOLDERS + _OPERATORS)


@functools.cache
def _subject(tree: ast.expr) -> Path:
    """What a rule is about: the common part of all that it looks at, as ``spec.output`` for has(self.spec.output)."""
    paths = sorted(_references(tree)) or [()]
    pairs = zip(paths[0], paths[-1], strict=False)
    length = next((index for index, (first, last) in enumerate(pairs) if first != last), min(len(paths[0]), len(paths[-1])))
    return paths[0][:length]


def _references(node: ast.AST) -> Iterator[tuple[str, ...]]:
    keys: list[str] = []
    inner = node
    while isinstance(inner, ast.Attribute):
        keys.insert(0, inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name):
        yield from [tuple(keys)] if inner.id == "self" else []
        return
    method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    for child in ast.iter_child_nodes(node):
        yield from _references(child.value if method and child is node.func else child)  # type: ignore[attr-defined]


def _lower(text: str) -> str:
    return text.translate(str.maketrans(string.ascii_uppercase, string.ascii_lowercase))


def _upper(text: str) -> str:
    return text.translate(str.maketrans(string.ascii_lowercase, string.ascii_uppercase))


_METHODS: dict[str, Callable[..., Any]] = {
    "contains": operator.contains,
    "endsWith": str.endswith,
    "lowerAscii": _lower,
    "matches": lambda text, pattern: regular_expression(pattern).search(text) is not None,
    "size": len,
    "split": str.split,
    "startsWith": str.startswith,
    "upperAscii": _upper,
}

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, holder: item in holder,
}


_FUNCTIONS = {"has", "size"}
_MACROS = {"all", "exists"}
_HOLDERS: tuple[type[ast.AST], ...] = (ast.Attribute, ast.BoolOp, ast.Constant, ast.List, ast.Name, ast.UnaryOp)
_OPERATORS: tuple[type[ast.AST], ...] = (ast.boolop, ast.expr_context, ast.Invert, ast.USub, *_COMPARISONS)


class _Evaluation:
    """One rule with the values of its names."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = {"true": True, "false": False, "null": None, **names}

    def value(self, node: ast.expr) -> Any:
        """The value of an expression."""
        try:
            value = getattr(self, f"_{type(node).__name__.lower()}")(node)
        except (TypeError, AttributeError) as error:
            raise _EvaluationError("a value has a wrong type") from error
        if isinstance(value, _Fraction):
            raise _EvaluationError("a whole number is written with a decimal point")
        return value

    def _truth(self, node: ast.expr) -> bool:
        value = self.value(node)
        if not isinstance(value, bool):
            raise _EvaluationError("a value has a wrong type")
        return value

    def _boolop(self, node: ast.BoolOp) -> bool:
        return self._any(node.values, self._truth, wanted=isinstance(node.op, ast.Or))

    @staticmethod
    def _any(items: Any, judge: Callable[[Any], bool], *, wanted: bool) -> bool:
        """`wanted` if one item is judged so, whatever happens with the others; else the opposite, or an error of them."""
        problem = None
        for item in items:
            try:
                if judge(item) is wanted:
                    return wanted
            except _EvaluationError as error:
                problem = error
        if problem:
            raise problem
        return not wanted

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        return not self._truth(node.operand) if isinstance(node.op, ast.Invert) else -self.value(node.operand)

    def _compare(self, node: ast.Compare) -> Any:
        return _COMPARISONS[type(node.ops[0])](self.value(node.left), self.value(node.comparators[0]))

    @staticmethod
    def _constant(node: ast.Constant) -> Any:
        return node.value

    def _list(self, node: ast.List) -> list[Any]:
        return [self.value(item) for item in node.elts]

    def _name(self, node: ast.Name) -> Any:
        if node.id not in self._names:
            raise NotImplementedError(f"this part of CEL is not known here: {node.id}")
        return self._names[node.id]

    def _attribute(self, node: ast.Attribute) -> Any:
        holder = self._object(node.value)
        if node.attr not in holder:
            raise _EvaluationError(f"{node.attr} is missing")
        return holder[node.attr]

    def _object(self, node: ast.expr) -> dict[str, Any]:
        holder = self.value(node)
        if not isinstance(holder, dict):
            raise _EvaluationError("a value has a wrong type")
        return holder

    def _call(self, node: ast.Call) -> Any:
        match node.func:
            case ast.Name(id="has") if isinstance(field := node.args[0], ast.Attribute):
                return field.attr in self._object(field.value) and self.value(field) is not None
            case ast.Name(id="size"):
                return len(self.value(node.args[0]))
            case ast.Attribute(value=items, attr="all" | "exists" as name):
                variable, condition = ast.unparse(node.args[0]), node.args[1]
                return self._any(self.value(items), lambda item: self._holds(condition, variable, item), wanted=name == "exists")
            case ast.Attribute(value=target, attr=name) if name in _METHODS:
                return _METHODS[name](self.value(target), *map(self.value, node.args))
        raise _unknown(node)

    def _holds(self, condition: ast.expr, variable: str, item: Any) -> bool:
        return _Evaluation({**self._names, variable: item})._truth(condition)  # noqa: SLF001 - its own kind


def _unknown(node: ast.expr) -> NotImplementedError:
    return NotImplementedError(f"this part of CEL is not known here: {ast.unparse(node)}")
