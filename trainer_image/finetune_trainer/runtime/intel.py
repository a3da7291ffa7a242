"""Intel's optional packages. Neither is required, and both are archived.

Each is built for one minor release of torch. With another one its import fails, or loads an incompatible library. So
versions are compared before anything is imported.
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
    """An optional package: its names, and how it is turned off."""

    distribution: str
    module: str
    switch: str
    """Environment variable; with the value 0 the package is not used."""


IPEX = Package("intel-extension-for-pytorch", "intel_extension_for_pytorch", "FINETUNE_IPEX")
CCL = Package("oneccl-bind-pt", "oneccl_bindings_for_pytorch", "FINETUNE_CCL")


@dataclass(frozen=True)
class Found:
    """The outcome of looking for a package."""

    module: Any | None = None
    """The imported module; None: the package is not used."""
    note: str = ""
    """A line for the log; empty: it is not installed, or turned off."""


def find(package: Package, environment: dict[str, str] | None = None) -> Found:
    """Import a package if it is installed, not turned off, and built for this torch.

    Args:
        package: which one.
        environment: variables for the package, which are set unless they are set already.
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
    except (Exception, SystemExit) as error:  # noqa: BLE001 - training continues without the package, whatever the error
        for key in missing:
            del os.environ[key]
        return Found(note=f"{name} is not used: its import fails: {error or type(error).__name__}")


def use_ipex(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Let IPEX use its faster kernels on a CPU: its import does so for autocast, and `optimize` for the steps of SGD,
    Adagrad and Adam.

    Weights are not changed: packed or split weights would have other names in checkpoints and exports.

    Args:
        model: in training mode, its weights not sharded.
        optimizer: before its first step.

    Returns:
        A line for the log; empty: IPEX is not installed, or turned off.
    """
    ipex = find(IPEX)
    if ipex.module is not None:
        # torch does not know the gradient of its kernel, but the gradient is right: tests/trainer/test_intel.py compares losses.
        warnings.filterwarnings("ignore", "aten::layer_norm: an autograd kernel was not registered")
        options = {"weights_prepack": False, "split_master_weight_for_bf16": False}
        with _silent("IPEX"):
            ipex.module.optimize(model, optimizer=optimizer, inplace=True, **options)
    return ipex.note


def find_ccl() -> Found:
    """Import oneCCL's bindings, which register the backend `ccl` with torch.distributed."""
    return find(CCL, CCL_ENVIRONMENT)


def _minor(version: str) -> str:
    """Major and minor version: 2.8 for 2.8.0+cpu."""
    return ".".join(version.split(".")[:2])


@contextmanager
def _logging_as_it_is() -> Iterator[None]:
    """Restore logging after the import: IPEX replaces the class of loggers and adds a root handler, which prints lines twice."""
    kind, handlers = logging.getLoggerClass(), list(logging.root.handlers)
    try:
        yield
    finally:
        logging.setLoggerClass(kind)
        logging.root.handlers[:] = handlers


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Disable a logger: `optimize` warns that its own defaults are deprecated."""
    logger = logging.getLogger(name)
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
