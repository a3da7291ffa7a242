"""`FinetuneClient`: FinetuneJobs in a cluster, from Python. The command line is made of it.

from finetune_client import FinetuneClient

client = FinetuneClient()
job = client.submit("job.yaml", settings={"Training.epochs": 1})
job = client.wait(job.name)
print(job.phase, job.status.output)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from finetune_client import submission, watching
from finetune_client.errors import (
    ExistsError,
    JobEndedError,
    MissingError,
    MissingKindError,
    NotInTimeError,
    look_at,
)
from finetune_client.job import Change, Event, Job, parse_time
from finetune_client.kube.kubeconfig import read_login
from finetune_client.kube.rest import REQUEST_SECONDS, Rest, Stop, part
from finetune_client.missing import missing
from finetune_client.retries import build_retry, retry_name, stem_and_number
from finetune_operator.api.phases import Phase
from finetune_operator.constants import API_VERSION, PLURAL

if TYPE_CHECKING:
    from finetune_client.transfer.copies import Progress
    from finetune_operator.api.spec import FinetuneJobSpec
    from finetune_operator.api.status import FinetuneJobStatus
    from finetune_operator.api.v1alpha1 import FinetuneJob

Object = dict[str, Any]

FIELD_MANAGER = "finetune"
"""Who wrote a field, in managedFields."""

INSTALL = "install the operator (README, Use it on a cluster), or name another cluster with --context"


class FinetuneClient:
    """The FinetuneJobs of a namespace, over kubectl's login.

    Raises, in every method: a `ClientError`, whose kinds are in `finetune_client.errors`. It may be used by several threads.
    """

    def __init__(
        self,
        context: str | None = None,
        namespace: str | None = None,
        *,
        kubeconfig: str | None = None,
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        """Read the login.

        Args:
            context: context of the kubeconfig; the current one by default.
            namespace: namespace of the jobs; that of the context by default.
            kubeconfig: its files; KUBECONFIG or ~/.kube/config by default.
            timeout: seconds within which the API server has to answer.
        """
        login = read_login(context, kubeconfig)
        self.namespace: str = namespace or login.namespace
        self.rest = Rest(login, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: each request has a connection of its own."""

    @property
    def server(self) -> str:
        """Address of the API server."""
        return self.rest.login.server

    def submit(
        self,
        job: Mapping[str, Any] | FinetuneJob | FinetuneJobSpec | str | Path,
        *,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        dry_run: bool = False,
        upload: str | Path | None = None,
        create_claim: str | None = None,
    ) -> Job:
        """Create a job.

        Args:
            job: a manifest or a finetuning YAML of llm-on-ray, as a mapping or as the name of a file; or a model.
            name: name of the job, instead of its own.
            settings: values by dotted path, as ``{"Training.epochs": 1, "output.size": "20Gi"}``.
            dry_run: let the API server check the job, and store nothing.
            upload: rows of this machine, which are copied to the claim of the job's data first; the job trains on them.
            create_claim: size of that claim, which is made if it is not there.

        Raises:
            ConfigError: the job is wrong; with every error.
            ExistsError: there is a job of that name.
        """
        settings = submission.with_rows(settings or {}, upload) if upload else settings or {}
        manifest = submission.build(job, name=name, settings=settings)
        if upload and not dry_run:
            self.upload_rows(manifest, upload, create=create_claim)
        return self.create(manifest, dry_run=dry_run)

    def upload_rows(
        self,
        manifest: Object,
        file: str | Path,
        *,
        create: str | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> str:
        """Copy rows to the claim of the data of a job that is to be created; give their place.

        The API server has checked the job before: nothing is copied for a job that it refuses. The arguments are those of
        `upload`.
        """
        from finetune_client.transfer.api import upload_rows

        submission.place_of_rows(manifest)
        self.create(manifest, dry_run=True)
        return upload_rows(self, manifest, file, None, create, progress, say)

    def create(self, manifest: Object, *, dry_run: bool = False) -> Job:
        """Create a job of a manifest that was checked already.

        Raises:
            ConfigError: it names another namespace.
            ExistsError: there is a job of that name.
        """
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        with self._explaining():
            return Job(self.rest.call("POST", self._path(), query, submission.for_namespace(manifest, self.namespace)))

    def get(self, name: str) -> Job:
        """A job.

        Raises:
            MissingError: there is none of that name; the message names a similar one.
        """
        try:
            with self._explaining():
                return Job(self.rest.get(self._path(name)))
        except MissingError as error:
            raise missing(self, name) from error

    def list(self, *, all_namespaces: bool = False) -> Sequence[Job]:
        """All jobs, by namespace and name."""
        path = f"/apis/{API_VERSION}/{PLURAL}" if all_namespaces else self._path()
        with self._explaining():
            items, _ = self.rest.items(path)
        return sorted(map(Job, items), key=lambda job: (job.namespace, job.name))

    def status(self, name: str) -> FinetuneJobStatus:
        """The status of a job."""
        return self.get(name).status

    def events(self, job: Job) -> Sequence[Event]:
        """The events about a job, the oldest first."""
        path = f"/api/v1/namespaces/{part(job.namespace)}/events"
        items, _ = self.rest.items(path, fieldSelector=f"involvedObject.uid={job.uid}")
        found = [
            Event(
                parse_time(item.get("lastTimestamp") or item.get("eventTime")),
                *(str(item.get(key) or "") for key in ("type", "reason", "message")),
            )
            for item in items
        ]
        return sorted(found, key=lambda event: event.time or datetime.min.replace(tzinfo=UTC))

    def watch(self, name: str | None = None, *, all_namespaces: bool = False, stop: Stop | None = None) -> Iterator[Change]:
        """The jobs as they are, then each change of one; with a name, of that job alone, until it has ended or is deleted.

        A watch that is cut off goes on. It ends with an error when the API server has not answered for two minutes.
        """
        path = f"/apis/{API_VERSION}/{PLURAL}" if all_namespaces else self._path()
        with self._explaining():
            for change in watching.changes(self.rest, path, name, stop or Stop()):
                yield change
                if name and (change.job.has_ended or change.kind == "DELETED"):
                    return
        if name and not (stop and stop.is_set):
            raise missing(self, name)

    def wait(
        self,
        name: str,
        *,
        timeout: float | None = None,
        until: Callable[[Job], bool] = lambda job: job.has_ended,
        stop: Stop | None = None,
    ) -> Job:
        """Wait until a job has ended, or something else is true of it.

        Args:
            name: the job.
            timeout: seconds to wait at most.
            until: what has to be true of it; the wait is over at its end in any case.
            stop: ends the wait early, with the job as it is then.

        Raises:
            NotInTimeError: it is not within the time.
            MissingError: the job is not there, or has been deleted.
        """
        deadline = None if timeout is None else monotonic() + timeout
        stop = stop or Stop()
        changes = watching.changes(self.rest, self._path(), name, stop, deadline)
        job = None
        with self._explaining():
            for change in changes:
                if change.kind == "DELETED":
                    raise MissingError(404, f"{change.job} was deleted while it was waited for")
                job = change.job
                if until(job) or job.has_ended:
                    return job
        if job is None:
            raise missing(self, name)
        if stop.is_set:
            return job
        raise NotInTimeError(
            f"{job} is still {job.state} after {timeout:g} s",
            look_at(name),
        )

    def logs(
        self,
        name: str,
        *,
        attempt: int | None = None,
        rank: int | None = None,
        follow: bool = False,
        image: str | None = None,
        stop: Stop | None = None,
        waiting: Callable[[Job], None] = lambda _: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Iterator[str]:
        """The output of a job's driver, in pieces; from its output claim when the Ray cluster is gone.

        Args:
            name: the job.
            attempt: the number of an attempt; the current one by default.
            rank: the log of this rank instead, from the output claim.
            follow: go on with what is written later, and with later attempts unless one is named, until the job has ended.
            image: as for `download`.
            stop: ends the following.
            waiting: is told the job while there is no output yet.
            say: is told that the log comes from the claim, that its end may be missing, and what the helper pod waits for.

        Raises:
            NoLogError: there is no such log; the hint says what there is.
        """
        from finetune_client import kept_log

        wanted = kept_log.Wanted(name, attempt, rank, image)
        return kept_log.read(self, wanted, stop or Stop() if follow else None, waiting, say)

    def download(
        self,
        name: str,
        folder: str | Path,
        *,
        image: str | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Path:
        """Copy the result of a job into a folder here, by a helper pod that mounts its claim.

        Each file is held against the manifest, and the manifest against the job's status. What an earlier call has copied is
        not copied again.

        Args:
            name: the job.
            folder: the folder, which is made.
            image: image of the helper pod, with Python 3.11 or newer; the trainer's by default.
            progress: is told how far it is.
            say: is told what the helper pod waits for.

        Raises:
            JobEndedError: there is no complete result.
        """
        from finetune_client.transfer.api import download

        return download(self, name, folder, image, progress, say)

    def report(
        self, name: str, folder: str | Path, *, image: str | None = None, say: Callable[[str], None] = lambda _: None
    ) -> Path:
        """Copy report.html of a job, and the records that it is made of, into a folder here; give the page.

        The arguments are those of `download`.

        Raises:
            JobEndedError: there is no report (yet).
        """
        from finetune_client.transfer.report import report

        return report(self, name, folder, image, say)

    def upload(
        self,
        files: Sequence[str | Path],
        claim: str,
        path: str = "",
        *,
        image: str | None = None,
        create: str | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Sequence[str]:
        """Copy files, and folders with all that is in them, to a folder of a claim; give their paths there.

        Args:
            files: files and folders of this machine.
            claim: the claim.
            path: the folder on it; its root by default.
            image: as for `download`.
            create: size of the claim, which is made if it is not there.
            progress: as for `download`.
            say: as for `download`.
        """
        from finetune_client.transfer.api import upload

        return upload(self, files, claim, path, image, create, progress, say)

    def suspend(self, name: str) -> Job:
        """Have a job write a checkpoint and give all its pods back."""
        return self._change(name, {"suspend": True})

    def resume(self, name: str) -> Job:
        """Let a suspended job resume from its checkpoint."""
        return self._change(name, {"suspend": False})

    def cancel(self, name: str) -> Job:
        """End a job for good."""
        return self._change(name, {"cancel": True})

    def retry(self, name: str) -> Job:
        """Create the job NAME-rN that takes up one that has failed or was cancelled, from its newest checkpoint.

        Raises:
            JobEndedError: the job has not ended, or has succeeded.
        """
        old = self.get(name)
        if old.phase is Phase.SUCCEEDED:
            raise JobEndedError(f"{old} has succeeded: there is nothing to retry", "submit a new job")
        if not old.has_ended:
            hint = f"`finetune suspend {name}` and `finetune resume {name}` stop it and let it go on, `finetune cancel` ends it"
            raise JobEndedError(f"{old} has not ended ({old.phase})", hint)
        stem, number = stem_and_number(name, old.read("spec", "resumeFrom"))
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        while True:
            with self._explaining(), suppress(ExistsError):
                return Job(self.rest.call("POST", self._path(), query, build_retry(old.raw, retry_name(stem, number))))
            number += 1

    def _change(self, name: str, spec: Object) -> Job:
        job = self.get(name)
        if job.has_ended:
            hint = "" if job.phase is Phase.SUCCEEDED else f"`finetune retry {name}` makes a new job that takes it up"
            raise JobEndedError(f"{job} has ended already ({job.phase}), which is final", hint)
        with self._explaining():
            return Job(self.rest.call("PATCH", self._path(name), {"fieldManager": FIELD_MANAGER}, {"spec": spec}))

    def _path(self, name: str | None = None) -> str:
        path = f"/apis/{API_VERSION}/namespaces/{part(self.namespace)}/{PLURAL}"
        if name in {"", ".", ".."}:  # which would be the path of something else
            raise MissingError(404, f"there is no finetunejob/{name}")
        return f"{path}/{part(name)}" if name else path

    def _explaining(self) -> watching.Explaining:
        """Say of a cluster that does not know FinetuneJobs what to do."""
        message = f"the cluster at {self.server} does not know FinetuneJobs: its CRD is not installed there"
        return watching.Explaining(MissingKindError, MissingKindError(404, message, INSTALL))
