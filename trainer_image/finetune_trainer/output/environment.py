"""Versions of the packages that took part in a run, and where it ran."""

from __future__ import annotations

import platform
from collections import Counter
from typing import TYPE_CHECKING

from finetune_trainer.versions import trainer_version, version_of

if TYPE_CHECKING:
    from finetune_trainer.tracking.progress import World


PACKAGES = ("torch", "transformers", "peft", "ray")
"""Packages whose versions are reported."""


def describe_environment(world: World) -> dict[str, str]:
    """Versions, workers, hosts and devices, as lines of a table."""
    hosts = Counter(world.hosts)
    return {
        "Trainer": trainer_version(),
        "Python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES},
        "Workers": f"{world.size}, {world.strategy} over {world.backend}" if world.backend else str(world.size),
        "Hosts": ", ".join(f"{host} × {count}" if count > 1 else host for host, count in hosts.items()),
        "Devices": ", ".join(f"{name} × {count}" if count > 1 else name for name, count in Counter(world.devices).items()),
    }
