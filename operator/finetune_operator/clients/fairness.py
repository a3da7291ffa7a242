"""Whose turn it is: the namespaces take turns, so that none waits for the many jobs of another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from finetune_operator.clients.cache import Key


class FairQueue:
    """Keys that wait, each once."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, dict[Key, None]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting.get(key[0], {})

    def add(self, key: Key) -> None:
        """Wait behind the other keys of the namespace."""
        self._waiting.setdefault(key[0], {})[key] = None

    def discard(self, key: Key) -> None:
        """Wait no more."""
        keys = self._waiting.get(key[0], {})
        keys.pop(key, None)
        if not keys:
            self._waiting.pop(key[0], None)

    def take(self, may: Callable[[str], bool]) -> Key | None:
        """The next key of a namespace that may have another turn; its namespace is the last one then. None: there is none."""
        namespace = next(filter(may, self._waiting), None)
        if namespace is None:
            return None
        keys = self._waiting[namespace]
        key = next(iter(keys))
        self._waiting.move_to_end(namespace)
        self.discard(key)
        return key
