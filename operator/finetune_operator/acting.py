"""Execute the actions of a plan. Each can be repeated, and is with longer and longer pauses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from finetune_operator.api.reasons import Problem
from finetune_operator.api.v1alpha1 import FinetuneJob, JobIdentity, Reason
from finetune_operator.backoff import Repeats
from finetune_operator.clients.cache import Cache, Key
from finetune_operator.clients.dashboards import Dashboards
from finetune_operator.clients.kube import FINETUNE_JOBS, PODS, RAY_CLUSTERS, KubeClient
from finetune_operator.constants import RAY_PLURAL
from finetune_operator.decide import (
    Action,
    CreateCluster,
    CreateFetchPod,
    DeleteCluster,
    DeleteJob,
    DeletePod,
    StopRun,
    Submit,
)
from finetune_operator.desired.config_map import build_config_map
from finetune_operator.desired.fetch import build_fetch_pod
from finetune_operator.desired.ray_cluster import build_ray_cluster
from finetune_operator.desired.secrets import KeyRing, build_token_secret
from finetune_operator.desired.storage import build_output_claim
from finetune_operator.desired.submission import build_submission
from finetune_operator.errors import KindMissingError, KubeError, NameTakenError, NotAllowedError
from finetune_operator.own_objects import make_own
from finetune_operator.settings import Settings

logger = logging.getLogger(__name__)

Immediate = CreateCluster | CreateFetchPod | DeleteCluster | DeleteJob | DeletePod
"""Actions that are requests to the API server."""

REPEAT_SECONDS = (0.5, 60.0)
"""First and longest pause before the same action is repeated: one that is decided again has not had its effect."""


@dataclass
class Acted:
    """What came of the actions of a plan."""

    errands: list[Submit | StopRun] = field(default_factory=list)
    """To be handed over to the dashboard's task once the status is written."""
    held: float = 0.0
    """Seconds until the first action may be repeated that was held back; 0: none was."""
    problem: Problem | None = None
    """Why an attempt cannot begin."""
    refused: str = ""
    """Why something cannot be deleted."""


class Actor:
    """Makes and deletes objects, and hands over to the dashboards what they are to do."""

    def __init__(
        self,
        kube: KubeClient,
        cache: Cache,
        dashboards: Dashboards,
        keys: KeyRing,
        settings: Settings,
        clock: Callable[[], datetime],
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._dashboards = dashboards
        self._keys = keys
        self._settings = settings
        self._clock = clock
        self._repeats: Repeats[Key, Problem] = Repeats(REPEAT_SECONDS)

    def forget(self, key: Key) -> None:
        """Forget what was tried for a job that is gone."""
        self._repeats.forget(key)

    async def act(self, job: JobIdentity, actions: tuple[Action, ...]) -> Acted:
        """Execute actions until one is refused.

        Raises:
            KubeError: neither a user can resolve it, nor is it known what has come of the action.
        """
        acted = Acted()
        for action in actions:
            if wait := self._repeats.wait(job.key, action):
                acted.held = min(acted.held or wait, wait)
            elif isinstance(action, Submit | StopRun):
                acted.errands.append(action)
            else:
                self._repeats.begin(job.key, action)
                self._repeats.end(job.key, action, await self._try(job, action))
            problem = self._problem_of(job.key, action)
            if problem is None:
                continue
            if isinstance(action, CreateCluster | CreateFetchPod | Submit):
                acted.problem = problem
            else:
                acted.refused = problem.message
            break
        return acted

    def hand_over(self, job: JobIdentity, errand: Submit | StopRun) -> None:
        """Have the dashboard's own task act: it may take its time, or never answer."""
        self._repeats.begin(job.key, errand)
        if isinstance(errand, Submit):
            self._dashboards.submit(job.key, build_submission(_with_spec(job), errand.attempt))
        else:
            self._dashboards.stop(job.key)

    async def _try(self, job: JobIdentity, action: Immediate) -> Problem | None:
        """Execute an action; a refusal that somebody can resolve is returned as a problem."""
        try:
            await self._act_once(job, action)
        except KubeError as error:
            return _problem(error)
        return None

    def _problem_of(self, key: Key, action: Action) -> Problem | None:
        """What has come of an action so far."""
        if not isinstance(action, Submit):
            return self._repeats.result(key, action)
        if refusal := self._dashboards.refusal(key):
            return Problem(Reason.SUBMISSION_FAILED, refusal)
        unanswered = self._dashboards.unanswered(key)
        if unanswered is None or unanswered.seconds_until_reported(self._clock()):
            return None
        return Problem(unanswered.reason, unanswered.cause)

    async def _act_once(self, job: JobIdentity, action: Immediate) -> None:
        match action:
            case CreateCluster(attempt):
                await self._create_cluster(_with_spec(job), attempt)
            case CreateFetchPod(attempt):
                await self._create_fetch_pod(_with_spec(job), attempt)
            case DeletePod(name, uid):
                logger.info("%s/%s: deleting pod %s", *job.key, name)
                await self._kube.delete(PODS, job.metadata.namespace, name, uid)
            case DeleteCluster(name, uid):
                logger.info("%s/%s: deleting cluster %s", *job.key, name)
                await self._kube.delete(RAY_CLUSTERS, job.metadata.namespace, name, uid)
            case DeleteJob():
                logger.info("%s/%s: deleting the job, its time to live is over", *job.key)
                await self._kube.delete(FINETUNE_JOBS, *job.key, job.metadata.uid)

    async def _create_fetch_pod(self, job: FinetuneJob, attempt: int) -> None:
        """Create the pod of a try; the claim comes before it."""
        if refused := [*self._settings.policy.pod_refusals(job)]:
            raise NotAllowedError("; ".join(refused))
        for manifest in (build_output_claim(job), build_fetch_pod(job, attempt, self._settings)):
            if manifest is not None:
                await make_own(self._kube, manifest)
        logger.info("%s/%s: the pod that fetches is there", *job.key)

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


def _problem(error: KubeError) -> Problem:
    """What a refusal means to the user; raised again if the user cannot resolve it."""
    if isinstance(error, KindMissingError):
        return Problem(Reason.KUBERAY_NOT_INSTALLED, "the API server does not know RayClusters: install KubeRay 1.6 or later")
    if isinstance(error, NameTakenError):
        return Problem(Reason.NAME_CONFLICT, error.message)
    if error.status not in {400, 403, 422}:
        raise error
    reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in error.message else Reason.CREATION_REFUSED
    return Problem(reason, error.message)


def _with_spec(job: JobIdentity) -> FinetuneJob:
    if not isinstance(job, FinetuneJob):
        raise TypeError("nothing is made for a job whose spec cannot be read")
    return job
