"""Where the master keys of the Ray tokens come from: a file, or a Secret that the operator makes once for itself.

A chart cannot make a key: `helm template` and Argo CD render without a look at the cluster, so that each rendering would
bring another one, and the dashboards of running jobs would refuse the operator.
"""

from __future__ import annotations

import base64
import binascii
import logging
import secrets
from typing import Any

from finetune_operator.clients.kube import SECRETS, KubeClient
from finetune_operator.constants import FIELD_MANAGER, MANAGED_BY_LABEL
from finetune_operator.desired.secrets import KeyRing
from finetune_operator.settings import Settings

logger = logging.getLogger(__name__)

SECRET_KEY = "key"  # noqa: S105 - the key's name, which is that of the file too
KEY_BYTES = 48
"""384 bits, 64 characters."""


async def load_keys(kube: KubeClient, settings: Settings) -> KeyRing:
    """The master keys.

    Raises:
        KubeError: the Secret can be neither read nor made.
        OSError: the file cannot be read.
        ValueError: there is no usable key in it.
    """
    if not settings.token_key_secret:
        return KeyRing.read(settings.token_key_file)
    namespace, name = settings.token_key_secret.split("/")
    found = await kube.get(SECRETS, namespace, name)
    if found is None:
        # of two operators that start together one creates it, and both read it: it is never written again
        if await kube.create(_new_secret(namespace, name)) is not None:
            logger.info("Secret %s/%s is made, with a new master key of the Ray tokens", namespace, name)
        found = await kube.get(SECRETS, namespace, name) or {}
    where = f"Secret {namespace}/{name}, key {SECRET_KEY},"
    try:
        text = base64.b64decode((found.get("data") or {}).get(SECRET_KEY) or "", validate=True)
    except binascii.Error:
        raise ValueError(f"{where} is not base64") from None
    return KeyRing.parse(text, where)


def _new_secret(namespace: str, name: str) -> dict[str, Any]:
    key = secrets.token_urlsafe(KEY_BYTES).encode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": {MANAGED_BY_LABEL: FIELD_MANAGER}},
        "type": "Opaque",
        "data": {SECRET_KEY: base64.b64encode(key).decode()},
    }
