"""Environment variables that no job may set, whatever the policy allows: each would undo something that the policy holds.

With a variable alone a pod can be made to run a file as code, to trust another server with its token, or to use what it
was not given. The rules (CEL) are made from the same words as the check in Python, so neither knows one that the other
does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.base import Rules


@dataclass(frozen=True)
class Refused:
    """A kind of variable."""

    message: str
    """What such a variable would do, and what there is instead."""
    names: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    """What a name has anywhere in it."""
    endings: tuple[str, ...] = ()
    except_for: tuple[str, ...] = ()
    """Names with one of the prefixes that do no harm."""

    def includes(self, name: str) -> bool:
        """Whether a variable of this name is of this kind."""
        if name in self.except_for:
            return False
        affixes = name.startswith(self.prefixes) or name.endswith(self.endings)
        return affixes or name in self.names or any(part in name for part in self.parts)

    @property
    def rule(self) -> str:
        """The rule that a name is not of this kind."""
        conditions = [f"self in {list(self.names)}"] if self.names else []
        calls = {"startsWith": self.prefixes, "contains": self.parts, "endsWith": self.endings}
        # one call for each word: the API server cannot estimate the cost of a loop over words
        conditions += [f"self.{call}('{word}')" for call, words in calls.items() for word in words]
        none = " && ".join(f"!({condition})" for condition in conditions)
        return f"self in {list(self.except_for)} || ({none})" if self.except_for else none


REFUSED = (
    Refused(
        "the operator sets HF_HOME, HF_TOKEN, HUGGING_FACE_HUB_TOKEN, POD_NAME and names that begin with FINETUNE_, KUBERAY_, "
        "KUBERNETES_ or RAY_; a hub token goes into model.tokenSecretRef",
        names=("HF_HOME", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "POD_NAME"),
        prefixes=("FINETUNE_", "KUBERAY_", "KUBERNETES_", "RAY_"),
    ),
    Refused(
        "no job may set a variable that makes programs run a file as code or load a library; what jobs need of this kind is set "
        "in the image, or by the administrator for all jobs (trainer.defaults.env of the chart)",
        names=(
            "BASHOPTS", "BASH_ENV", "CCL_ROOT", "ENV", "GLIBC_TUNABLES", "HF_MODULES_CACHE", "HOME", "IFS", "I_MPI_GTOOL",
            "I_MPI_ROOT", "NCCL_CONF_FILE", "OPENSSL_CONF", "OPENSSL_ENGINES", "OPENSSL_MODULES", "PROMPT_COMMAND", "PS4",
            "SHELL", "SHELLOPTS", "TORCH_EXTENSIONS_DIR", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "ZE_ENABLE_ALT_DRIVERS",
        ),
        prefixes=("GIT_", "I_MPI_HYDRA_", "LD_", "PYTHON", "SYCL_OVERRIDE_", "XDG_"),
        parts=("INJECTION", "LIBRAR", "PLUGIN", "PRELOAD", "TRUST_REMOTE_CODE"),
        endings=("PATH",),
        except_for=("PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONUNBUFFERED"),
    ),
    Refused(
        "no job may set a variable that can send tokens to another server, or make pods trust one; the administrator sets "
        "those for all jobs (trainer.defaults.env of the chart), and for a proxy to the hub HTTPS_PROXY is enough",
        names=(
            "ALL_PROXY", "CURL_CA_BUNDLE", "HOSTALIASES", "HTTP_PROXY", "LOCALDOMAIN", "REQUESTS_CA_BUNDLE", "RESOLV_HOST_CONF",
            "RES_OPTIONS", "SSLKEYLOGFILE", "SSL_CERT_DIR", "SSL_CERT_FILE", "all_proxy", "grpc_proxy", "http_proxy",
        ),
        prefixes=("HUGGINGFACE_",),
        parts=("ENDPOINT", "STAGING"),
    ),
    Refused(
        "no job may set a variable that gives a container devices of the node that are not its own",
        names=("AMD_VISIBLE_DEVICES", "HABANA_VISIBLE_DEVICES"),
        prefixes=("NVIDIA_",),
    ),
)  # fmt: skip
"""HTTP_PROXY: KubeRay's probes and Ray's own requests are plain HTTP with the cluster's token. HTTPS_PROXY is not here: such
a proxy sees the name of a host only, as long as the pod trusts no other certificates."""

RULES: Rules = [{"rule": kind.rule, "message": kind.message} for kind in REFUSED]


def refusal_of(name: str) -> str | None:
    """Why no job may set a variable of this name, or None."""
    return next((kind.message for kind in REFUSED if kind.includes(name)), None)
