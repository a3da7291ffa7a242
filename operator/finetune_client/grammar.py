"""The grammar of the command line. Nothing else is imported for it: each command loads its module when it is called."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from finetune_client.errors import one_line
from finetune_client.values import claim, count, number, port, seconds
from finetune_trainer.errors import USAGE_EXIT_CODE

DEFAULT_OUTPUT_SIZE = "10Gi"
"""Holds any adapter and the full weights of small models; a claim can grow later, where its storage class allows it."""

Run = Callable[[argparse.Namespace], int]
LISTED = ("json", "yaml", "name", "wide")
PRINTED = ("json", "yaml", "name")
SHELLS = ("bash", "zsh", "fish")

ENDING = """\
Exit codes: 0 done; 1 failed, refused or wrong usage; 2 an invalid file; 75 a local run was stopped, and the same command
resumes it; 124 not within --timeout; 130 Ctrl-C, which never cancels a job in a cluster; 141 nobody reads the output."""


class Parser(argparse.ArgumentParser):
    """An argument parser that exits with code 1 on an error: 2 is for errors in a file."""

    def error(self, message: str) -> NoReturn:
        """Print the message in two lines, and exit."""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            from difflib import get_close_matches

            near = get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), 1)
            message = f"there is no {found[1]}; " + (f"did you mean {near[0]}?" if near else f"there are {found[2]}")
        self.exit(USAGE_EXIT_CODE, f"error: {one_line(message)}\n{self.prog} --help shows what it takes\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; the last argument, if it may be left out, may stand behind options: Python 3.11 takes it for left out there."""
        found, extras = super().parse_known_args(args, namespace)
        for action in self._actions:  # Python 3.11 takes a second -- for a value, and then forgets it
            if not action.option_strings and action.nargs is None and getattr(found, action.dest, None) == []:
                self.error(f"the following arguments are required: {action.metavar or action.dest}")
        last = next((action for action in self._actions if action.nargs == "?" and not action.option_strings), None)
        words = extras[1:] if extras[:1] == ["--"] else [word for word in extras if not word.startswith("-")]
        if last is not None and len(words) == 1 and len(extras) <= 2 and getattr(found, last.dest) is last.default:
            setattr(found, last.dest, words[0])
            extras = [word for word in extras if word not in {"--", words[0]}]
        return found, extras


def build() -> Parser:
    """The whole grammar."""
    parser = Parser(
        prog="finetune",
        description="Work with FinetuneJobs.",
        epilog=ENDING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_files(commands)
    _add_views(commands)
    _add_changes(commands)
    _add_copies(commands)
    _add_results(commands)
    _add_others(commands)
    return parser


class _Version(argparse.Action):
    """Prints the version, which is looked up when it is asked for: reading the package's metadata takes time."""

    def __call__(self, parser: argparse.ArgumentParser, *_values: Any) -> None:
        """Print it and exit."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            told = version("finetune-operator")
        except PackageNotFoundError:
            told = "of its sources, which are not installed"
        sys.stdout.write(f"finetune {told}\n")
        parser.exit()


def later(module: str, function: str = "run") -> Run:
    """A function of a module that is imported when it is called."""

    def run(options: argparse.Namespace) -> int:
        code: int = getattr(importlib.import_module(f"finetune_client.{module}"), function)(options)
        return code

    return run


def _add(commands: Any, name: str, purpose: str, run: Run, aliases: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, aliases=list(aliases), help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="tell the details of an error")
    parser.set_defaults(run=run)
    return parser


def _add_files(commands: Any) -> None:
    submit = _add(commands, "submit", "create jobs in the cluster, from manifests or finetuning YAMLs", later("commands.submit"))
    _add_login(submit)
    _add_filename(submit)
    submit.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="set a value, as Training.epochs=1 or output.size=20Gi; may be repeated",
    )
    submit.add_argument(
        "--upload", metavar="FILE", help="copy these rows to the claim of the job's data first, and have the job train on them"
    )
    submit.add_argument("--create", metavar="SIZE", help="with --upload: make the claim if it is not there, as --create 10Gi")
    submit.add_argument("--dry-run", action="store_true", help="have the API server check the job, print it, and store nothing")
    submit.add_argument("--wait", action="store_true", help="wait until the job has ended")
    submit.add_argument("--follow", action="store_true", help="print the log of the job until it has ended")
    submit.add_argument("--timeout", type=seconds, metavar="TIME", help="longest wait, as 90s, 30m or 2h (default: none)")
    submit.add_argument("-o", "--output", choices=PRINTED, help="print the created jobs so")
    add_conversion(submit.add_argument_group("for a finetuning YAML of llm-on-ray, as for `finetune convert`"))
    run = _add(commands, "run", "run a FinetuneJob manifest on this machine, without Kubernetes", later("local", "command"))
    run.add_argument("-f", "--filename", required=True, metavar="FILE", help="the FinetuneJob, as for `finetune submit`")
    run.add_argument(
        "--local", action="store_true", help="on this machine, which is the default; in a cluster use `finetune submit`"
    )
    _add_claims(run)
    _add_estimate(commands)
    check = _add(
        commands,
        "validate",
        "check FinetuneJobs and finetuning YAMLs as the API server would, without a cluster",
        later("validate"),
    )
    _add_filename(check)
    change = _add(commands, "convert", "make a FinetuneJob manifest of a finetuning YAML of llm-on-ray", later("convert"))
    add_convert_options(change)


def _add_claims(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--claim",
        action="append",
        default=[],
        metavar="NAME=DIR",
        type=claim,
        help="the folder that stands for a PersistentVolumeClaim of the manifest; may be repeated",
    )
    parser.add_argument(
        "--claims-dir",
        type=Path,
        default=Path("finetune-output"),
        metavar="DIR",
        help="folder for the claims that are not named by --claim: each is DIR/NAME (default: finetune-output)",
    )


def _add_estimate(commands: Any) -> None:
    purpose = "predict memory, speed and time of a job or a finetuning YAML, without running it"
    parser = _add(commands, "estimate", purpose, later("commands.estimate"))
    parser.add_argument("-f", "--filename", required=True, metavar="FILE", help="the FinetuneJob, or the finetuning YAML")
    _add_claims(parser)
    parser.add_argument("--model", type=Path, metavar="DIR", help="folder with the base model's config.json")
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="rows to count (default: those that the job names, if they are here)"
    )
    parser.add_argument("--rows", type=count, metavar="N", help="number of rows, where they are not here")
    parser.add_argument("--mean-tokens", type=count, metavar="N", help="tokens of a row, on average, where they are not here")
    parser.add_argument("--device", metavar="NAME", help="the GPU: h100, h200, ... (default: h100, or max-1550 for Intel GPUs)")
    parser.add_argument("--network", type=number, metavar="GBIT", help="Gbit/s of a host to the others (default: 25, on CPUs 10)")
    parser.add_argument(
        "--core-gflops", type=number, metavar="N", help="what a core of a CPU multiplies in float32, in GFLOP/s (default: 90)"
    )
    parser.add_argument("-o", "--output", choices=("json", "yaml"), help="print it so")


def _add_views(commands: Any) -> None:
    listing = _add(commands, "list", "list the jobs", later("commands.listing"), ("get",))
    listing.add_argument("jobs", nargs="*", metavar="NAME", help="only these jobs")
    _add_login(listing)
    listing.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    listing.add_argument("-o", "--output", choices=LISTED, help="print them so")
    status = _add(
        commands, "status", "tell all about a job on one page: how far it is, why, and what to do next", later("commands.status")
    )
    _add_job(status)
    status.add_argument("-o", "--output", choices=PRINTED, help="print the object instead of the page")
    watch = _add(commands, "watch", "follow jobs in a live table; of one job, until it has ended", later("commands.watch"))
    _add_job(watch, nargs="?")
    watch.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    watch.add_argument("--timeout", type=seconds, metavar="TIME", help="end after this time, as 90s, 30m or 2h")
    logs = _add(commands, "logs", "print the output of a job's driver, or of a rank", later("commands.logs"))
    _add_job(logs)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    logs.add_argument("--attempt", type=count, metavar="N", help="of this attempt (default: the current one)")
    logs.add_argument("--rank", type=count, metavar="N", help="the log of this rank, which the run keeps on its output claim")
    _add_image(logs)


def _add_results(commands: Any) -> None:
    report = _add(
        commands, "report", "copy the report of a job here: curves, answers, settings", later("commands.report", "report")
    )
    _add_job(report)
    report.add_argument("folder", metavar="DIR", nargs="?", help="the folder that it is copied to (default: NAME-report)")
    compare = _add(
        commands,
        "compare",
        "draw curves, settings and answers of several runs side by side, in one page",
        later("commands.report", "compare"),
    )
    compare.add_argument("runs", metavar="NAME|DIR", nargs="+", help="jobs, and output folders of this machine")
    _add_login(compare)
    compare.add_argument("-o", "--output", metavar="FILE", default="comparison.html", help="the page (default: comparison.html)")
    ask = _add(commands, "generate", "ask a finetuned model: one prompt, or a chat on a terminal", later("commands.generate"))
    ask.add_argument(
        "model", metavar="NAME|DIR", help="the output folder of a finished run; or a job, whose result is copied here"
    )
    ask.add_argument("prompt", metavar="PROMPT", nargs="?", help="default: a chat on a terminal, else standard input")
    ask.add_argument("--input", metavar="TEXT", help="the context of the instruction, as in a row of the data")
    ask.add_argument("--base", action="store_true", help="let the base model answer, too")
    ask.add_argument("--model-dir", "--model_dir", metavar="DIR", help="folder of the base model (default: its name on the hub)")
    ask.add_argument("--max-tokens", "--max_tokens", type=count, metavar="N", help="tokens of the longest answer (default: 256)")
    ask.add_argument("--device", choices=("cpu", "gpu"), help="default: a GPU if there is one")
    ask.add_argument(
        "--trust-remote-code", "--trust_remote_code", action="store_true", help="run Python code that comes with the base model"
    )
    _add_login(ask)
    _add_image(ask)
    dashboard = _add(commands, "dashboard", "show the Ray dashboard of a job in the browser", later("commands.dashboard"))
    _add_job(dashboard)
    dashboard.add_argument("--port", type=port, default=0, metavar="PORT", help="port of this machine (default: a free one)")
    dashboard.add_argument("--open", action="store_true", help="open the page in the browser")
    for parser in (report, compare):
        parser.add_argument("--open", action="store_true", help="open the page in the browser")
        _add_image(parser)


def _add_changes(commands: Any) -> None:
    for name, purpose in (
        ("suspend", "have a job write a checkpoint and give all its pods back"),
        ("resume", "let a suspended job resume from its checkpoint"),
        ("cancel", "end a job for good"),
        ("retry", "make a new job NAME-rN that takes up one that has failed or was cancelled, from its newest checkpoint"),
    ):
        _add_job(_add(commands, name, purpose, later("commands.change", name)))


def _add_copies(commands: Any) -> None:
    upload = _add(
        commands,
        "upload",
        "copy files and folders to a claim, and take up a copy that was cut off",
        later("commands.copy", "upload"),
    )
    upload.add_argument("files", nargs="+", metavar="FILE", help="files, and folders with all that is in them")
    upload.add_argument("target", metavar="CLAIM:PATH", help="the claim, and the folder on it (empty: its root)")
    upload.add_argument("--create", metavar="SIZE", help="make the claim if it is not there, as --create 10Gi")
    download = _add(
        commands, "download", "copy the result of a job here, held against its manifest", later("commands.copy", "download")
    )
    download.add_argument("job", metavar="NAME", help="name of the FinetuneJob")
    download.add_argument("folder", metavar="DIR", help="the folder that it is copied to")
    for parser in (upload, download):
        _add_login(parser)
        _add_image(parser)


def _add_others(commands: Any) -> None:
    doctor = _add(
        commands,
        "doctor",
        "look whether jobs can run in the cluster, and tell what to do where they cannot",
        later("commands.doctor"),
    )
    _add_login(doctor)
    completion = _add(
        commands,
        "completion",
        "print what makes a shell complete commands, options and names of jobs",
        later("commands.completion"),
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.add_argument(
        "--words", nargs=argparse.REMAINDER, help="print what fits at the end of these words, as the script asks"
    )


def _add_login(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--namespace", metavar="NAMESPACE", help="namespace (default: that of the context)")
    parser.add_argument("--context", metavar="CONTEXT", help="context of the kubeconfig (default: the current one)")


def _add_job(parser: argparse.ArgumentParser, **options: Any) -> None:
    parser.add_argument("job", metavar="NAME", help="name of the FinetuneJob", **options)
    _add_login(parser)


def _add_image(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", help="image of the helper pod, with Python 3.11 or newer (default: the trainer's)")


def _add_filename(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--filename",
        action="append",
        required=True,
        metavar="FILE",
        help="YAML or JSON, a folder of such files, or - for standard input; may be repeated",
    )
    parser.add_argument("-R", "--recursive", action="store_true", help="folders with all folders in them")


def add_convert_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``finetune convert``."""
    parser.add_argument(
        "-f",
        "--filename",
        "--config_file",
        dest="config_file",
        required=True,
        metavar="FILE",
        help="the finetuning YAML, as for llm_on_ray-finetune --config_file",
    )
    add_conversion(parser)


def add_conversion(parser: Any) -> None:
    """Add the options that say what a finetuning YAML leaves open."""
    option = parser.add_argument
    option("--name", help="name of the job (default: made from the file's name)")
    option("--image", help="trainer image (default: the operator's)")
    option("--accelerator", choices=("i915", "xe", "nvidia"), help="GPU resource, for device GPU (default: i915)")
    option("--memory", metavar="SIZE", help="memory of a worker, as 32Gi (default: the operator's)")
    option("--model-claim", metavar="NAME[/SUBPATH]", help="claim with the base model's folder (default: the hub)")
    option("--token-secret", metavar="NAME[/KEY]", help="Secret with a hub token (default key: token)")
    dataset = parser.add_mutually_exclusive_group()
    dataset.add_argument("--dataset-claim", metavar="NAME[/SUBPATH]", help="claim with the data files (default: the image)")
    dataset.add_argument("--dataset-config-map", metavar="NAME", help="ConfigMap with the data files, for small ones")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--output-claim", metavar="NAME", help="existing claim for the result")
    output.add_argument("--output-size", metavar="SIZE", help=f"size of the claim to make (default: {DEFAULT_OUTPUT_SIZE})")
    option(
        "--output-access-mode",
        choices=("ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"),
        help="access mode of the claim to make (default: ReadWriteOnce, which holds all pods on one node)",
    )


def usage() -> int:
    """Print the help on standard error, for a command line without a command."""
    build().print_help(sys.stderr)
    return USAGE_EXIT_CODE
