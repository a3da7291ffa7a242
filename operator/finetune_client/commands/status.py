"""``finetune status``: one page that says how far a job is, why, and what to do next."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from finetune_client.commands import advice
from finetune_client.commands.common import age, bar, client_of, duration, number, plain, print_objects, say, size, table
from finetune_client.errors import ClientError
from finetune_client.job import Event, Job, parse_time
from finetune_operator.api.phases import Phase

TITLE = 12
"""Width of the titles at the left."""
MOST_EVENTS = 8
MESSAGE_LINES = 12
"""Lines of a message that are shown; the end of a long one is the most useful."""


def run(options: argparse.Namespace) -> int:
    """Print the page, or the object.

    Raises:
        ClientError: there is no such job, or the cluster refuses or does not answer.
    """
    client = client_of(options)
    job = client.get(options.job)
    if options.output:
        print_objects([job], options.output)
        return 0
    try:
        events: Sequence[Event] = client.events(job)
    except ClientError as error:
        events = [Event(None, "", "", f"cannot be read: {error.message}")]
    for line in page(job, events):
        say(line)
    return 0


def page(job: Job, events: Sequence[Event]) -> Iterator[str]:
    """The lines of the page."""
    reason = f" ({plain(job.reason)})" if job.reason else ""
    created = f", created {age(job.created)} ago" if job.created else ""
    yield f"{plain(job.name)}: {job.phase}{reason}"
    yield f"in namespace {plain(job.namespace)}{created}"
    yield ""
    known = advice.explanation(job)
    yield from _part("What", job.message or (known.happened if known else "No operator has written a status."))
    yield from _part("To do", advice.remedy(job))
    yield from _part("Fetch", _fetch(job))
    yield from _part("Progress", _progress(job))
    yield from _part("Loss", _loss(job))
    yield from _part("Workers", _workers(job))
    yield from _part("Attempt", _attempt(job))
    yield from _part("Checkpoint", _checkpoint(job))
    yield from _part("Output", _output(job))
    yield from _history(job)
    yield from _events(events)
    yield ""
    yield "Next"
    width = max(len(command) for command, _ in advice.commands(job))
    yield from (f"  {command.ljust(width)}   {purpose}" for command, purpose in advice.commands(job))


def _part(title: str, text: str) -> Iterator[str]:
    """A title, and a text that is wrapped beside it."""
    width = max(40, min(100, shutil.get_terminal_size((100, 24)).columns)) - TITLE
    given = [line for line in text.splitlines() if line.strip()]
    cut = [*given[:1], "…", *given[-(MESSAGE_LINES - 2) :]] if len(given) > MESSAGE_LINES else given
    lines = [part for line in cut for part in textwrap.wrap(plain(line), width, break_on_hyphens=False)]
    for index, line in enumerate(lines):
        yield f"{(title if index == 0 else '').ljust(TITLE)}{line}"


def _fetch(job: Job) -> str:
    """What is fetched from an address; when a run has it, that is no news any more."""
    there, total = (job.number("status", "fetch", key) for key in ("bytes", "totalBytes"))
    if there is None or job.read("status", "attempt") is not None:
        return ""
    if not total:
        return f"{size(there)} are there"
    percent = min(100.0, 100 * there / total)
    return f"{bar(percent)} {percent:.0f}%, {size(there)} of {size(total)}"


def _progress(job: Job) -> str:
    percent = job.number("status", "progress", "percent")
    if percent is None:
        return ""
    step, total = (job.number("status", "progress", key) or 0 for key in ("step", "totalSteps"))
    words = [f"{bar(percent)} {percent:.0f}%", f"step {step:.0f} of {total:.0f}"]
    epoch, eta = job.number("status", "progress", "epoch"), job.number("status", "progress", "etaSeconds")
    speed = job.number("status", "progress", "tokensPerSecond")
    words += [f"epoch {epoch:g}"] if epoch is not None else []
    words += [f"{duration(eta)} left"] if eta is not None and job.phase is Phase.RUNNING else []
    words += [f"{speed:.0f} tokens/s"] if speed is not None and job.phase is Phase.RUNNING else []
    return ", ".join(words)


def _loss(job: Job) -> str:
    first, last = job.number("status", "result", "firstLoss"), job.number("status", "result", "trainLoss")
    now = job.number("status", "progress", "loss") if last is None else last
    words = [f"{number(first)} at the first step"] if first is not None else []
    words += [f"{number(now)} now" if last is None else f"{number(now)} at the end"] if now is not None else []
    held_out = job.number("status", "result", "evalLoss") or job.number("status", "progress", "evalLoss")
    words += [f"{number(held_out)} on the evaluation rows"] if held_out is not None else []
    return ", ".join(words)


def _workers(job: Job) -> str:
    ready = job.read("status", "ray", "workers")
    if not ready or job.phase not in {Phase.PROVISIONING, Phase.RUNNING, Phase.SUSPENDING}:
        return ""
    hosts = job.read("status", "progress", "hosts")
    names = ", ".join(str(host) for host in hosts[:4]) if isinstance(hosts, list) else ""
    more = f" and {len(hosts) - 4} more" if isinstance(hosts, list) and len(hosts) > 4 else ""
    return f"{ready} ready" + (f": {names}{more}" if names else "")


def _attempt(job: Job) -> str:
    attempt = job.read("status", "attempt")
    if attempt is None:
        return ""
    restarts, failed = job.number("status", "progress", "restarts"), job.number("status", "failedAttempts")
    words = [str(attempt)]
    words += [f"{failed:.0f} failed"] if failed else []
    words += [f"workers restarted {restarts:.0f} times"] if restarts else []
    return ", ".join(words)


def _checkpoint(job: Job) -> str:
    step = job.number("status", "checkpoint", "step")
    if step is None:
        return ""
    time = parse_time(job.read("status", "checkpoint", "time"))
    return f"step {step:.0f}" + (f", {age(time)} ago" if time else "")


def _output(job: Job) -> str:
    output = job.read("status", "output")
    if not isinstance(output, dict):
        return ""
    words = f"claim {output.get('persistentVolumeClaim')}, folder {output.get('path')}"
    if output.get("format"):
        words += f"\n{output['format']}, {size(job.number('status', 'output', 'sizeBytes') or 0)}"
        words += f"\nSHA-256 of its manifest.json: {output.get('manifestSHA256')}"
    return words


def _history(job: Job) -> Iterator[str]:
    """Attempts that have ended, if there was more than the one that ended the job."""
    given = job.read("status", "attemptHistory")
    ended = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
    if not ended or (len(ended) == 1 and job.has_ended):
        return
    rows = [("ATTEMPT", "ENDED", "REASON", "LAST STEP")]
    for item in ended:
        time = parse_time(item.get("endTime"))
        cells = (item.get("attempt"), f"{age(time)} ago" if time else "", item.get("reason"), item.get("lastStep"))
        rows.append(tuple(plain("" if cell is None else cell) for cell in cells))  # type: ignore[arg-type]
    yield ""
    yield "Earlier attempts"
    yield from (f"  {line}" for line in table(rows))


def _events(events: Sequence[Event]) -> Iterator[str]:
    if not events:
        return
    yield ""
    yield "Events"
    rows = [
        (age(event.time), plain(event.type), plain(event.reason), textwrap.shorten(plain(event.message), 100, placeholder=" …"))
        for event in events[-MOST_EVENTS:]
    ]
    yield from (f"  {line}" for line in table(rows))
