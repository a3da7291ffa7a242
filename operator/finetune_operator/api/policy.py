"""What an administrator allows: the operator's own half of it. The chart's ValidatingAdmissionPolicy holds the same.

The defaults are those of the chart's values.yaml, which a test compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_operator.api.base import Model
from finetune_operator.api.pods import PodOptions
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.api.variables import refusal_of

Pattern = Annotated[str, StringConstraints(max_length=317, pattern=r"^[^*]*\*?$")]
"""A name, or the beginning of names and ``*``. ``*`` alone allows all but those of the system."""

SYSTEM_PRIORITY_CLASSES = ("system-",)
"""Pods with one of these classes evict those that keep a node or the cluster alive."""

SYSTEM_TAINTS = ("node-role.kubernetes.io/", "node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
"""Taints of control planes, and of nodes that are not fit for pods. No key at all, which tolerates every taint, counts as
one of them."""

VARIABLES = (
    "HF_*", "TRANSFORMERS_*", "TOKENIZERS_*",
    "OMP_*", "KMP_*", "GOMP_*", "MKL_*", "ONEDNN_*", "DNNL_*", "OPENBLAS_*", "MALLOC_*",
    "NCCL_*", "TORCH_NCCL_*", "GLOO_*", "CCL_*", "I_MPI_*", "FI_*",
    "SYCL_*", "ZE_*", "ZES_*", "UR_L0_*", "ONEAPI_DEVICE_SELECTOR",
    "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_CPP_LOG_LEVEL", "TORCH_DISTRIBUTED_DEBUG", "TORCH_LOGS",
    "TORCH_SHOW_CPP_STACKTRACES",
    "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy",
    "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "LANG", "LC_*", "TZ",
)  # fmt: skip
"""By line: the hub and its libraries, threads and arithmetic of CPUs, collectives and networks, Intel GPUs, NVIDIA GPUs,
PyTorch, the way to the hub, Python and the language. Prefixes are of libraries whose dangerous variables `api.variables`
refuses; where most variables of a library are dangerous, single names are listed."""

ANNOTATIONS = (
    "cluster-autoscaler.kubernetes.io/safe-to-evict",
    "karpenter.sh/do-not-disrupt",
    "kueue.x-k8s.io/*",
    "prometheus.io/*",
)
"""An annotation is an order to whatever controller knows it (roles of clouds, networks, sidecars), so no list of bad ones
is ever complete."""

TOKEN_SECRETS = ("hf-*", "hub-*", "huggingface-*")
"""A name is all that can be checked: neither an admission policy nor the operator may read a Secret's labels."""


class Limits(Model):
    """What is allowed in a namespace."""

    allow_remote_code: bool = False
    """Whether a model may bring code of its own."""
    allowed_image_prefixes: tuple[str, ...] = ()
    """With what spec.image may begin; none means anything."""
    allowed_variables: tuple[Pattern, ...] = VARIABLES
    """Environment variables that jobs may set."""
    allowed_priority_classes: tuple[Pattern, ...] = ("*",)
    """Priority classes of pods."""
    allowed_tolerations: tuple[Pattern, ...] = ("*",)
    """Keys of taints that may be tolerated; the empty one stands for all taints."""
    allowed_annotations: tuple[Pattern, ...] = ANNOTATIONS
    """Keys of annotations of pods."""
    allowed_token_secrets: tuple[Pattern, ...] = TOKEN_SECRETS
    """Secrets that may be a job's hub token."""


class Policy(Limits):
    """What the administrator allows, here and in single namespaces."""

    namespaces: dict[str, Limits] = Field(default_factory=dict)
    """Namespace → what is different there."""

    def of(self, namespace: str) -> Limits:
        """What is allowed in a namespace: its own word, and where it has none, that for all."""
        here = self.namespaces.get(namespace, Limits())
        return self.model_copy(update={name: getattr(here, name) for name in here.model_fields_set})

    def refusals(self, job: FinetuneJob) -> Iterator[str]:
        """What a job asks for and is not allowed, one sentence each."""
        limits, spec = self.of(job.metadata.namespace), job.spec
        if spec.config.general.config.trust_remote_code and not limits.allow_remote_code:
            yield (
                "config.General.config.trust_remote_code: the administrator does not allow models that bring code of their own"
            )
        prefixes = limits.allowed_image_prefixes
        if spec.image and prefixes and not spec.image.startswith(prefixes):
            yield f"image: the administrator allows images that begin with {', '.join(prefixes)}"
        for where, source in (("dataset", spec.dataset), ("model", spec.model)):
            secret = source.token_secret_ref if source else None
            if secret and not allows(limits.allowed_token_secrets, secret.name):
                yield _refusal(f"{where}.tokenSecretRef.name", secret.name, "allowedTokenSecrets", limits.allowed_token_secrets)
        yield from self.pod_refusals(job)

    def pod_refusals(self, job: FinetuneJob) -> Iterator[str]:
        """What its pods ask for and are not allowed: the part of a job that may change between two attempts."""
        limits = self.of(job.metadata.namespace)
        for where, options in (("head", job.spec.head), ("workers", job.spec.workers)):
            if options:
                yield from _of_pods(where, options, limits)


def _of_pods(where: str, options: PodOptions, limits: Limits) -> Iterator[str]:
    for variable in options.env or ():
        if why := refusal_of(variable.name):
            yield f"{where}.env: {variable.name} is refused; {why}"
        elif not allows(limits.allowed_variables, variable.name):
            yield _refusal(f"{where}.env", variable.name, "allowedVariables", limits.allowed_variables)
    classes = [options.priority_class_name] if options.priority_class_name else []
    taints = [toleration.key or "" for toleration in options.tolerations or ()]
    for field, names, key, patterns, system in (
        ("priorityClassName", classes, "allowedPriorityClasses", limits.allowed_priority_classes, SYSTEM_PRIORITY_CLASSES),
        ("tolerations", taints, "allowedTolerations", limits.allowed_tolerations, SYSTEM_TAINTS),
        ("annotations", options.annotations or (), "allowedAnnotations", limits.allowed_annotations, ()),
    ):
        refused = [name for name in names if not allows(patterns, name, system)]
        yield from (_refusal(f"{where}.{field}", name or "every taint", key, patterns) for name in refused)


def allows(patterns: Iterable[str], name: str, system: tuple[str, ...] = ()) -> bool:
    """Whether a name is allowed; those that begin as one of the system's have to be allowed by more than ``*``."""
    of_system = not name or name.startswith(system)
    return any(
        not of_system if pattern == "*" else name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in patterns
    )


def _refusal(where: str, name: str, key: str, patterns: tuple[str, ...]) -> str:
    words = ", ".join(patterns) or "none"
    hint = "; * does not include those of the system" if "*" in patterns else ""
    return f"{where}: {name} is not allowed by the administrator's policy.{key}: {words}{hint}"
