"""Find what is wrong with a pod: what scheduler, kubelet and kernel report."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_operator.api.reasons import Problem, Reason

Raw = Mapping[str, Any]

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
_CONTAINER = frozenset({"CreateContainerError", "RunContainerError", "CreatePodSandboxError"})

_BY_SIGNAL = frozenset({128 + signal.SIGKILL, 128 + signal.SIGTERM})
"""Exit codes of containers whose pod was deleted, which is no problem."""

GONE = frozenset({Reason.WORKER_OOM_KILLED, Reason.EVICTED, Reason.POD_FAILED})
"""Problems that a pod does not survive. The pod that replaces it does not report them."""


def find_problem(raw: Raw) -> Problem | None:
    """The first problem of a Pod object, with details for the user; None: there is none."""
    return next(_problems(raw), None)


def _problems(raw: Raw) -> Iterator[Problem]:
    status = raw.get("status") or {}
    if status.get("reason") in {"Evicted", "NodeShutdown", "Terminated", "Preempting"}:
        yield Problem(Reason.EVICTED, f"{status['reason']}: {status.get('message', '')}")
    for condition in status.get("conditions") or ():
        yield from _of_condition(condition)
    limits = _memory_limits(raw)
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            yield from _of_container(container, limits.get(container.get("name"), ""))


def _of_condition(condition: Raw) -> Iterator[Problem]:
    """https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions"""
    message = str(condition.get("message", ""))
    if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
        yield Problem(Reason.EVICTED, f"{condition.get('reason', '')}: {message}")
    if condition.get("type") != "PodScheduled" or condition.get("reason") != "Unschedulable":
        return
    # the scheduler has no reason for a pod that waits for its volume
    waits_for_claim = "persistentvolumeclaim" in message.lower() or "persistent volumes to bind" in message
    yield Problem(Reason.CLAIM_NOT_BOUND if waits_for_claim else Reason.UNSCHEDULABLE, message)


def _of_container(container: Raw, memory_limit: str) -> Iterator[Problem]:
    state, name = container.get("state") or {}, container.get("name")
    waiting, terminated = state.get("waiting") or {}, state.get("terminated") or {}
    words = str(waiting.get("message", ""))
    if waiting.get("reason") in _IMAGE:
        # the kubelet alternates between the error itself and the error within a word about its next try
        yield Problem(Reason.IMAGE_PULL_FAILED, f"{container.get('image')}: {words.rpartition('ErrImagePull: ')[2]}")
    if waiting.get("reason") == "CreateContainerConfigError":
        yield Problem(Reason.CONFIG_MAP_NOT_FOUND if "configmap" in words.lower() else Reason.SECRET_NOT_FOUND, words)
    if waiting.get("reason") in _CONTAINER:
        yield Problem(Reason.POD_FAILED, f"container {name} cannot be started: {words}")
    if terminated.get("reason") == "OOMKilled":
        yield Problem(
            Reason.WORKER_OOM_KILLED, f"container {name} ran out of its memory limit{memory_limit and ' of '}{memory_limit}"
        )
    elif terminated.get("exitCode") and terminated["exitCode"] not in _BY_SIGNAL:
        last = str(terminated.get("message", "")).strip()
        yield Problem(Reason.POD_FAILED, f"container {name} ended with exit code {terminated['exitCode']}{last and ': '}{last}")


def _memory_limits(raw: Raw) -> dict[str, str]:
    containers = (raw.get("spec") or {}).get("containers") or ()
    return {item["name"]: ((item.get("resources") or {}).get("limits") or {}).get("memory", "") for item in containers}
