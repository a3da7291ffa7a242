"""Reconcile a job: gather what exists, decide, act, report. Only this module combines I/O and decisions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from finetune_operator import metrics
from finetune_operator.api.checks import broken_rules, refusals
from finetune_operator.api.v1alpha1 import TERMINAL, FinetuneJob, FinetuneJobStatus, Metadata, Reason
from finetune_operator.clients.cache import Cache, Key
from finetune_operator.clients.kube import FINETUNE_JOBS, RAY_CLUSTERS, WORKLOADS, KubeClient
from finetune_operator.clients.ray import Dashboard, RayClient
from finetune_operator.constants import PLURAL, RAY_CLUSTER_LABEL, RAY_PLURAL, UID_LABEL
from finetune_operator.decide import Action, CreateCluster, DeleteCluster, DeleteJob, Plan, StopRun, Submit, decide
from finetune_operator.decide.ending import fail
from finetune_operator.desired import events, naming
from finetune_operator.desired.config_map import build_config_map
from finetune_operator.desired.ray_cluster import build_ray_cluster
from finetune_operator.desired.secrets import KeyRing, build_token_secret
from finetune_operator.desired.storage import build_output_claim
from finetune_operator.desired.submission import build_submission
from finetune_operator.errors import (
    ConflictError,
    KindMissingError,
    KubeError,
    KubeUnavailableError,
    NameTakenError,
    NotAllowedError,
    RayError,
    RayUnavailableError,
)
from finetune_operator.observed import UNKNOWN, Cluster, Observed, Pod, RayJob, queue_words
from finetune_operator.own_objects import make_own
from finetune_operator.preflight import Preflight
from finetune_operator.settings import Settings
from finetune_operator.status import status_patch, throttle_progress
from finetune_trainer.tracking.progress import Progress

logger = logging.getLogger(__name__)

CONFLICT_SECONDS = 0.2
"""Pause after a write that met a newer version, so that two writers do not conflict repeatedly."""

UNANSWERED_SECONDS = 1.0
"""Pause after a submission without an answer."""

Problem = tuple[Reason, str]


class Reconciler:
    """Takes one FinetuneJob a step further, from any state."""

    def __init__(
        self,
        kube: KubeClient,
        ray: RayClient,
        cache: Cache,
        keys: KeyRing,
        settings: Settings,
        dashboard: Callable[[str, str, str], Dashboard] = Dashboard.by_service,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube = kube
        self._ray = ray
        self._cache = cache
        self._keys = keys
        self._settings = settings
        self._dashboard = dashboard
        self._clock = clock
        self._preflight = Preflight(kube, settings)

    async def reconcile(self, key: Key) -> float | None:
        """One step for one job; the seconds after which it is due again, or None.

        Raises:
            KubeError: the API server refused or did not answer; nothing is lost, the queue tries again.
        """
        with metrics.RECONCILE_SECONDS.time():
            raw = self._cache.get(PLURAL, key)
            if raw is None or "deletionTimestamp" in raw["metadata"]:
                return None
            plan = await self._plan(raw)
            if plan.actions or _ends(raw, plan):
                # the plan has consequences: decide again by the current state of the API server rather than by the watch's
                if (raw := await self._refresh(key)) is None:
                    return None
                plan = await self._plan(raw)
            return await self._carry_out(key, raw, plan)

    async def _plan(self, raw: dict[str, Any], problem: Problem | None = None) -> Plan:
        job, refusal = read_job(raw)
        if not refusal and job.status.attempt is None:
            refusal = "; ".join([*broken_rules(raw["spec"]), *refusals(job, self._settings.policy)])
        if refusal and job.status.phase not in TERMINAL:
            status = job.status.model_copy(update={"observed_generation": job.metadata.generation})
            return fail(status, Reason.INVALID_SPEC, refusal, self._clock())
        observed = await self._gather(job)
        return decide(job, replace(observed, problem=problem), self._clock())

    async def _refresh(self, key: Key) -> dict[str, Any] | None:
        """Read the job and its cluster from the API itself."""
        raw = await self._kube.get(FINETUNE_JOBS, *key)
        if raw is None or "deletionTimestamp" in raw["metadata"]:
            return None
        self._cache.put(PLURAL, raw)
        if name := ((raw.get("status") or {}).get("ray") or {}).get("cluster"):
            old = self._cache.get(RAY_PLURAL, (key[0], name))
            try:
                cluster = await self._kube.get(RAY_CLUSTERS, key[0], name)
            except KindMissingError:
                cluster = None
            if cluster is not None:
                self._cache.put(RAY_PLURAL, cluster)
            elif old is not None:
                self._cache.drop(RAY_PLURAL, old)
        return raw

    async def _gather(self, job: FinetuneJob) -> Observed:
        if job.status.ray is None:
            if job.status.phase in TERMINAL:
                return Observed()
            return await self._preflight.observe(job)
        cluster = self._cluster_of(job)
        pods = tuple(Pod.from_raw(pod) for pod in self._cache.of_job("pods", job.key) if _of_cluster(pod, job))
        lost = tuple(Pod.from_raw(pod) for pod in self._cache.deleted_pods(job.key) if _of_cluster(pod, job))
        ours = cluster is not None and cluster.owner_uid == job.metadata.uid
        if cluster is not None and ours and cluster.suspended:
            return Observed(cluster=cluster, pods=pods, lost=lost, queue=await self._queue_words(job, cluster))
        if cluster is None or not ours or not cluster.head_ready or job.status.phase in TERMINAL:
            return Observed(cluster=cluster, pods=pods, lost=lost)
        ray_job, progress = await self._ask_ray(job, cluster)
        return Observed(cluster=cluster, pods=pods, lost=lost, ray_job=ray_job, progress=progress)

    async def _queue_words(self, job: FinetuneJob, cluster: Cluster) -> str:
        """Why Kueue holds a cluster back; empty if the operator may not read Workloads."""
        try:
            found = await self._kube.list(WORKLOADS, job.metadata.namespace, f"kueue.x-k8s.io/job-uid={cluster.uid}")
        except KubeUnavailableError:
            raise
        except KubeError:
            return ""
        return next((words for raw in found if (words := queue_words(raw))), "")

    async def _ask_ray(self, job: FinetuneJob, cluster: Cluster) -> tuple[RayJob, Progress | None]:
        dashboard = self._dashboard_of(job, cluster)
        ray_job = await self._ray.job(dashboard, naming.submission_id(job, job.status.attempt or 1))
        if ray_job == UNKNOWN or ray_job.state in {"Missing", "PENDING"}:
            return ray_job, None
        # read the report after the state: the driver's last report precedes its end
        progress = await self._ray.progress(dashboard, cluster.head_ip)
        return ray_job, progress if progress is not None and progress.attempt == job.status.attempt else None

    def _dashboard_of(self, job: FinetuneJob, cluster: Cluster) -> Dashboard:
        return self._dashboard(job.metadata.namespace, cluster.name, self._keys.token(job.metadata.uid, cluster.key_id))

    async def _carry_out(self, key: Key, raw: dict[str, Any], plan: Plan) -> float | None:
        requeue_after = plan.requeue_after
        try:
            if plan.actions and (problem := await self._act(read_job(raw)[0], plan.actions)) is not None:
                plan = await self._plan(raw, problem)
                requeue_after = plan.requeue_after
        except RayUnavailableError as error:
            logger.info("%s/%s: %s", *key, error)
            requeue_after = UNANSWERED_SECONDS
        try:
            await self._report(raw, plan.status)
        except ConflictError:
            await self._refresh(key)
            return CONFLICT_SECONDS
        return requeue_after

    async def _act(self, job: FinetuneJob, actions: tuple[Action, ...]) -> Problem | None:
        """Execute actions, each of which can be repeated; return a refusal that the user can resolve as a problem."""
        try:
            for action in actions:
                await self._act_once(job, action)
        except RayUnavailableError:
            raise
        except (KubeError, RayError) as error:
            return _problem(error)
        return None

    async def _act_once(self, job: FinetuneJob, action: Action) -> None:
        match action:
            case CreateCluster(attempt):
                await self._create_cluster(job, attempt)
            case Submit(attempt):
                await self._submit(job, attempt)
            case StopRun(attempt):
                await self._stop(job, attempt)
            case DeleteCluster(name, uid):
                logger.info("%s/%s: deleting cluster %s", *job.key, name)
                await self._kube.delete(RAY_CLUSTERS, job.metadata.namespace, name, uid)
            case DeleteJob():
                logger.info("%s/%s: deleting the job, its time to live is over", *job.key)
                await self._kube.delete(FINETUNE_JOBS, *job.key, job.metadata.uid)

    async def _create_cluster(self, job: FinetuneJob, attempt: int) -> None:
        """Create the objects of an attempt. The cluster comes last: when it exists, all that it needs exists."""
        if refused := [*self._settings.policy.pod_refusals(job)]:  # head and workers may have changed since the first attempt
            raise NotAllowedError("; ".join(refused))
        for manifest in (build_output_claim(job), build_token_secret(job, self._keys), build_config_map(job)):
            if manifest is not None:
                await make_own(self._kube, manifest)
        manifest = build_ray_cluster(job, attempt, self._settings, self._keys)
        name = manifest["metadata"]["name"]
        raw = await self._kube.create(manifest) or await self._kube.get(RAY_CLUSTERS, job.metadata.namespace, name)
        if raw is not None:
            self._cache.put(RAY_PLURAL, raw)
        logger.info("%s/%s: cluster %s is there", *job.key, name)

    async def _submit(self, job: FinetuneJob, attempt: int) -> None:
        if (cluster := self._cluster_of(job)) is not None:
            submission = build_submission(job, attempt)
            await self._ray.submit(self._dashboard_of(job, cluster), submission)
            logger.info("%s/%s: submitted %s", *job.key, submission["submission_id"])

    async def _stop(self, job: FinetuneJob, attempt: int) -> None:
        if (cluster := self._cluster_of(job)) is not None:
            await self._ray.stop(self._dashboard_of(job, cluster), naming.submission_id(job, attempt))

    def _cluster_of(self, job: FinetuneJob) -> Cluster | None:
        """The cluster of the current attempt; a retry may have taken over that of an earlier one."""
        name = job.status.ray.cluster if job.status.ray else ""
        raw = self._cache.get(RAY_PLURAL, (job.metadata.namespace, name))
        return Cluster.from_raw(raw) if raw else None

    async def _report(self, raw: dict[str, Any], new: FinetuneJobStatus) -> None:
        """Write the status once, if it differs; then write an event about a change of phase."""
        old = FinetuneJobStatus.model_validate(raw.get("status") or {})
        new = throttle_progress(old, new)
        patch = status_patch(old, new)
        if patch is None:
            return
        metadata = raw["metadata"]
        written = await self._kube.patch_status(metadata["namespace"], metadata["name"], metadata["resourceVersion"], patch)
        if written is None:
            return
        self._cache.put(PLURAL, written)
        for event in events.news(old, new):
            logger.info("%s/%s: %s (%s) %s", metadata["namespace"], metadata["name"], event.phase, event.reason, event.message)
            await self._post_event(metadata, event)
        if new.phase != old.phase:
            metrics.PHASE_CHANGES.labels(phase=str(new.phase), reason=str(new.reason)).inc()

    async def _post_event(self, metadata: dict[str, Any], status: FinetuneJobStatus) -> None:
        try:
            await self._kube.create(events.build_event(metadata, status, self._clock()))
        except KubeError as error:
            logger.warning("event for %s/%s not posted: %s", metadata["namespace"], metadata["name"], error)


def read_job(raw: dict[str, Any]) -> tuple[FinetuneJob, str | None]:
    """A job, and why this operator cannot run it: the object may be older than the rules that would refuse it now.

    A job that cannot be run has metadata and status, and no spec.
    """
    try:
        return FinetuneJob.model_validate(raw), None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    status = FinetuneJobStatus.model_validate(raw.get("status") or {})
    metadata = raw["metadata"]
    identity = {name: metadata[name] for name in ("name", "namespace", "uid", "generation", "labels") if name in metadata}
    parts: dict[str, Any] = {"metadata": Metadata.model_construct(**identity), "status": status}
    return FinetuneJob.model_construct(**parts), problems


def _problem(error: KubeError | RayError) -> Problem:
    """What a refusal means to the user; raised again if the user cannot resolve it."""
    if isinstance(error, RayError):
        return Reason.SUBMISSION_FAILED, str(error)
    if isinstance(error, KindMissingError):
        return Reason.KUBERAY_NOT_INSTALLED, "the API server does not know RayClusters: install KubeRay 1.6 or later"
    if isinstance(error, NameTakenError):
        return Reason.NAME_CONFLICT, error.message
    if error.status not in {400, 403, 422}:
        raise error
    reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in error.message else Reason.CREATION_REFUSED
    return reason, error.message


def _ends(raw: dict[str, Any], plan: Plan) -> bool:
    return plan.status.phase in TERMINAL and (raw.get("status") or {}).get("phase") != plan.status.phase


def _of_cluster(pod: dict[str, Any], job: FinetuneJob) -> bool:
    labels = pod["metadata"].get("labels") or {}
    cluster = job.status.ray.cluster if job.status.ray else None
    return labels.get(UID_LABEL) == job.metadata.uid and labels.get(RAY_CLUSTER_LABEL) == cluster
