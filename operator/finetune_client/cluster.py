"""``finetune suspend``, ``resume``, ``cancel`` and ``retry``: commands for a job in a cluster.

The login is kubectl's: KUBECONFIG or ~/.kube/config, with its current context and namespace.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from finetune_operator.api.status import TERMINAL, Phase
from finetune_operator.constants import API_VERSION, GROUP, KIND, MAX_JOB_NAME, PLURAL, VERSION

Object = dict[str, Any]

CHANGES: dict[str, tuple[Object, str, str]] = {
    "suspend": ({"suspend": True}, "have a job write a checkpoint and give all its pods back", "will be suspended"),
    "resume": ({"suspend": False}, "let a suspended job resume from its checkpoint", "will resume"),
    "cancel": ({"cancel": True}, "end a job for good", "will be cancelled"),
}
"""Command → the change of the spec, its help text, and its message."""

FIELD_MANAGER = "finetune"
"""Who wrote a field, in managedFields."""

REQUEST_TIMEOUT_SECONDS = 30

_TOOLS = (
    "kubectl.kubernetes.io",
    "argocd.argoproj.io",
    "meta.helm.sh",
    "helm.sh",
    "fluxcd.io",
    "config.k8s.io",
    "cli-utils.sigs.k8s.io",
)
"""Domains whose labels and annotations say which tool keeps an object: a tool would delete the copy, or overwrite it."""
_TOOL_LABELS = frozenset({"app.kubernetes.io/instance", "app.kubernetes.io/managed-by"})
"""By the first Argo CD tells the objects of an application, by the second Helm its own."""


class ClusterError(Exception):
    """The cluster cannot be reached, or refuses; the message is for the user."""


def add_commands(commands: Any) -> None:
    """Add the commands to those of ``finetune``."""
    for name, (change, purpose, outcome) in CHANGES.items():
        parser = _add(commands, name, purpose)
        parser.set_defaults(run=lambda options, change=change, outcome=outcome: _change(options, change, outcome))
    purpose = "make a new job NAME-rN that takes up one that has failed or was cancelled, from its newest checkpoint"
    _add(commands, "retry", purpose).set_defaults(run=_retry)


def _add(commands: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
    parser.add_argument("job", metavar="NAME", help="name of the FinetuneJob")
    parser.add_argument("-n", "--namespace", metavar="NAMESPACE", help="its namespace (default: that of the context)")
    parser.add_argument("--context", metavar="CONTEXT", help="context of the kubeconfig (default: the current one)")
    return parser


def _change(options: argparse.Namespace, change: Object, outcome: str) -> int:
    """Merge into a job's spec.

    Raises:
        ClusterError: there is no such job, it has ended, or the cluster refuses or does not answer.
    """
    jobs = Jobs(options.context, options.namespace)
    phase = _phase(jobs.get(options.job))
    if phase in TERMINAL:
        retry = "" if phase is Phase.SUCCEEDED else f"; `finetune retry {options.job}` makes a new job that takes it up"
        raise ClusterError(f"finetunejob/{options.job} has ended already ({phase}), which is final{retry}")
    jobs.change(options.job, change)
    sys.stdout.write(f"finetunejob/{options.job} {outcome}\n")
    return 0


def _retry(options: argparse.Namespace) -> int:
    """Make the next job, under the first name that is free.

    Raises:
        ClusterError: there is no such job, it has not failed, or the cluster refuses or does not answer.
    """
    jobs = Jobs(options.context, options.namespace)
    old = jobs.get(options.job)
    phase = _phase(old)
    if phase is Phase.SUCCEEDED:
        raise ClusterError(f"finetunejob/{options.job} has succeeded: there is nothing to retry; apply a new job")
    if phase not in TERMINAL:
        raise ClusterError(
            f"finetunejob/{options.job} has not ended ({phase}): `finetune suspend` and `finetune resume` stop it and let it go "
            "on, `finetune cancel` ends it for good"
        )
    stem, number = stem_and_number(options.job, old["spec"].get("resumeFrom"))
    while not jobs.create(build_retry(old, retry_name(stem, number))):
        number += 1
    sys.stdout.write(f"finetunejob/{retry_name(stem, number)} created; it takes up {options.job}\n")
    return 0


def _phase(job: Object) -> Phase:
    return Phase((job.get("status") or {}).get("phase") or Phase.PENDING)


def stem_and_number(name: str, source: str | None) -> tuple[str, int]:
    """Of which name, and with which number, the next retry of a job is made.

    NAME-r1 is followed by NAME-r2 if it is itself a retry, which its source shows; a job may be called lora-r8, too.
    """
    found = re.fullmatch(r"(.+)-r([1-9][0-9]*)", name)
    if found is None or source is None:
        return name, 1
    stem = found[1]
    cut_off = source.startswith(stem) and len(source) + len(name) - len(stem) > MAX_JOB_NAME
    if source == stem or re.fullmatch(rf"{re.escape(stem)}-r[1-9][0-9]*", source) or cut_off:
        return stem, int(found[2]) + 1
    return name, 1


def retry_name(stem: str, number: int) -> str:
    """NAME-rN, held to the length that a job's name may have."""
    ending = f"-r{number}"
    return stem[: MAX_JOB_NAME - len(ending)].rstrip("-") + ending


def build_retry(old: Mapping[str, Any], name: str) -> Object:
    """The job that continues an earlier one: its spec, and its labels and annotations except those of tools."""
    given = old["metadata"]
    metadata = {"name": name, "namespace": given["namespace"]}
    for field in ("labels", "annotations"):
        if kept := {key: value for key, value in (given.get(field) or {}).items() if not _is_of_a_tool(key)}:
            metadata[field] = kept
    spec = {key: value for key, value in old["spec"].items() if key not in {"suspend", "cancel"}}
    spec["resumeFrom"] = given["name"]
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def _is_of_a_tool(key: str) -> bool:
    domain = key.partition("/")[0]
    return key in _TOOL_LABELS or any(domain == tool or domain.endswith(f".{tool}") for tool in _TOOLS)


class Jobs:
    """The FinetuneJobs of a namespace.

    Raises, in every method: ClusterError when the cluster refuses or does not answer.
    """

    def __init__(self, context: str | None, namespace: str | None) -> None:
        try:
            from kubernetes import client, config
        except ModuleNotFoundError:
            raise ClusterError("this needs the Kubernetes client: pip install 'finetune-operator[operator]'") from None
        file = os.environ.get("KUBECONFIG")
        options = client.Configuration()
        options.retries = False
        try:
            contexts, current = config.list_kube_config_contexts(file)  # type: ignore[no-untyped-call]
            chosen = next((item for item in contexts if item["name"] == context), current)
            api = config.new_client_from_config(file, context=context, client_configuration=options)  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            raise ClusterError(f"no cluster to talk to: {error} Set KUBECONFIG, or see `kubectl config`") from None
        self._host: str = options.host
        self._namespace: str = namespace or chosen["context"].get("namespace") or "default"
        self._api = client.CustomObjectsApi(api)

    def get(self, name: str) -> Object:
        """A job."""
        return self._call("get_namespaced_custom_object", name)

    def change(self, name: str, spec: Object) -> None:
        """Merge into a job's spec."""
        media = "application/merge-patch+json"
        self._call("patch_namespaced_custom_object", name, {"spec": spec}, field_manager=FIELD_MANAGER, _content_type=media)

    def create(self, job: Object) -> bool:
        """Create a job; False when there is one of that name."""
        from kubernetes.client.exceptions import ConflictException

        options = {"field_manager": FIELD_MANAGER, "field_validation": "Strict"}
        try:
            self._call("create_namespaced_custom_object", job, **options)
        except ClusterError as error:
            if isinstance(error.__cause__, ConflictException):
                return False
            raise
        return True

    def _call(self, method: str, *arguments: Any, **options: Any) -> Object:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        call: Callable[..., Object] = getattr(self._api, method)
        try:
            return call(GROUP, VERSION, self._namespace, PLURAL, *arguments, _request_timeout=REQUEST_TIMEOUT_SECONDS, **options)
        except ApiException as error:
            raise ClusterError(self._words(error)) from error
        except HTTPError as error:
            raise ClusterError(f"the API server at {self._host} does not answer: {error}") from error

    def _words(self, error: Any) -> str:
        """What a refusal means."""
        try:
            answer = json.loads(error.body)
        except (TypeError, ValueError):
            answer = {}
        named = (answer.get("details") or {}).get("name")
        if error.status == 404 and not named:
            return f"the cluster at {self._host} does not know FinetuneJobs: its CRD is not installed there"
        if error.status == 404:
            return f"there is no finetunejob/{named} in namespace {self._namespace}"
        return f"the API server says: {answer.get('message') or error.reason}"
