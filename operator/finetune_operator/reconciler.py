"""Reconcile a job: gather what exists, decide, act, report. Only this module combines I/O and decisions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from finetune_operator import metrics
from finetune_operator.api.checks import broken_rules, refusals
from finetune_operator.api.v1alpha1 import TERMINAL, FinetuneJob, FinetuneJobStatus, Metadata, Reason
from finetune_operator.backoff import Repeats
from finetune_operator.clients.cache import Cache, Key
from finetune_operator.clients.dashboards import PATIENCE_SECONDS, Dashboards, Question
from finetune_operator.clients.kube import FINETUNE_JOBS, RAY_CLUSTERS, WORKLOADS, KubeClient
from finetune_operator.clients.ray import Dashboard, RayClient
from finetune_operator.constants import PLURAL, RAY_CLUSTER_LABEL, RAY_PLURAL, UID_LABEL
from finetune_operator.decide import Action, CreateCluster, DeleteCluster, DeleteJob, Plan, StopRun, Submit, decide
from finetune_operator.decide.ending import fail
from finetune_operator.desired import events, naming
from finetune_operator.desired.ray_cluster import build_ray_cluster
from finetune_operator.desired.secrets import KeyRing, build_token_secret
from finetune_operator.desired.storage import build_output_claim
from finetune_operator.desired.submission import build_config_map, build_submission
from finetune_operator.errors import (
    ConflictError,
    KindMissingError,
    KubeError,
    KubeUnavailableError,
)
from finetune_operator.observed import Cluster, Observed, Pod, Silence, queue_words
from finetune_operator.preflight import Preflight
from finetune_operator.settings import Settings
from finetune_operator.status import status_patch, throttle_progress

logger = logging.getLogger(__name__)

CONFLICT_SECONDS = 0.2
"""Pause after a write that met a newer version, so that two writers do not conflict repeatedly."""

REPEAT_SECONDS = (0.5, 60.0)
"""First and longest pause before the same action is repeated: one that is decided again has not had its effect."""

HELD_SECONDS = 10.0
"""How long a job whose action is held back is not looked at, at the longest: its deadlines go on."""

Problem = tuple[Reason, str]


@dataclass
class _Acted:
    """What came of the actions of a plan."""

    errands: list[Submit | StopRun] = field(default_factory=list)
    """To be handed over to the dashboard's task once the status is written."""
    held: float = 0.0
    """Seconds until the first action may be repeated that was held back; 0: none was."""
    problem: Problem | None = None


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
        self.dashboards = Dashboards(ray, clock)
        """To be run beside the workers of the queue."""
        self._repeats: Repeats[Key, Problem] = Repeats(REPEAT_SECONDS)

    async def reconcile(self, key: Key) -> float | None:
        """One step for one job; the seconds after which it is due again, or None.

        Raises:
            KubeError: the API server refused or did not answer; nothing is lost, the queue tries again.
        """
        with metrics.RECONCILE_SECONDS.time():
            raw = self._cache.get(PLURAL, key)
            if raw is None or "deletionTimestamp" in raw["metadata"]:
                self._forget(key)
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
        if job.status.phase in TERMINAL:
            self.dashboards.forget(job.key)
        if job.status.ray is None:
            if job.status.phase in TERMINAL:
                return Observed()
            return await self._preflight.observe(job)
        cluster = self._cluster_of(job)
        pods = tuple(Pod.from_raw(pod) for pod in self._cache.of_job("pods", job.key) if _of_cluster(pod, job))
        lost = tuple(Pod.from_raw(pod) for pod in self._cache.deleted_pods(job.key) if _of_cluster(pod, job))
        ours = cluster is not None and cluster.owner_uid == job.metadata.uid
        seen = Observed(cluster=cluster, pods=pods, lost=lost)
        if cluster is not None and ours and not cluster.suspended and cluster.head_ready and job.status.phase not in TERMINAL:
            return self._ask_ray(job, cluster, seen)
        self.dashboards.rest(job.key)
        if cluster is not None and ours and cluster.suspended:
            return replace(seen, queue=await self._queue_words(job, cluster))
        return seen

    async def _queue_words(self, job: FinetuneJob, cluster: Cluster) -> str:
        """Why Kueue holds a cluster back; empty if the operator may not read Workloads."""
        try:
            found = await self._kube.list(WORKLOADS, job.metadata.namespace, f"kueue.x-k8s.io/job-uid={cluster.uid}")
        except KubeUnavailableError:
            raise
        except KubeError:
            return ""
        return next((words for raw in found if (words := queue_words(raw))), "")

    def _ask_ray(self, job: FinetuneJob, cluster: Cluster, seen: Observed) -> Observed:
        """What is known of the run without waiting for its dashboard."""
        token = self._keys.token_of(job.metadata.uid, cluster.key_id)
        if token is None:
            self.dashboards.rest(job.key)
            cause = f"it was made with the master key {cluster.key_id}, which the operator does not have"
            return replace(seen, silence=Silence(self._clock(), cause, Reason.TOKEN_KEY_LOST))
        attempt = job.status.attempt or 1
        dashboard = self._dashboard(job.metadata.namespace, cluster.name, token)
        question = Question(dashboard, naming.submission_id(job, attempt), attempt, cluster.head_ip)
        answer = self.dashboards.ask(job.key, question)
        return replace(seen, asked=answer.asked, ray_job=answer.ray_job, progress=answer.progress, silence=answer.silence)

    async def _carry_out(self, key: Key, raw: dict[str, Any], plan: Plan) -> float | None:
        acted = _Acted()
        if plan.actions:
            acted = await self._act(read_job(raw)[0], plan.actions)
            if acted.problem is not None:
                plan = await self._plan(raw, acted.problem)
        elif plan.status.phase in TERMINAL:
            self._repeats.forget(key)
        try:
            await self._report(raw, plan.status)
        except ConflictError:
            await self._refresh(key)
            return CONFLICT_SECONDS
        for errand in acted.errands:
            self._hand_over(read_job(raw)[0], errand)
        return self._next_look(key, plan, acted)

    def _next_look(self, key: Key, plan: Plan, acted: _Acted) -> float | None:
        """Seconds until the job is due again. Where its dashboard is asked, the answer wakes it; the time is for the case that
        none comes.
        """
        after = plan.requeue_after
        if acted.errands:
            return PATIENCE_SECONDS
        if acted.held:
            return min(acted.held, after or HELD_SECONDS, HELD_SECONDS)
        return self.dashboards.again(key, after) if after else after

    async def _act(self, job: FinetuneJob, actions: tuple[Action, ...]) -> _Acted:
        """Execute actions, each of which can be repeated, and is with longer and longer pauses."""
        acted = _Acted()
        for action in actions:
            if wait := self._repeats.wait(job.key, action):
                acted.held = min(acted.held or wait, wait)
            elif isinstance(action, Submit | StopRun):
                acted.errands.append(action)
            else:
                self._repeats.begin(job.key, action)
                self._repeats.end(job.key, action, await self._try(job, action))
            acted.problem = self._problem_of(job.key, action)
            if acted.problem is not None:
                break
        return acted

    async def _try(self, job: FinetuneJob, action: CreateCluster | DeleteCluster | DeleteJob) -> Problem | None:
        """Execute an action; a refusal that the user can resolve is returned as a problem."""
        try:
            await self._act_once(job, action)
        except KubeError as error:
            return _problem(error)
        return None

    def _problem_of(self, key: Key, action: Action) -> Problem | None:
        """What has come of an action so far."""
        if not isinstance(action, Submit):
            return self._repeats.result(key, action)
        if refusal := self.dashboards.refusal(key):
            return Reason.SUBMISSION_FAILED, refusal
        unanswered = self.dashboards.unanswered(key)
        if unanswered is None or unanswered.rest(self._clock()):
            return None
        return unanswered.reason, unanswered.cause

    def _hand_over(self, job: FinetuneJob, errand: Submit | StopRun) -> None:
        """Have the dashboard's own task act: it may take its time, or never answer."""
        self._repeats.begin(job.key, errand)
        if isinstance(errand, Submit):
            self.dashboards.submit(job.key, build_submission(job, errand.attempt))
        else:
            self.dashboards.stop(job.key)

    async def _act_once(self, job: FinetuneJob, action: CreateCluster | DeleteCluster | DeleteJob) -> None:
        match action:
            case CreateCluster(attempt):
                await self._create_cluster(job, attempt)
            case DeleteCluster(name, uid):
                logger.info("%s/%s: deleting cluster %s", *job.key, name)
                await self._kube.delete(RAY_CLUSTERS, job.metadata.namespace, name, uid)
            case DeleteJob():
                logger.info("%s/%s: deleting the job, its time to live is over", *job.key)
                await self._kube.delete(FINETUNE_JOBS, *job.key, job.metadata.uid)

    async def _create_cluster(self, job: FinetuneJob, attempt: int) -> None:
        """Create the objects of an attempt. The cluster comes last: when it exists, all that it needs exists."""
        for manifest in (build_output_claim(job), build_token_secret(job, self._keys), build_config_map(job)):
            if manifest is not None:
                await self._kube.create(manifest)
        manifest = build_ray_cluster(job, attempt, self._settings, self._keys.current_id)
        name = manifest["metadata"]["name"]
        raw = await self._kube.create(manifest) or await self._kube.get(RAY_CLUSTERS, job.metadata.namespace, name)
        if raw is not None:
            self._cache.put(RAY_PLURAL, raw)
        logger.info("%s/%s: cluster %s is there", *job.key, name)

    def _cluster_of(self, job: FinetuneJob) -> Cluster | None:
        """The cluster of the current attempt; a retry may have taken over that of an earlier one."""
        name = job.status.ray.cluster if job.status.ray else ""
        raw = self._cache.get(RAY_PLURAL, (job.metadata.namespace, name))
        return Cluster.from_raw(raw) if raw else None

    def _forget(self, key: Key) -> None:
        self.dashboards.forget(key)
        self._repeats.forget(key)

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


def _problem(error: KubeError) -> Problem:
    """What a refusal means to the user; raised again if the user cannot resolve it."""
    if isinstance(error, KindMissingError):
        return Reason.KUBERAY_NOT_INSTALLED, "the API server does not know RayClusters: install KubeRay 1.6 or later"
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
