"""`AsyncFinetuneClient`: the client for asyncio. Each request runs in a thread, so that no event loop waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from finetune_client.client import FinetuneClient
from finetune_client.job import Change, Event, Job
from finetune_client.kube.rest import REQUEST_SECONDS, Stop

if TYPE_CHECKING:
    from finetune_operator.api.spec import FinetuneJobSpec
    from finetune_operator.api.status import FinetuneJobStatus
    from finetune_operator.api.v1alpha1 import FinetuneJob

T = TypeVar("T")
_END = object()


class AsyncFinetuneClient:
    """The same as `FinetuneClient`, with the same errors. A task that is cancelled stops watching at once."""

    def __init__(
        self,
        context: str | None = None,
        namespace: str | None = None,
        *,
        kubeconfig: str | None = None,
        timeout: float = REQUEST_SECONDS,
    ) -> None:
        """Read the login; see `FinetuneClient`."""
        self.sync = FinetuneClient(context, namespace, kubeconfig=kubeconfig, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.sync.close()

    @property
    def namespace(self) -> str:
        """Namespace of the jobs."""
        return self.sync.namespace

    async def submit(
        self,
        job: Mapping[str, Any] | FinetuneJob | FinetuneJobSpec | str | Path,
        *,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Job:
        """Create a job; the other options are those of `FinetuneClient.submit`."""
        return await asyncio.to_thread(self.sync.submit, job, name=name, settings=settings, **options)

    async def get(self, name: str) -> Job:
        """A job."""
        return await asyncio.to_thread(self.sync.get, name)

    async def list(self, *, all_namespaces: bool = False) -> Sequence[Job]:
        """All jobs."""
        return await asyncio.to_thread(self.sync.list, all_namespaces=all_namespaces)

    async def status(self, name: str) -> FinetuneJobStatus:
        """The status of a job."""
        return await asyncio.to_thread(self.sync.status, name)

    async def events(self, job: Job) -> Sequence[Event]:
        """The events about a job."""
        return await asyncio.to_thread(self.sync.events, job)

    async def watch(self, name: str | None = None, *, all_namespaces: bool = False) -> AsyncIterator[Change]:
        """The jobs as they are, then each change."""
        stop = Stop()
        async for change in _in_threads(self.sync.watch(name, all_namespaces=all_namespaces, stop=stop), stop):
            yield change

    async def wait(
        self,
        name: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as for FinetuneClient
        until: Callable[[Job], bool] = lambda job: job.has_ended,
    ) -> Job:
        """Wait until a job has ended, or something else is true of it."""
        stop = Stop()
        try:
            return await asyncio.to_thread(self.sync.wait, name, timeout=timeout, until=until, stop=stop)
        finally:
            stop.set()

    async def logs(self, name: str, **options: Any) -> AsyncIterator[str]:
        """The output of a job's driver, or of a rank, in pieces; the options are those of `FinetuneClient.logs`."""
        stop = Stop()
        async for text in _in_threads(self.sync.logs(name, **options, stop=stop), stop):
            yield text

    async def download(self, name: str, folder: str | Path, **options: Any) -> Path:
        """Copy the result of a job here; the options are those of `FinetuneClient.download`."""
        return await asyncio.to_thread(self.sync.download, name, folder, **options)

    async def report(self, name: str, folder: str | Path, **options: Any) -> Path:
        """Copy the report of a job here; the options are those of `FinetuneClient.report`."""
        return await asyncio.to_thread(self.sync.report, name, folder, **options)

    async def upload(self, files: Sequence[str | Path], claim: str, path: str = "", **options: Any) -> Sequence[str]:
        """Copy files to a claim; the options are those of `FinetuneClient.upload`."""
        return await asyncio.to_thread(self.sync.upload, files, claim, path, **options)

    async def suspend(self, name: str) -> Job:
        """Have a job write a checkpoint and give all its pods back."""
        return await asyncio.to_thread(self.sync.suspend, name)

    async def resume(self, name: str) -> Job:
        """Let a suspended job resume from its checkpoint."""
        return await asyncio.to_thread(self.sync.resume, name)

    async def cancel(self, name: str) -> Job:
        """End a job for good."""
        return await asyncio.to_thread(self.sync.cancel, name)

    async def retry(self, name: str) -> Job:
        """Create the job that takes up one that has failed or was cancelled."""
        return await asyncio.to_thread(self.sync.retry, name)


async def _in_threads(iterator: Iterator[T], stop: Stop) -> AsyncIterator[T]:
    """The items of an iterator, each waited for in a thread; whoever stops early stops the thread as well."""
    try:
        while (item := await asyncio.to_thread(next, iterator, _END)) is not _END:
            yield cast("T", item)
    finally:
        stop.set()
