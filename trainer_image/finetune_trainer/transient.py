"""Which errors of an unknown kind may not occur again when the workers are restarted: lost connections and devices."""

from __future__ import annotations

import errno
import re

_NAMES = {"DistBackendError", "DistNetworkError", "DistStoreError"}
"""Exceptions of torch.distributed, which is not imported here."""

_NUMBERS = {
    errno.EIO,
    errno.ESTALE,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}
"""Error numbers of a network, or of a volume behind one."""

_WORDS = re.compile(
    r"gloo/transport|Connection (closed|reset|refused)|Timed out waiting|Socket Timeout|nccl\w*Error|NCCL error|oneCCL"
    r"|DEVICE_LOST|uncorrectable ECC|unspecified launch failure|illegal memory access|fallen off the bus"
)
"""What libraries of communication and drivers of devices write into a RuntimeError."""


def is_transient(error: BaseException) -> bool:
    """Whether an error of an unknown kind may be gone after a restart. Others, such as one of the model's code, recur."""
    kind = type(error)
    if kind.__module__.partition(".")[0] == "ray" or kind.__name__ in _NAMES or isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError):
        return error.errno in _NUMBERS
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None
