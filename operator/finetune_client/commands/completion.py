"""``finetune completion``: what makes a shell complete commands, options, values and names of jobs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from finetune_client import grammar

Commands = dict[str, argparse.ArgumentParser]

_BASH = """\
_finetune() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word"))
        return
    fi
    case "$command $before" in
{values}
    esac
    if [[ $word == -* ]]; then
        case "$command" in
{options}
        esac
        return
    fi
    case "$command" in
        {with_job}) COMPREPLY=($(compgen -W "$(finetune list -o name 2>/dev/null | sed 's|.*/||')" -- "$word"));;
        *) COMPREPLY=($(compgen -f -- "$word"));;
    esac
}}
complete -o filenames -F _finetune finetune
complete -o filenames -F _finetune kubectl-finetune
"""


def run(options: argparse.Namespace) -> int:
    """Print the script of a shell."""
    commands = _commands()
    if options.shell == "fish":
        sys.stdout.writelines(f"{line}\n" for line in _fish(commands))
        return 0
    if options.shell == "zsh":
        sys.stdout.write("autoload -U +X bashcompinit && bashcompinit\n")
    sys.stdout.write(_bash(commands))
    return 0


def _commands() -> Commands:
    parser = grammar.build()
    action = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001 - there is no other way to read a grammar
    return dict(action.choices)


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    yield from (action for action in parser._actions if action.option_strings)  # noqa: SLF001 - as above


def _takes_job(parser: argparse.ArgumentParser) -> bool:
    return any(action.metavar == "NAME" and not action.option_strings for action in parser._actions)  # noqa: SLF001 - as above


def _bash(commands: Commands) -> str:
    values, options = [], []
    for name, parser in commands.items():
        words = [word for action in _options(parser) for word in action.option_strings]
        options.append(f'            {name}) COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word"));;')
        for action in _options(parser):
            if action.choices:
                patterns = "|".join(f'"{name} {word}"' for word in action.option_strings)
                values.append(f'        {patterns}) COMPREPLY=($(compgen -W "{" ".join(action.choices)}" -- "$word")); return;;')
    values.append(f'        "completion completion") COMPREPLY=($(compgen -W "{" ".join(grammar.SHELLS)}" -- "$word")); return;;')
    with_job = "|".join(name for name, parser in commands.items() if _takes_job(parser))
    return _BASH.format(commands=" ".join(commands), values="\n".join(values), options="\n".join(options), with_job=with_job)


def _fish(commands: Commands) -> Iterator[str]:
    names = " ".join(commands)
    yield f"complete -c finetune -f -n 'not __fish_seen_subcommand_from {names}' -a '{names}'"
    yield f"complete -c finetune -f -n '__fish_seen_subcommand_from completion' -a '{' '.join(grammar.SHELLS)}'"
    for name, parser in commands.items():
        seen = f"complete -c finetune -n '__fish_seen_subcommand_from {name}'"
        if _takes_job(parser):
            yield f'{seen} -f -a \'(finetune list -o name 2>/dev/null | string replace -r ".*/" "")\''
        for action in _options(parser):
            words = [f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}" for word in action.option_strings]
            text = (action.help or "").replace("'", "").replace("%%", "%")
            values = f" -x -a '{' '.join(action.choices)}'" if action.choices else "" if action.nargs == 0 else " -r"
            yield f"{seen} {' '.join(words)}{values} -d '{text}'"
