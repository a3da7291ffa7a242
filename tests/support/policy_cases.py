"""Ways around the administrator's policy: what a job asks for, what it may ask for instead, and the words of the refusal.

The operator (`tests/unit/test_policy.py`) and the admission policy (`tests/api/test_policy.py`) are shown the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One way around a limit."""

    name: str
    refused: Spec
    accepted: Spec
    key: str
    """The key of the policy that forbids it."""
    shown: str
    """What of the job the message names."""
    policy: Spec
    """What the administrator has set, beyond the defaults."""


def env(*names: str) -> Spec:
    """Worker pods with these variables."""
    return {"workers": {"env": [{"name": name, "value": "x"} for name in names]}}


def tolerate(**toleration: Any) -> Spec:
    """Head pods that tolerate this."""
    return {"head": {"tolerations": [toleration]}}


def annotate(*keys: str) -> Spec:
    """Worker pods with these annotations."""
    return {"workers": {"annotations": dict.fromkeys(keys, "x")}}


def token(name: str) -> Spec:
    """A hub token of this Secret."""
    return {"model": {"tokenSecretRef": {"name": name}}}


def priority(name: str) -> Spec:
    """Head pods of this class."""
    return {"head": {"priorityClassName": name}}


NARROW: Spec = {
    "allowedVariables": ["NCCL_*", "TZ"],
    "allowedPriorityClasses": ["training", "batch-*"],
    "allowedTolerations": ["dedicated"],
    "allowedAnnotations": [],
    "allowedTokenSecrets": ["team-token"],
}
WIDE: Spec = {
    "allowedVariables": ["*"],
    "allowedPriorityClasses": ["*", "system-node-critical"],
    "allowedTolerations": ["*", "", "node.kubernetes.io/*"],
    "allowedAnnotations": ["*"],
    "allowedTokenSecrets": ["*"],
}

DEFAULT_CASES = (
    Case("a variable of nobody's library", env("EVIL_HOOK"), env("NCCL_DEBUG"), "allowedVariables", "EVIL_HOOK", {}),
    Case("a variable beside good ones", env("OMP_NUM_THREADS", "EVIL"), env("OMP_NUM_THREADS"), "allowedVariables", "EVIL", {}),
    Case("a name that only ends well", env("MY_HF_HOME"), env("HF_HUB_OFFLINE"), "allowedVariables", "MY_HF_HOME", {}),
    Case("a single name is no prefix", env("TZDIR"), env("TZ"), "allowedVariables", "TZDIR", {}),
    Case("pods that evict the node's own", priority("system-node-critical"), priority("high"), "allowedPriorityClasses",
         "system-node-critical", {}),
    Case("every taint", tolerate(operator="Exists"), tolerate(key="dedicated", operator="Exists"), "allowedTolerations", "", {}),
    Case("every taint of an effect", tolerate(key="", operator="Exists", effect="NoExecute"),
         tolerate(key="gpu", operator="Exists", effect="NoExecute"), "allowedTolerations", "", {}),
    Case("the control plane", tolerate(key="node-role.kubernetes.io/control-plane", operator="Exists"),
         tolerate(key="node-role", operator="Exists"), "allowedTolerations", "node-role.kubernetes.io/control-plane", {}),
    Case("a role of a cloud", annotate("iam.amazonaws.com/role"), annotate("prometheus.io/scrape"), "allowedAnnotations",
         "iam.amazonaws.com/role", {}),
    Case("another network", annotate("k8s.v1.cni.cncf.io/networks"), annotate("karpenter.sh/do-not-disrupt"),
         "allowedAnnotations", "k8s.v1.cni.cncf.io/networks", {}),
    Case("any Secret", token("database-password"), token("hf-token"), "allowedTokenSecrets", "database-password", {}),
)  # fmt: skip

SET_CASES = (
    Case("a variable left out of the list", env("HF_HUB_OFFLINE"), env("NCCL_DEBUG", "TZ"), "allowedVariables",
         "HF_HUB_OFFLINE", NARROW),
    Case("a class left out of the list", priority("high"), priority("batch-night"), "allowedPriorityClasses", "high", NARROW),
    Case("a class longer than the one allowed", priority("training-high"), priority("training"), "allowedPriorityClasses",
         "training-high", NARROW),
    Case("a taint left out of the list", tolerate(key="gpu", operator="Exists"), tolerate(key="dedicated", operator="Exists"),
         "allowedTolerations", "gpu", NARROW),
    Case("an annotation where none is allowed", annotate("prometheus.io/scrape"), {}, "allowedAnnotations",
         "prometheus.io/scrape", NARROW),
    Case("a Secret left out of the list", token("hf-token"), token("team-token"), "allowedTokenSecrets", "hf-token", NARROW),
    Case("a class of the system that is not named", priority("system-cluster-critical"), priority("system-node-critical"),
         "allowedPriorityClasses", "system-cluster-critical", WIDE),
    Case("a taint of the system that is not named", tolerate(key="node-role.kubernetes.io/master", operator="Exists"),
         tolerate(operator="Exists"), "allowedTolerations", "node-role.kubernetes.io/master", WIDE),
)  # fmt: skip

NULLS: Spec = {
    "model": {"tokenSecretRef": None},
    "head": None,
    "workers": {"env": None, "tolerations": None, "annotations": None, "priorityClassName": None},
}
"""Null where something may be left out: it asks for nothing."""

HARMLESS: tuple[Spec, ...] = (
    env("OMP_NUM_THREADS", "KMP_AFFINITY", "ONEDNN_MAX_CPU_ISA", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"),
    env("HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM", "HF_XET_HIGH_PERFORMANCE"),
    env(
        "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "TORCH_NCCL_BLOCKING_WAIT", "GLOO_SOCKET_IFNAME", "CCL_WORKER_COUNT", "CCL_LOG_LEVEL"
    ),
    env("I_MPI_FABRICS", "FI_PROVIDER", "SYCL_CACHE_PERSISTENT", "ZE_AFFINITY_MASK", "ZE_FLAT_DEVICE_HIERARCHY"),
    env("UR_L0_USE_IMMEDIATE_COMMANDLISTS", "ONEAPI_DEVICE_SELECTOR", "CUDA_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF"),
    env("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "PYTHONUNBUFFERED", "PYTHONHASHSEED", "LANG", "LC_ALL", "TZ"),
)
"""What ordinary users set, and may under the defaults."""

DANGEROUS = (
    "PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONPYCACHEPREFIX", "PYTHONINSPECT", "PYTHONWARNINGS",
    "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "BASH_ENV", "ENV", "PATH", "HOME", "SHELLOPTS", "GCONV_PATH", "GLIBC_TUNABLES",
    "OMP_TOOL_LIBRARIES", "NCCL_NET_PLUGIN", "NCCL_TUNER_PLUGIN", "NCCL_CONF_FILE", "FI_PROVIDER_PATH", "CCL_MPI_LIBRARY_PATH",
    "I_MPI_PMI_LIBRARY", "I_MPI_HYDRA_BOOTSTRAP_EXEC", "SYCL_OVERRIDE_PI_OPENCL", "ZE_ENABLE_ALT_DRIVERS",
    "CUDA_INJECTION64_PATH",
    "HF_MODULES_CACHE", "HF_DATASETS_TRUST_REMOTE_CODE", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_EXTENSIONS_DIR",
    "HF_ENDPOINT", "HF_INFERENCE_ENDPOINT", "HUGGINGFACE_CO_STAGING", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME",
    "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "SSLKEYLOGFILE",
    "RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_RUNTIME_ENV_HOOK", "KUBERAY_GEN_RAY_START_CMD", "FINETUNE_CONFIG_SHA256",
    "NVIDIA_VISIBLE_DEVICES",
)  # fmt: skip
"""Refused by name, whatever the policy allows."""
