"""Optional packages of Intel's, for a torch that they were built for. Nothing here is required, and both are archived.

Each is built for one minor release of torch. With another one its import ends in an error of its own making, or loads a
library that does not fit. So versions are compared before anything is imported.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

CCL_ENVIRONMENT = {"CCL_WORKER_COUNT": "1", "CCL_ZE_IPC_EXCHANGE": "sockets", "FI_PROVIDER": "tcp"}
"""Defaults of llm-on-ray for oneCCL, without its FI_TCP_IFACE=lo, with which no two hosts find each other."""


@dataclass(frozen=True)
class Package:
    """An optional package: what it is called where, and how it is turned off."""

    distribution: str
    module: str
    switch: str
    """Environment variable; with the value 0 the package is left alone."""


IPEX = Package("intel-extension-for-pytorch", "intel_extension_for_pytorch", "FINETUNE_IPEX")
CCL = Package("oneccl-bind-pt", "oneccl_bindings_for_pytorch", "FINETUNE_CCL")


@dataclass(frozen=True)
class Found:
    """What has become of a package."""

    module: Any | None = None
    """None: it is not used."""
    note: str = ""
    """A line for the log; empty: it is not installed, or turned off."""


def find(package: Package, environment: dict[str, str] | None = None) -> Found:
    """Import a package if it is there, not turned off, and built for this torch.

    Args:
        package: which one.
        environment: variables that it reads, and that are set for it unless they are set already.
    """
    if os.environ.get(package.switch) == "0":
        return Found()
    try:
        version = metadata.version(package.distribution)
    except metadata.PackageNotFoundError:
        return Found()
    name = f"{package.distribution} {version}"
    if _minor(version) != _minor(torch.__version__):
        return Found(note=f"{name} is not used: it is for torch {_minor(version)}, and this is torch {torch.__version__}")
    missing = {key: value for key, value in (environment or {}).items() if key not in os.environ}
    os.environ.update(missing)
    try:
        with _logging_as_it_is():
            return Found(importlib.import_module(package.module), f"{name} is used")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, training goes on without
        for key in missing:
            del os.environ[key]
        return Found(note=f"{name} is not used: its import fails: {error or type(error).__name__}")


def use_ipex(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Let IPEX replace what it has a faster kernel for, on a CPU: its import does so for autocast, and `optimize` for the
    steps of SGD, Adagrad and Adam.

    Weights stay as they are: with packed or split ones the names in checkpoints and exports would be others.

    Args:
        model: in training mode, its weights not sharded.
        optimizer: before its first step.

    Returns:
        A line for the log; empty: IPEX is not installed, or turned off.
    """
    ipex = find(IPEX)
    if ipex.module is not None:
        # Its kernel calls one that has a gradient, of which torch knows nothing: tests/trainer/test_intel.py compares losses.
        warnings.filterwarnings("ignore", "aten::layer_norm: an autograd kernel was not registered")
        options = {"weights_prepack": False, "split_master_weight_for_bf16": False}
        with _silent("IPEX"):
            ipex.module.optimize(model, optimizer=optimizer, inplace=True, **options)
    return ipex.note


def find_ccl() -> Found:
    """Import oneCCL's bindings, which make a backend of torch.distributed known: `ccl`."""
    return find(CCL, CCL_ENVIRONMENT)


def _minor(version: str) -> str:
    """2.8 of 2.8.0+cpu."""
    return ".".join(version.split(".")[:2])


@contextmanager
def _logging_as_it_is() -> Iterator[None]:
    """IPEX makes itself the class of all loggers, and gives the root one a handler: every line would come twice."""
    kind, handlers = logging.getLoggerClass(), list(logging.root.handlers)
    try:
        yield
    finally:
        logging.setLoggerClass(kind)
        logging.root.handlers[:] = handlers


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Hold back what a logger says: `optimize` calls its own defaults deprecated."""
    logger = logging.getLogger(name)
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
