"""The `finetune` command line and `kubectl finetune` plugin, and the client that they are made of.

    from finetune_client import FinetuneClient

`AsyncFinetuneClient` is the same for asyncio. Both are imported when they are used: the command line starts without them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_client.aio import AsyncFinetuneClient
    from finetune_client.client import FinetuneClient
    from finetune_client.job import Change, Event, Job

__all__ = ["AsyncFinetuneClient", "Change", "Event", "FinetuneClient", "Job"]

_HOMES = {"AsyncFinetuneClient": "aio", "FinetuneClient": "client", "Change": "job", "Event": "job", "Job": "job"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
