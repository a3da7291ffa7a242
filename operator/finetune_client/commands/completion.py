"""``finetune completion``: the script that a shell loads; it asks this command again at each TAB what fits."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_client import grammar
from finetune_client.errors import ClientError

if TYPE_CHECKING:
    from finetune_client.client import FinetuneClient

ANSWER_SECONDS = 3.0
"""Nobody waits longer for a TAB."""

_BASH = """\
_finetune() {
    local IFS=$'\\n'
    COMPREPLY=($(finetune completion bash --words "${COMP_WORDS[@]:1:COMP_CWORD}" </dev/null 2>/dev/null))
    if [[ ${COMPREPLY[0]} == *: ]] && type compopt >/dev/null 2>&1; then compopt -o nospace 2>/dev/null; fi
}
complete -o default -F _finetune finetune
complete -o default -F _finetune kubectl-finetune
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
_FISH = """\
function __finetune_offers
    set -l typed (commandline -opc)
    set -l word (commandline -ct)
    set -g __finetune_offered (finetune completion fish --words $typed[2..] "$word" </dev/null 2>/dev/null)
    test -n "$__finetune_offered"
end
complete -c finetune -n __finetune_offers -f -a '$__finetune_offered'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH + _BASH, "fish": _FISH}
"""What offers nothing leaves the word to the shell, which completes files."""

_SAFE = re.compile(r"[\w./:=@-]+")
"""What a shell takes as one word: names come from the cluster."""
_BREAKS = {"=", ":"}
"""Words of their own in bash."""


def run(options: argparse.Namespace) -> int:
    """Print the script of a shell, or what fits at the end of the words that were typed."""
    if options.words is None:
        sys.stdout.write(SCRIPTS[options.shell])
        return 0
    word = options.words[-1] if options.words else ""
    fits = (offer for offer in _offers(options.words[:-1], word) if offer.startswith(word) and _SAFE.fullmatch(offer))
    sys.stdout.writelines(f"{offer}\n" for offer in sorted(set(fits)))
    return 0


def _offers(before: Sequence[str], word: str) -> Iterator[str]:
    """What may stand behind some words, where a word has been begun."""
    commands = _commands()
    if not before:
        yield from (*commands, "--help", "--version")
        return
    parser = commands.get(before[0])
    if parser is None or before[-1] == ":":
        return
    typed = _Typed(parser, [item for item in before[1:] if item not in _BREAKS])
    if typed.waiting is None and word.startswith("-"):
        yield from (name for action in typed.options for name in action.option_strings)
    elif (action := typed.waiting or typed.next_argument()) is not None:
        yield from action.choices or _values(action, typed)


def _commands() -> dict[str, argparse.ArgumentParser]:
    parser = grammar.build()
    action = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001 - there is no other way to read a grammar
    return dict(action.choices)


class _Typed:
    """What has been typed of a command so far."""

    def __init__(self, parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
        actions = parser._actions  # noqa: SLF001 - as above
        self.options = [action for action in actions if action.option_strings]
        self._positions = [action for action in actions if not action.option_strings]
        self.arguments: list[str] = []
        self.given: dict[str, str] = {}
        self.waiting: argparse.Action | None = None
        """The option whose value comes next."""
        by_name = {name: action for action in self.options for name in action.option_strings}
        for word in words:
            if self.waiting is not None:
                self.given[self.waiting.dest] = word
                self.waiting = None
            elif (action := by_name.get(word)) is not None:
                self.waiting = action if action.nargs != 0 else None
            elif not word.startswith("-"):
                self.arguments.append(word)

    def next_argument(self) -> argparse.Action | None:
        """The argument that comes next; one that takes several goes on."""
        several = next((action for action in self._positions if action.nargs in {"+", "*"}), None)
        rest = self._positions[len(self.arguments) :]
        return rest[0] if rest else several


def _values(action: argparse.Action, typed: _Typed) -> Iterator[str]:
    """Names of what there is in the cluster; nothing where files are meant, or nothing is known."""
    values = _OF_METAVAR.get(str(action.metavar)) or _OF_DEST.get(action.dest)
    if values is None:
        return
    with suppress(ClientError):
        yield from values(_Asked(typed))


@dataclass(frozen=True)
class _Asked:
    """What a value depends on."""

    typed: _Typed

    def client(self) -> FinetuneClient:
        """The cluster that the words name."""
        from finetune_client.client import FinetuneClient

        return FinetuneClient(self.typed.given.get("context"), self.typed.given.get("namespace"), timeout=ANSWER_SECONDS)


def _jobs(asked: _Asked) -> Iterator[str]:
    yield from (job.name for job in asked.client().list())


def _claims(asked: _Asked) -> Iterator[str]:
    from finetune_client.job import Job
    from finetune_client.kube.rest import part

    client = asked.client()
    items, _ = client.rest.items(f"/api/v1/namespaces/{part(client.namespace)}/persistentvolumeclaims")
    yield from (job.name for job in map(Job, items))


def _targets(asked: _Asked) -> Iterator[str]:
    yield from (f"{name}:" for name in _claims(asked))


def _namespaces(asked: _Asked) -> Iterator[str]:
    from finetune_client.job import Job

    items, _ = asked.client().rest.items("/api/v1/namespaces")
    yield from (job.name for job in map(Job, items))


def _contexts(_asked: _Asked) -> Iterator[str]:
    from finetune_client.kube.kubeconfig import contexts

    yield from contexts()


def _attempts(asked: _Asked) -> Iterator[str]:
    if asked.typed.arguments:
        last = asked.client().get(asked.typed.arguments[0]).number("status", "attempt")
        yield from map(str, range(1, min(int(last or 0), 100) + 1))


def _ranks(asked: _Asked) -> Iterator[str]:
    if asked.typed.arguments:
        job = asked.client().get(asked.typed.arguments[0])
        workers = job.number("spec", "config", "Training", "num_training_workers")
        yield from map(str, range(min(int(workers or 1), 100)))


_Values = Callable[[_Asked], Iterator[str]]
_OF_METAVAR: dict[str, _Values] = {
    "NAME|DIR": _jobs,
    "CLAIM:PATH": _targets,
    "NAMESPACE": _namespaces,
    "CONTEXT": _contexts,
    "NAME[/SUBPATH]": _claims,
}
_OF_DEST: dict[str, _Values] = {
    "job": _jobs,
    "jobs": _jobs,
    "files": _targets,
    "output_claim": _claims,
    "attempt": _attempts,
    "rank": _ranks,
}
