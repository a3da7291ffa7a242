"""Reconcile a job: gather what exists, decide, act, report. Only this module combines I/O and decisions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from finetune_operator import metrics
from finetune_operator.acting import Acted, Actor
from finetune_operator.api.checks import broken_rules, refusals
from finetune_operator.api.reading import read_job, read_status
from finetune_operator.api.reasons import Problem
from finetune_operator.api.v1alpha1 import TERMINAL, ConditionType, FinetuneJob, FinetuneJobStatus, JobIdentity, Reason
from finetune_operator.clients.cache import Cache, Key
from finetune_operator.clients.dashboards import PATIENCE_SECONDS, Dashboards, Question
from finetune_operator.clients.kube import FINETUNE_JOBS, KubeClient
from finetune_operator.clients.ray import Dashboard, RayClient
from finetune_operator.constants import PLURAL, RAY_CLUSTER_LABEL, RAY_PLURAL, UID_LABEL
from finetune_operator.decide import Plan, decide, decide_unreadable
from finetune_operator.desired import events, naming
from finetune_operator.desired.defaults import resolved_defaults
from finetune_operator.desired.secrets import KeyRing
from finetune_operator.errors import ConflictError, KindMissingError, KubeError
from finetune_operator.fetches import Fetches
from finetune_operator.observed import Cluster, Observed, Pod, Silence, queue_message
from finetune_operator.output_claims import OutputClaims
from finetune_operator.ownership import Ownership
from finetune_operator.preflight import Preflight
from finetune_operator.settings import Settings
from finetune_operator.shared_reads import SharedReads
from finetune_operator.status import (
    api_problem,
    condition_is_true,
    status_patch,
    throttle,
    with_api_problem,
    without_api_problem,
)
from finetune_operator.waiting_line import line_of

logger = logging.getLogger(__name__)

CONFLICT_SECONDS = 0.2
"""Pause after a write that met a newer version, so that two writers do not conflict repeatedly."""

OTHER_CLUSTERS_SECONDS = 1.0
"""Pause until it is looked again whether the clusters of earlier attempts are gone."""

FAILING_SECONDS = 10.0
"""How long a call of the Kubernetes API may fail before the job's message says so."""

HELD_SECONDS = 10.0
"""How long a job whose action is held back is not looked at, at the longest: its deadlines go on."""


@dataclass(frozen=True)
class _Stored:
    """A job as the API server has it, and as it is read."""

    raw: dict[str, Any]
    job: JobIdentity
    problems: str | None
    """Why its spec cannot be read."""

    @classmethod
    def read(cls, raw: dict[str, Any]) -> _Stored:
        return cls(raw, *read_job(raw))


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
        self._cache = cache
        self._keys = keys
        self._settings = settings
        self._dashboard = dashboard
        self._clock = clock
        self._reads = SharedReads(kube)
        self._preflight = Preflight(self._reads, settings)
        self.dashboards = Dashboards(ray, clock)
        """To be run beside the workers of the queue."""
        self._actor = Actor(kube, cache, self.dashboards, keys, settings, clock)
        self._ownership = Ownership(kube, cache)
        self._claims = OutputClaims(kube, clock)
        self._fetches = Fetches(cache, ray)
        self._written: dict[Key, datetime] = {}
        """When this process last wrote the status of a job that has not ended."""
        self._failing: dict[Key, datetime] = {}
        """Since when a call of the API has failed for a job."""

    async def look_out(self, wake: Callable[[Key], None]) -> None:
        """Wake jobs as soon as something that they wait for is there, for ever."""
        await self._preflight.look_out(wake)

    async def reconcile(self, key: Key) -> float | None:
        """One step for one job; the seconds after which it is due again, or None.

        Raises:
            KubeError: the API server refused or did not answer; nothing is lost, the queue tries again.
        """
        with metrics.RECONCILE_SECONDS.time():
            try:
                return await self._step(key)
            except KubeError as error:
                await self._report_problem(key, error)
                raise

    async def _step(self, key: Key) -> float | None:
        raw = self._cache.get(PLURAL, key)
        if raw is None:
            self._forget(key)
            return None
        stored = _Stored.read(raw)
        plan = await self._plan(stored)
        if _is_consequential(stored.job.status, plan):
            # decide again by the current state of the API server rather than by the watch's
            if (refreshed := await self._refresh(key)) is None:
                return None
            stored = refreshed
            plan = await self._without_other_clusters(stored.job, await self._plan(stored, fresh=True))
        return await self._carry_out(key, stored, plan)

    async def _plan(self, stored: _Stored, problem: Problem | None = None, *, fresh: bool = False) -> Plan:
        job, refusal = stored.job, stored.problems
        job = job.model_copy(update={"status": without_api_problem(job.status)})
        if isinstance(job, FinetuneJob) and job.status.attempt is None:
            refusal = "; ".join([*broken_rules(stored.raw["spec"]), *refusals(job, self._settings.policy)])
        if not isinstance(job, FinetuneJob) or (refusal and job.status.phase not in TERMINAL):
            return decide_unreadable(job, await self._gather(job, fresh=fresh), refusal or "", self._clock())
        observed = await self._gather(job, fresh=fresh)
        return decide(job, replace(observed, start_problem=problem), self._clock())

    async def _refresh(self, key: Key) -> _Stored | None:
        """Read the job and its cluster from the API itself.

        Raises:
            KindMissingError: there may be a cluster, and nothing is known of it now.
        """
        raw = await self._kube.get(FINETUNE_JOBS, *key)
        if raw is None:
            if (old := self._cache.get(PLURAL, key)) is not None:
                self._cache.drop(PLURAL, old)
            return None
        self._cache.put(PLURAL, raw)
        stored = _Stored.read(raw)
        try:
            await self._ownership.read_cluster(stored.job)
        except KindMissingError:
            if condition_is_true(stored.job.status, ConditionType.SUBMITTED):
                raise
        return stored

    async def _without_other_clusters(self, job: JobIdentity, plan: Plan) -> Plan:
        """Before an attempt and at the end: the job owns no cluster but that of the attempt, or the others are deleted first."""
        before, after = job.status, plan.status
        begins = after.attempt != before.attempt
        if not begins and (after.phase not in TERMINAL or before.phase in TERMINAL):
            return plan
        keep = after.ray if begins else before.ray
        try:
            deletions = await self._ownership.other_clusters(job, keep.cluster if keep else None)
        except KindMissingError:
            return plan
        return Plan(before, deletions, requeue_after=OTHER_CLUSTERS_SECONDS) if deletions else plan

    async def _gather(self, job: JobIdentity, *, fresh: bool = False) -> Observed:
        if job.status.phase in TERMINAL:
            self.dashboards.forget(job.key)
            self._claims.forget(job.key)
            self._fetches.forget(job.key)
            return Observed(cluster=self._cluster_of(job), fetch=self._fetches.pod_of(job))
        if job.status.ray is None:
            if not isinstance(job, FinetuneJob) or job.metadata.deletion_timestamp:
                return Observed()
            seen = replace(await self._preflight.observe(job), defaults=resolved_defaults(job, self._settings))
            return self._fetches.look(job, seen)
        cluster = self._cluster_of(job)
        pods = tuple(Pod.from_raw(pod) for pod in self._cache.of_job("pods", job.key) if _of_cluster(pod, job))
        lost = tuple(Pod.from_raw(pod) for pod in self._cache.deleted_pods(job.key) if _of_cluster(pod, job))
        seen = Observed(cluster=cluster, pods=pods, lost=lost)
        if isinstance(job, FinetuneJob):
            seen = await self._look_around(job, seen, fresh=fresh)
        ours = cluster if cluster is not None and cluster.owner_uid == job.metadata.uid else None
        if ours is not None and ours.head_ready and not ours.suspended:
            return self._ask_ray(job, ours, seen)
        self.dashboards.rest(job.key)
        if ours is not None and ours.suspended:
            return replace(seen, queue=await self._queue_message(job, ours))
        return seen

    async def _look_around(self, job: FinetuneJob, seen: Observed, *, fresh: bool) -> Observed:
        """What concerns a job that has begun besides its cluster: others that wait for nodes, and its output claim."""
        seen = replace(seen, line=line_of(job, self._cache))
        if not condition_is_true(job.status, ConditionType.SUBMITTED):
            return seen
        return replace(seen, claim_deleting=await self._claims.is_being_deleted(job, fresh=fresh))

    async def _queue_message(self, job: JobIdentity, cluster: Cluster) -> str:
        """Why Kueue holds a cluster back; empty if the operator may not read Workloads."""
        found = await self._reads.workloads(job.metadata.namespace, cluster.uid)
        return next((words for raw in found if (words := queue_message(raw))), "")

    def _ask_ray(self, job: JobIdentity, cluster: Cluster, seen: Observed) -> Observed:
        """What is known of the run without waiting for its dashboard."""
        token = self._keys.token_of(job.metadata.uid, cluster.key_id)
        if token is None:
            self.dashboards.rest(job.key)
            cause = f"it was made with the master key {cluster.key_id}, which the operator does not have"
            return replace(seen, silence=Silence(self._clock(), cause, Reason.TOKEN_KEY_LOST))
        attempt = job.status.attempt or 1
        dashboard = self._dashboard(job.metadata.namespace, cluster.name, token)
        submitted = condition_is_true(job.status, ConditionType.SUBMITTED)
        question = Question(dashboard, naming.submission_id(job, attempt), attempt, cluster.head_ip, submitted)
        answer = self.dashboards.ask(job.key, question)
        return replace(seen, asked=answer.asked, ray_job=answer.ray_job, progress=answer.progress, silence=answer.silence)

    async def _carry_out(self, key: Key, stored: _Stored, plan: Plan) -> float | None:
        acted, plan = await self._act(key, stored, plan)
        try:
            exists = await self._report(stored, plan.status)
        except ConflictError:
            await self._refresh(key)
            return CONFLICT_SECONDS
        if not exists:
            self._cache.drop(PLURAL, stored.raw)
            self._forget(key)
            return None
        for errand in acted.errands:
            self._actor.hand_over(stored.job, errand)
        return self._next_look(key, plan, acted)

    async def _act(self, key: Key, stored: _Stored, plan: Plan) -> tuple[Acted, Plan]:
        """Execute the actions of a plan; what came of them, and the plan with what the user has to know of it."""
        acted = Acted()
        if plan.actions:
            acted = await self._actor.act(stored.job, plan.actions)
            if acted.problem is not None:
                plan = await self._plan(stored, acted.problem)
            elif problem := acted.refused or (acted.held and api_problem(stored.job.status)):
                plan = replace(plan, status=with_api_problem(plan.status, problem))
        elif plan.status.phase in TERMINAL:
            self._actor.forget(key)
        if not acted.held:
            self._failing.pop(key, None)
        return acted, plan

    def _next_look(self, key: Key, plan: Plan, acted: Acted) -> float | None:
        """Seconds until the job is due again. Where its dashboard is asked, the answer wakes it; the time is for the case that
        none comes.
        """
        after = plan.requeue_after
        if acted.errands:
            return PATIENCE_SECONDS
        if acted.held:
            return min(acted.held, after or HELD_SECONDS, HELD_SECONDS)
        return self.dashboards.again(key, after) if after else after

    def _cluster_of(self, job: JobIdentity) -> Cluster | None:
        """The cluster of the current attempt; a retry may have taken over that of an earlier one."""
        name = job.status.ray.cluster if job.status.ray else ""
        raw = self._cache.get(RAY_PLURAL, (job.metadata.namespace, name))
        return Cluster.from_raw(raw) if raw else None

    def _forget(self, key: Key) -> None:
        self._fetches.forget(key)
        self.dashboards.forget(key)
        self._actor.forget(key)
        self._claims.forget(key)
        self._written.pop(key, None)
        self._failing.pop(key, None)

    async def _report(self, stored: _Stored, new: FinetuneJobStatus) -> bool:
        """Write the status once, if it differs; then write an event about a change of phase. False: the job is gone."""
        raw, old, key, now = stored.raw, stored.job.status, stored.job.key, self._clock()
        metadata = raw["metadata"]
        written_at = self._written.get(key)
        new = throttle(old, new, (now - written_at).total_seconds() if written_at else None)
        patch = status_patch(raw.get("status") or {}, new)
        if patch is None:
            return True
        written = await self._kube.patch_status(*key, metadata["resourceVersion"], patch)
        if written is None:
            return False
        self._cache.put(PLURAL, written)
        self._written[key] = now
        if new.phase in TERMINAL:
            self._written.pop(key, None)
        for event in events.reportable_changes(old, new):
            logger.info("%s/%s: %s (%s) %s", *key, event.phase, event.reason, event.message)
            await self._post_event(metadata, event)
        if new.phase != old.phase:
            metrics.PHASE_CHANGES.labels(phase=str(new.phase), reason=str(new.reason)).inc()
        return True

    async def _report_problem(self, key: Key, error: KubeError) -> None:
        """Tell the user of a call that has failed for some time; once, until it succeeds."""
        now = self._clock()
        since, raw = self._failing.setdefault(key, now), self._cache.get(PLURAL, key)
        if raw is None or isinstance(error, ConflictError) or (now - since).total_seconds() < FAILING_SECONDS:
            return
        status = read_status(raw)
        if api_problem(status):
            return
        patch = status_patch(raw.get("status") or {}, with_api_problem(status, error.message))
        with suppress(KubeError):
            written = await self._kube.patch_status(*key, raw["metadata"]["resourceVersion"], patch or {})
            if written is not None:
                self._cache.put(PLURAL, written)

    async def _post_event(self, metadata: dict[str, Any], status: FinetuneJobStatus) -> None:
        try:
            await self._kube.create(events.build_event(metadata, status, self._clock()))
        except KubeError as error:
            logger.warning("event for %s/%s not posted: %s", metadata["namespace"], metadata["name"], error)


def _is_consequential(before: FinetuneJobStatus, plan: Plan) -> bool:
    """Whether a plan does something, or gives something up that may still live: it must not rest on a stale view."""
    after = plan.status
    changed = (after.phase, after.attempt, after.ray and after.ray.cluster) != (
        before.phase, before.attempt, before.ray and before.ray.cluster,
    )  # fmt: skip
    return bool(plan.actions) or changed


def _of_cluster(pod: dict[str, Any], job: JobIdentity) -> bool:
    labels = pod["metadata"].get("labels") or {}
    cluster = job.status.ray.cluster if job.status.ray else None
    return labels.get(UID_LABEL) == job.metadata.uid and labels.get(RAY_CLUSTER_LABEL) == cluster
