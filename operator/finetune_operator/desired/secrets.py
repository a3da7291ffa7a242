"""The Ray token of a job: recomputed from a master key, so the operator needs no right to read Secrets."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.constants import KEY_ANNOTATION, TOKEN_SECRET_KEY
from finetune_operator.desired import naming


@dataclass(frozen=True, repr=False)
class KeyRing:
    """Master keys, the current one first; older keys belong to clusters that were created with them."""

    keys: tuple[bytes, ...]

    @classmethod
    def read(cls, path: Path) -> KeyRing:
        """Read one key a line.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no key, or one of fewer than 32 characters.
        """
        keys = tuple(line.strip() for line in path.read_bytes().splitlines() if line.strip())
        if not keys or any(len(key) < 32 for key in keys):
            raise ValueError(f"{path} must hold master keys of at least 32 characters, one a line")
        return cls(keys)

    @property
    def current_id(self) -> str:
        """Id of the key that new clusters get."""
        return _key_id(self.keys[0])

    def token(self, job_uid: str) -> str:
        """The Ray token of a job's new cluster: HMAC-SHA256(key, UID) in hex, of the current key."""
        return _token(self.keys[0], job_uid)

    def token_of(self, job_uid: str, key_id: str | None) -> str | None:
        """The Ray token of a cluster that names its key; None: it names no key of this ring, and no other key gives its token."""
        return next((_token(key, job_uid) for key in self.keys if _key_id(key) == key_id), None)


def _token(key: bytes, job_uid: str) -> str:
    return hmac.new(key, job_uid.encode(), hashlib.sha256).hexdigest()


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"finetune-operator key id\0" + key).hexdigest()[:12]


def build_token_secret(job: FinetuneJob, keys: KeyRing) -> dict[str, Any]:
    """The Secret that KubeRay and Ray read the token from."""
    metadata = naming.metadata(job, naming.secret_name(job, keys.current_id)) | {"annotations": {KEY_ANNOTATION: keys.current_id}}
    token = base64.b64encode(keys.token(job.metadata.uid).encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "immutable": True,
        "data": {TOKEN_SECRET_KEY: token},
    }
