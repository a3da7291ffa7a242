"""``finetune doctor``: whether jobs can run in the cluster, part by part, and what to do where they cannot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from finetune_client.client import INSTALL, FinetuneClient
from finetune_client.commands.common import client_of, plain, say
from finetune_client.errors import ClientError, ForbiddenError, MissingKindError, NotLoggedInError, UnreachableError
from finetune_client.job import Job
from finetune_operator.constants import API_VERSION, GROUP, RAY_GROUP, RAY_VERSION_API

Object = dict[str, Any]

GOOD, UNKNOWN, BAD = "ok", "?", "!!"

ACCELERATORS = {"gpu.intel.com/i915": "i915", "gpu.intel.com/xe": "xe", "nvidia.com/gpu": "nvidia"}
"""Resource of a node → value of spec.accelerator."""

RIGHTS = (
    ("submit, change and cancel jobs", (("create", GROUP, "finetunejobs"), ("patch", GROUP, "finetunejobs"))),
    ("see jobs", (("get", GROUP, "finetunejobs"), ("list", GROUP, "finetunejobs"), ("watch", GROUP, "finetunejobs"))),
    ("see events", (("list", "", "events"),)),
    ("read logs", (("get", RAY_GROUP, "rayclusters"), ("get", "", "secrets"), ("get", "", "services/proxy"))),
)
"""What the commands are for, and the rights that they need: verb, API group, resource."""

KUEUE = "/apis/kueue.x-k8s.io/v1beta1"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


@dataclass(frozen=True)
class Finding:
    """What was found of a part."""

    mark: str
    part: str
    words: str
    to_do: str = ""


Check = Callable[[FinetuneClient], Iterator[Finding]]


def run(options: argparse.Namespace) -> int:
    """Print a line for each part, and below it what to do.

    Returns:
        The exit code: 1 when something keeps jobs from running.
    """
    worst = GOOD
    for finding in _findings(options):
        say(f"{finding.mark.ljust(2)}  {finding.part.ljust(13)}{plain(finding.words)}")
        if finding.to_do:
            say(f"{'':17}-> {plain(finding.to_do)}")
        sys.stdout.flush()
        worst = BAD if finding.mark == BAD else worst
    say("")
    say("Something keeps jobs from running: see the lines with !!." if worst == BAD else "Jobs can run here.")
    return 1 if worst == BAD else 0


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    try:
        client = client_of(options)
    except NotLoggedInError as error:
        yield Finding(BAD, "Login", error.message, error.hint)
        return
    context = client.rest.login.context or "that of this pod"
    yield Finding(GOOD, "Login", f"context {context}, namespace {client.namespace}")
    try:
        version = client.rest.get("/version").get("gitVersion")
    except UnreachableError as error:
        yield Finding(BAD, "Cluster", error.message, error.hint)
        return
    except ClientError as error:
        version = None
        if isinstance(error, ForbiddenError) and error.status == 401:
            yield Finding(BAD, "Cluster", error.message, error.hint)
            return
    yield Finding(GOOD, "Cluster", f"{client.server} answers" + (f", Kubernetes {version}" if version else ""))
    for check in (_crd, _operator, _kuberay, _rights, _storage, _accelerators, _kueue):
        try:
            yield from check(client)
        except ClientError as error:
            yield Finding(UNKNOWN, check.__name__.strip("_").capitalize(), error.message, error.hint)


def _crd(client: FinetuneClient) -> Iterator[Finding]:
    try:
        known = client.rest.get(f"/apis/{API_VERSION}").get("resources")
    except MissingKindError:
        known = []
    if any(isinstance(item, dict) and item.get("name") == "finetunejobs" for item in known or ()):
        yield Finding(GOOD, "CRD", f"FinetuneJobs ({API_VERSION}) are known")
    else:
        yield Finding(BAD, "CRD", f"the cluster does not know FinetuneJobs ({API_VERSION})", INSTALL)


def _operator(client: FinetuneClient) -> Iterator[Finding]:
    try:
        found, _ = client.rest.items("/apis/apps/v1/deployments", labelSelector="app.kubernetes.io/name=finetune-operator")
    except ForbiddenError:
        yield Finding(UNKNOWN, "Operator", "you may not look for it in all namespaces", "ask the administrator whether it runs")
        return
    running = [item for item in map(Job, found) if item.number("status", "readyReplicas")]
    if running:
        yield Finding(GOOD, "Operator", f"runs in namespace {running[0].namespace}")
    elif found:
        where = Job(found[0])
        command = f"kubectl -n {where.namespace} describe deployment {where.name}"
        yield Finding(
            BAD, "Operator", f"is installed in namespace {where.namespace}, but has no pod that is ready", f"see why: {command}"
        )
    else:
        yield Finding(BAD, "Operator", "is not installed with its chart: nobody takes jobs up", INSTALL)


def _kuberay(client: FinetuneClient) -> Iterator[Finding]:
    install = "install KubeRay 1.6 or later: helm install kuberay-operator kuberay-operator --repo https://ray-project.github.io/kuberay-helm"
    try:
        client.rest.get(f"/apis/{RAY_GROUP}/{RAY_VERSION_API}")
    except MissingKindError:
        yield Finding(BAD, "KubeRay", f"the cluster does not know RayClusters ({RAY_GROUP}/{RAY_VERSION_API})", install)
        return
    try:
        found, _ = client.rest.items("/apis/apps/v1/deployments", labelSelector="app.kubernetes.io/name=kuberay-operator")
    except ForbiddenError:
        yield Finding(GOOD, "KubeRay", "RayClusters are known")
        return
    running = [item for item in map(Job, found) if item.number("status", "readyReplicas")]
    if running:
        yield Finding(GOOD, "KubeRay", f"runs in namespace {running[0].namespace}")
    else:
        yield Finding(
            UNKNOWN, "KubeRay", "RayClusters are known, but no operator of KubeRay's chart was found", "see whether it runs"
        )


def _rights(client: FinetuneClient) -> Iterator[Finding]:
    for purpose, needed in RIGHTS:
        missing = [f"{verb} {resource}" for verb, group, resource in needed if not _may(client, verb, group, resource)]
        if not missing:
            yield Finding(GOOD, "Rights", f"you may {purpose} in namespace {client.namespace}")
            continue
        essential = "jobs" in purpose
        to_do = (
            f"ask the administrator for these rights in namespace {client.namespace}; the ClusterRole `edit` has the first ones"
        )
        yield Finding(BAD if essential else UNKNOWN, "Rights", f"you may not {purpose}: {', '.join(missing)}", to_do)


def _may(client: FinetuneClient, verb: str, group: str, resource: str) -> bool:
    kind, _, inner = resource.partition("/")
    wanted = {"namespace": client.namespace, "verb": verb, "group": group, "resource": kind} | (
        {"subresource": inner} if inner else {}
    )
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": wanted},
    }
    answer = client.rest.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
    return Job(answer).read("status", "allowed") is True


def _storage(client: FinetuneClient) -> Iterator[Finding]:
    try:
        found, _ = client.rest.items("/apis/storage.k8s.io/v1/storageclasses")
    except ForbiddenError:
        yield Finding(
            UNKNOWN, "Storage", "you may not list storage classes", "ask the administrator which `output.storageClassName` to use"
        )
        return
    names = sorted(Job(item).name for item in found)
    default = [Job(item).name for item in found if Job(item).read("metadata", "annotations", DEFAULT_CLASS) == "true"]
    if default:
        yield Finding(GOOD, "Storage", f"{', '.join(names)}; {default[0]} is the default")
    elif names:
        to_do = f"name one in `output.storageClassName`: {', '.join(names)}"
        yield Finding(UNKNOWN, "Storage", "no storage class is the default: an output claim without one stays unbound", to_do)
    else:
        to_do = "install a provisioner, or name an existing claim in `output.persistentVolumeClaim`"
        yield Finding(BAD, "Storage", "there is no storage class: no output claim can be made", to_do)


def _accelerators(client: FinetuneClient) -> Iterator[Finding]:
    try:
        nodes, _ = client.rest.items("/api/v1/nodes")
    except ForbiddenError:
        yield Finding(
            UNKNOWN, "Accelerators", "you may not list nodes", "ask the administrator which `spec.accelerator` there is"
        )
        return
    counts: dict[str, int] = {}
    for resource, name in ACCELERATORS.items():
        offered = [str(Job(node).read("status", "allocatable", resource) or "0") for node in nodes]
        if total := sum(int(text) for text in offered if text.isdigit()):
            counts[name] = total
    if counts:
        words = ", ".join(f"{count} of {name}" for name, count in counts.items())
        yield Finding(GOOD, "Accelerators", f"{words}, on {_nodes(nodes)}")
    else:
        to_do = "for device GPU install the device plugin of your GPUs (docs/intel.md)"
        yield Finding(GOOD, "Accelerators", f"no GPU is offered by {_nodes(nodes)}: jobs need device CPU", to_do)


def _nodes(nodes: list[Object]) -> str:
    return "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"


def _kueue(client: FinetuneClient) -> Iterator[Finding]:
    try:
        client.rest.get(KUEUE)
        yield Finding(GOOD, "Kueue", "is installed: a job with the label kueue.x-k8s.io/queue-name waits in its queue")
    except MissingKindError:
        yield Finding(GOOD, "Kueue", "is not installed, and not needed: jobs start as soon as there is room")
