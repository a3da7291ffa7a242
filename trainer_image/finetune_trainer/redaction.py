"""Keep secrets out of everything that is printed, logged or reported."""

from __future__ import annotations

import os
import re

REDACTED = "[redacted]"

MIN_SECRET = 6
"""Length of the shortest value that counts as a secret: `TOKEN=1` must not redact every 1."""

_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY)$", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


def redact(text: str) -> str:
    """Redact the values of variables such as HF_TOKEN and RAY_AUTH_TOKEN, and everything that looks like a hub token."""
    secrets = {value for name, value in os.environ.items() if len(value) >= MIN_SECRET and _SECRET_NAME.search(name)}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return _HUB_TOKEN.sub(REDACTED, text)
