"""Logs: the driver's from the Ray dashboard while the cluster is there, and those that a run keeps on its output claim.

The trainer writes ``logs/attempt-N/driver.log`` and ``rank-R.log``; a helper pod reads them. A log that has grown too large
was renamed to ``<name>.1``, and a new one begun.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

from finetune_client import driver_log
from finetune_client.access import Access
from finetune_client.errors import ForbiddenError, LogGoneError, NoLogError, RefusedError, UnreachableError, look_at
from finetune_client.job import Job
from finetune_client.kube.rest import Stop
from finetune_client.transfer.api import image_of
from finetune_client.transfer.copies import PART_BYTES
from finetune_client.transfer.pod import Helper, helper

LONGEST_LINE = 1 << 20
"""A longer line is printed in pieces: so much is held in memory."""


@dataclass(frozen=True)
class Wanted:
    """Which log is read."""

    job: str
    attempt: int | None
    """None: the current one."""
    rank: int | None
    """None: the driver's log."""
    image: str | None
    """Of the helper pod; None: the trainer's."""


def read(client: Access, wanted: Wanted, follow: Stop | None, tell: driver_log.Tell, say: driver_log.Say) -> Iterator[str]:
    """A log, in pieces; see `FinetuneClient.logs`."""
    if wanted.rank is not None:
        yield from _from_claim(
            client, _Place.find(client.get(wanted.job), wanted.attempt, f"rank-{wanted.rank}"), wanted, follow, say
        )
        return
    begun = False
    try:
        for text in driver_log.read(client, wanted.job, wanted.attempt, follow, tell, say):
            begun = begun or bool(text)
            yield text
    except (NoLogError, UnreachableError) as gone:
        job = client.get(wanted.job)
        ended = job.has_ended if wanted.attempt is None else driver_log.has_ended(job, wanted.attempt)
        if begun and follow and ended:
            say(driver_log.lost_end(gone, wanted.job, wanted.attempt))
            return
        if not isinstance(gone, LogGoneError) or (follow and not ended):
            raise
        say(f"{gone.message}; this log is from its output claim")
        try:
            yield from _from_claim(client, _Place.find(job, gone.attempt, "driver"), wanted, None, say)
        except ForbiddenError as error:
            raise ForbiddenError(
                error.status, f"{gone.message}, and you may not read its claim: {error.message}", gone.hint
            ) from error


@dataclass(frozen=True)
class _Place:
    """Where a log is kept."""

    job: Job
    attempt: int
    name: str
    claim: str
    logs: str
    """The folder ``logs`` of the run, on the claim."""

    @classmethod
    def find(cls, job: Job, attempt: int | None, name: str) -> _Place:
        """Where it is, or will be.

        Raises:
            NoLogError: the job has not run.
        """
        number, output = attempt or job.status.attempt, job.status.output
        if number is None or output is None:
            raise NoLogError(f"{job} has not run yet ({job.state})", look_at(job.name))
        return cls(job, number, name, output.persistent_volume_claim, f"{output.path}/logs")

    @property
    def file(self) -> str:
        """The log, below `logs`."""
        return f"attempt-{self.attempt}/{self.name}.log"

    def missing(self, there: dict[str, int]) -> NoLogError:
        """The log is not there; the hint says what is."""
        folder = f"attempt-{self.attempt}/"
        own = [
            path.removeprefix(folder).removesuffix(".log") for path in there if path.startswith(folder) and path.endswith(".log")
        ]
        others = [path for path in there if "/" not in path]
        kept = f"kept there: {', '.join(own or others)}" if own or others else "nothing is kept there"
        hint = f"{kept} (in {self.logs}/{folder if own else ''} on the claim {self.claim})"
        return NoLogError(f"attempt {self.attempt} of {self.job} has kept no log {self.name}", hint)


def _from_claim(client: Access, place: _Place, wanted: Wanted, follow: Stop | None, say: driver_log.Say) -> Iterator[str]:
    job = place.job
    near = None if job.has_ended or job.status.ray is None else job.status.ray.cluster
    image = wanted.image or image_of(client, job)
    with helper(client, place.claim, image, read_only=True, tell=say, near=near) as pod:
        yield from _lines(_bytes(client, place, pod, follow))


def _bytes(client: Access, place: _Place, pod: Helper, follow: Stop | None) -> Iterator[bytes]:
    """What the log holds, its older part first; then what is written later, until the attempt has ended."""
    path, offset, begun = f"{place.logs}/{place.file}", 0, False
    while True:
        # looked at before the log is read: what was written before the end is seen
        ended = follow is None or driver_log.has_ended(driver_log.look_again(client, place.job, follow), place.attempt)
        there = _sizes(pod, place.logs)
        size, older = there.get(place.file), f"{place.file}.1"
        if older in there and (not begun or (size or 0) < offset):  # it was renamed meanwhile
            yield from _rest(pod, f"{path}.1", offset)
            begun, offset = True, 0
        if size is not None:
            begun = True
            for data in _rest(pod, path, offset):
                offset += len(data)
                yield data
        elif ended and not begun:
            raise place.missing(there)
        if ended or follow is None or follow.wait(driver_log.POLL_SECONDS):
            return


def _sizes(pod: Helper, folder: str) -> dict[str, int]:
    files = pod.get("list", path=folder).get("files") or ()
    return {str(file["path"]): int(file["sizeBytes"]) for file in files}


def _rest(pod: Helper, path: str, offset: int) -> Iterator[bytes]:
    """A file from an offset on; nothing if it is gone by now."""
    try:
        while data := pod.read(path, offset, PART_BYTES):
            offset += len(data)
            yield data
    except RefusedError as error:
        if error.status != 404:
            raise


def _lines(pieces: Iterator[bytes]) -> Iterator[str]:
    """Whole lines, without what steers a terminal."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for piece in pieces:
        lines, feed, rest = (rest + decoder.decode(piece)).rpartition("\n")
        if len(rest) > LONGEST_LINE:
            lines, feed, rest = lines + feed + rest, "", ""
        if lines or feed:
            yield driver_log.printable(lines + feed)
    if rest:
        yield driver_log.printable(rest)
