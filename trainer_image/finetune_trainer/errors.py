"""The errors of the trainer, their exit codes and the reasons that the operator shows.

    TrainerError
    ├── ConfigError          2  InvalidSpec       the YAML file, or a value that does not fit the model
    ├── DatasetNotFound      3  DatasetNotFound   no such data file
    ├── DatasetInvalid       3  DatasetInvalid    rows that cannot be used, with file and line
    ├── ModelNotFound        4  ModelNotFound     no model or tokenizer under this name or in this folder
    ├── ModelAccessDenied    8  ModelAccessDenied the hub does not let this user download the model: it is gated or private
    ├── ModelInvalid         9  ModelInvalid      a file of the model is broken, or does not fit its config.json
    ├── DeviceNotFound       5  DeviceNotFound    the asked kind of device is missing
    ├── LossNotFinite        6  LossNotFinite     loss, gradients or weights became NaN or infinite
    ├── OutputNotWritable    7  TrainingFailed    the output folder is not writable
    │   ├── OutputVolumeFull 7  OutputVolumeFull  no space left below the output folder
    │   └── OutputInUse      7  TrainingFailed    another run, or a newer attempt at this one, has the output folder
    ├── TrainingFailed      10  TrainingFailed    anything else, which would occur again
    │   ├── Interrupted     10  TrainingFailed    a lost connection or device
    │   └── WorkerLost      10  WorkerLost        Ray lost a worker, and restarting all workers did not help
    ├── ExportInvalid       10  TrainingFailed    the files of the result are not the model that was trained
    ├── OutOfMemory         11  OutOfMemory       host or device memory is exhausted
    └── WorkerOOMKilled     11  WorkerOOMKilled   Ray ended a worker before its host's memory was exhausted

Exit code 1 is wrong usage of the command line. All of them can be pickled: they cross from Ray workers to the driver.
"""

from __future__ import annotations

import errno
import time
import traceback
from typing import TYPE_CHECKING, ClassVar, Literal

from finetune_trainer.redaction import redact
from finetune_trainer.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


FailureReason = Literal[
    "InvalidSpec",
    "DatasetNotFound",
    "DatasetInvalid",
    "ModelNotFound",
    "ModelAccessDenied",
    "ModelInvalid",
    "DeviceNotFound",
    "LossNotFinite",
    "OutputVolumeFull",
    "OutOfMemory",
    "WorkerOOMKilled",
    "WorkerLost",
    "TrainingFailed",
]
"""Why a run failed, as far as the trainer can tell. The names are reasons of a FinetuneJob's status."""

USAGE_EXIT_CODE = 1
"""Exit code of a command line that names no configuration or an unknown option."""


class TrainerError(Exception):
    """A failure that is explained to the user in a message, without a traceback."""

    reason: ClassVar[FailureReason] = "TrainingFailed"
    exit_code: ClassVar[int] = 10
    retryable: ClassVar[bool] = False
    """Whether the same run may succeed when its workers are restarted."""


class ConfigError(TrainerError):
    """The configuration is wrong. The exception holds all errors, one line each."""

    reason = "InvalidSpec"
    exit_code = 2

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__(self.errors)

    def __str__(self) -> str:
        return "\n".join(self.errors)


class DatasetNotFound(TrainerError):  # noqa: N818 - named after the reason in the job's status
    """There is no such data file."""

    reason = "DatasetNotFound"
    exit_code = 3


class DatasetInvalid(TrainerError):  # noqa: N818 - named after the reason in the job's status
    """Rows of a data file cannot be used."""

    reason = "DatasetInvalid"
    exit_code = 3


class ModelNotFound(TrainerError):  # noqa: N818 - named after the reason in the job's status
    """The base model or its tokenizer cannot be loaded."""

    reason = "ModelNotFound"
    exit_code = 4


class ModelAccessDenied(TrainerError):  # noqa: N818 - named after the reason in the job's status
    """The hub has the model, but does not let this user download it."""

    reason = "ModelAccessDenied"
    exit_code = 8


class ModelInvalid(TrainerError):  # noqa: N818 - named after the reason in the job's status
    """A file of the base model or its tokenizer is broken, or the weights do not match its config.json."""

    reason = "ModelInvalid"
    exit_code = 9


class DeviceNotFound(TrainerError):  # noqa: N818 - named after the reason in the job's status
    """The kind of device that the configuration asks for is missing."""

    reason = "DeviceNotFound"
    exit_code = 5


class LossNotFinite(TrainerError):  # noqa: N818 - named after the reason in the job's status
    """The loss, the gradients or the weights became NaN or infinite."""

    reason = "LossNotFinite"
    exit_code = 6


class OutputNotWritable(TrainerError):  # noqa: N818 - named after the reason in the job's status
    """The output folder is not writable."""

    exit_code = 7


class OutputVolumeFull(OutputNotWritable):
    """No space is left below the output folder."""

    reason = "OutputVolumeFull"


class OutputLost(OutputNotWritable):
    """The volume of the output folder has failed as a network does: it may be there again after a restart."""

    retryable = True


class OutputInUse(OutputNotWritable):
    """Another run, or a newer attempt at this one, has the output folder: this one writes nothing there."""


class TrainingFailed(TrainerError):  # noqa: N818 - named after the reason in the job's status
    """A failure of an unknown kind, such as an error of the model's code: it would occur again."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.time = time.time()
        """When it happened, in seconds since 1970: the first of several failures is the cause of the others."""


class Interrupted(TrainingFailed):
    """A failure of a connection or a device, which may be gone after a restart."""

    retryable = True


class ExportInvalid(TrainerError):  # noqa: N818 - it says what the export is
    """The files of the result do not give the model that was trained: they are not declared a result."""


class OutOfMemory(TrainerError):  # noqa: N818 - named after the reason in the job's status
    """The memory of the host or of the device is exhausted. That would happen again with the same configuration."""

    reason = "OutOfMemory"
    exit_code = 11


class WorkerLost(TrainingFailed):
    """Ray lost a worker's process or node."""

    reason = "WorkerLost"
    retryable = True


class WorkerOOMKilled(TrainerError):  # noqa: N818 - named after the reason in the job's status
    """Ray ended a worker because its host or pod was about to run out of memory. That would happen again."""

    reason = "WorkerOOMKilled"
    exit_code = 11


NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
"""Error numbers of a volume without space, and of a user whose quota is used up."""


MESSAGE_BYTES = 4096
"""Size of the message for a failure of an unknown kind: it becomes part of a job's status."""


def in_words(error: BaseException, who: str = "") -> TrainingFailed:
    """Describe a failure of an unknown kind: the error itself, then as many of the traceback's last lines as fit.

    Args:
        error: the failure.
        who: the process that failed, as a prefix.
    """
    head = redact(who + "".join(traceback.format_exception_only(error)).strip())
    head = head.encode()[: MESSAGE_BYTES // 2].decode(errors="ignore")
    lines = [redact(line) for line in traceback.format_tb(error.__traceback__)]
    while lines and len("\n".join((head, "".join(lines))).encode()) > MESSAGE_BYTES:
        del lines[0]
    kind = Interrupted if is_transient(error) else TrainingFailed
    return kind("\n".join((head, "".join(lines))).rstrip())


def output_error(folder: Path, error: OSError) -> OutputNotWritable:
    """Say what is wrong with the output folder."""
    if error.errno in NO_SPACE:
        return OutputVolumeFull(f"{folder}: no space left on the output volume")
    if is_transient(error):
        return OutputLost(f"{folder}: the volume of the output folder does not answer: {error.strerror or error}")
    return OutputNotWritable(f"{folder}: the output folder is not writable: {error.strerror or error}")
