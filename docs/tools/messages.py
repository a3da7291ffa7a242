"""Renders the page of error messages from the places in the code that raise them: ``python docs/tools/messages.py FILE``.

A message stands there once, as it is raised; what is put into it is `…`. So none is missing on the page, and none is left over.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_client import errors as client_errors
from finetune_operator.api.reasons import ENDED, WAITING, Reason
from finetune_trainer import errors as trainer_errors

ROOT = Path(__file__).resolve().parents[2]
CLIENT, OPERATOR, TRAINER = (
    ROOT / "operator" / "finetune_client",
    ROOT / "operator" / "finetune_operator",
    ROOT / "trainer_image" / "finetune_trainer",
)

OPEN = "…"
"""Stands for what is put into a message."""

LEAST_WORDS = 3
"""Fewer words of its own, and nobody would find a message by them."""

HEAD = """<!-- Rendered by `make docs`; do not edit. -->

# Error messages

What is said, and what to do about it. Look for some words of the message, without names, paths and numbers: `…` stands for them.
What the API server refuses when a job is applied is listed with each field, in [FinetuneJob](finetunejob.md).
"""


@dataclass(frozen=True)
class Raised:
    """A message that is raised somewhere."""

    kind: str
    """Name of the exception's class, or of the reason."""
    text: str


def render() -> str:
    """The page."""
    lines = [HEAD, "## Of the command line\n", "| Message | What to do |", "|---|---|"]
    lines += [
        f"| {_cell(text)} | {_cell(hint)} |" for text, hint in sorted(_of_client().items(), key=lambda item: item[0].lower())
    ]
    lines += ["\n## Of a job and its run\n", "`status.message`, and what `finetune status` and a local run print."]
    found: dict[str, set[str]] = defaultdict(set)
    for item in (*_of_trainer(), *_of_operator()):
        found[item.kind].add(item.text)
    for reason, texts in sorted(found.items()):
        remedy = (WAITING | ENDED)[Reason(reason)].remedy
        lines.append(f"\n### {reason}\n\n{remedy or 'Nothing has to be done.'} [More about it](reasons.md#{reason.lower()}).\n")
        lines += [f"- {_escaped(text)}" for text in sorted(texts, key=str.lower)]
    return "\n".join(lines) + "\n"


def _of_client() -> dict[str, str]:
    """Messages, and what to do."""
    kinds = _subclasses(client_errors.ClientError)
    found: dict[str, str] = {}
    for call, constants in _calls(CLIENT, kinds):
        first = 1 if issubclass(kinds[_name(call)], client_errors.RefusedError) else 0
        texts = [_text(argument, constants) for argument in call.args[first : first + 2]]
        hints = [_text(word.value, constants) for word in call.keywords if word.arg == "hint"]
        if texts and _says_something(texts[0]):
            found[texts[0]] = found.get(texts[0]) or [*texts[1:], *hints, ""][0]
    return found


def _of_trainer() -> Iterator[Raised]:
    kinds = _subclasses(trainer_errors.TrainerError)
    for call, constants in _calls(TRAINER, kinds):
        listed = call.args[0] if call.args else None
        texts = listed.elts if isinstance(listed, ast.List) else call.args[:1]
        for text in (_text(item, constants) for item in texts):
            if _says_something(text):
                yield Raised(kinds[_name(call)].reason, text)


def _of_operator() -> Iterator[Raised]:
    for call, constants in _calls(OPERATOR, {"Problem": object}):
        match call.args:
            case [ast.Attribute(value=ast.Name(id="Reason"), attr=reason), text] if _says_something(_text(text, constants)):
                yield Raised(Reason[reason], _text(text, constants))


def _subclasses(kind: type) -> dict[str, type]:
    """A class and all below it, by name."""
    found = {kind.__name__: kind}
    for below in kind.__subclasses__():
        found |= _subclasses(below)
    return found


def _calls(folder: Path, names: dict[str, type]) -> Iterator[tuple[ast.Call, dict[str, str]]]:
    """Calls of these names in the modules of a folder, each with the texts that have a name there."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))]
    constants: dict[str, str] = {}
    for tree in trees:
        constants |= _named(tree.body, constants)
    for tree in trees:
        for part in ast.walk(tree):
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                inside = list(ast.walk(part))
                local = constants | _named(inside, constants)
                yield from ((node, local) for node in inside if isinstance(node, ast.Call) and _name(node) in names)


def _named(nodes: Iterable[ast.AST], constants: dict[str, str]) -> dict[str, str]:
    """Texts that are given a name; one that is given to several stands for none of them."""
    found: dict[str, str] = {}
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found[name] = OPEN if name in found else _text(value, constants)
    return found


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _text(node: ast.AST, constants: dict[str, str]) -> str:
    """A text as far as it stands in the code."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, constants) for part in parts).replace(OPEN * 2, OPEN)
        case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name):
            return constants.get(name, OPEN)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left, constants) + _text(right, constants)
        case ast.Call(func=ast.Name(id="look_at")):
            return client_errors.look_at("NAME")
    return OPEN


def _says_something(text: str) -> bool:
    return len(text.replace(OPEN, " ").split()) >= LEAST_WORDS


def _cell(text: str) -> str:
    return "" if text == OPEN else _escaped(text).replace("|", "\\|")


def _escaped(text: str) -> str:
    """A message on one line, whose signs Markdown does not read; its own code stays code."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
