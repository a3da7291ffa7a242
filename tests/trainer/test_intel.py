"""Intel's optional packages: what is asked of them, and that nothing needs them. A fake package lies on the path of
imports; where the real IPEX is installed (`make intel`), a run with it learns what one without it learns."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import pytest
import torch

from finetune_trainer.errors import DeviceNotFound
from finetune_trainer.runtime import devices, intel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.trainer import Command

    Install = Callable[[intel.Package, str, str], None]

MATCHING = ".".join(torch.__version__.split(".")[:2]) + ".0+cpu"
RECORDS = "asked = []\ndef optimize(model, **options):\n    asked.append(options)\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package: which one, its version, the text of its module."""
    for name in (intel.IPEX.switch, intel.CCL.switch, "FI_TCP_IFACE", *intel.CCL_ENVIRONMENT):
        # Set and then removed, so that what is set in the test is gone after it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    modules = (intel.IPEX.module, intel.CCL.module)
    before = {name: sys.modules.pop(name) for name in modules if name in sys.modules}
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def write(package: intel.Package, version: str, text: str) -> None:
        (folder / f"{package.module}.py").write_text(text)
        about = folder / f"{package.distribution.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.distribution}\nVersion: {version}\n")
        importlib.invalidate_caches()

    yield write
    for name in modules:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def test_package_for_another_torch_is_not_imported(install: Install, tmp_path: Path) -> None:
    install(intel.IPEX, "1.13.0", f"open({str(tmp_path / 'imported')!r}, 'w')")
    found = intel.find(intel.IPEX)
    assert found.module is None
    assert "1.13.0 is not used: it is for torch 1.13, and this is torch " + torch.__version__ in found.note
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("end", ["raise ImportError('undefined symbol')", "import sys; sys.exit('undefined symbol')"])
def test_import_that_fails_is_logged_and_undone(install: Install, end: str) -> None:
    install(intel.IPEX, MATCHING, end)
    found = intel.find(intel.IPEX)
    assert found.module is None
    assert found.note.endswith("is not used: its import fails: undefined symbol")


def test_package_that_is_turned_off_is_not_imported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(intel.IPEX, MATCHING, "raise SystemExit(1)")
    monkeypatch.setenv("FINETUNE_IPEX", "0")
    assert intel.find(intel.IPEX) == intel.Found()


def test_import_leaves_logging_as_it_is(install: Install) -> None:
    install(intel.IPEX, MATCHING, "import logging\nclass Own(logging.Logger): ...\nlogging.setLoggerClass(Own)\n"
                                  "logging.root.addHandler(logging.NullHandler())")  # fmt: skip
    before = (logging.getLoggerClass(), list(logging.root.handlers))
    assert intel.find(intel.IPEX).module is not None
    assert (logging.getLoggerClass(), logging.root.handlers) == before


def test_run_asks_ipex_for_faster_steps_and_leaves_the_weights_alone(install: Install, command: Command) -> None:
    install(intel.IPEX, MATCHING, RECORDS)
    outcome = command.change("Training", max_train_steps=1).run()
    assert outcome.code == 0, outcome.err
    (asked,) = sys.modules[intel.IPEX.module].asked
    assert type(asked.pop("optimizer")) is torch.optim.AdamW
    assert asked == {"inplace": True, "weights_prepack": False, "split_master_weight_for_bf16": False}
    said = (outcome.output / "logs" / "attempt-1" / "rank-0.log").read_text()
    assert f"intel-extension-for-pytorch {MATCHING} is used" in said


def test_gpu_needs_no_ipex(install: Install) -> None:
    install(intel.IPEX, MATCHING, RECORDS)
    layer = torch.nn.Linear(2, 2)
    devices.use_ipex(layer, torch.optim.SGD(layer.parameters()), torch.device("xpu", 0))
    assert intel.IPEX.module not in sys.modules


def test_cpu_without_oneccl_uses_gloo(install: Install) -> None:
    install(intel.IPEX, MATCHING, RECORDS)
    assert devices.group_backend("cpu") == "gloo"
    assert not set(intel.CCL_ENVIRONMENT) & set(os.environ)


def test_oneccl_joins_cpus_and_is_given_defaults(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(intel.CCL, MATCHING, "import os\nseen = dict(os.environ)")
    monkeypatch.setenv("CCL_WORKER_COUNT", "4")
    assert devices.group_backend("cpu") == "ccl"
    seen = sys.modules[intel.CCL.module].seen
    assert (seen["CCL_WORKER_COUNT"], seen["FI_PROVIDER"]) == ("4", "tcp")
    assert "FI_TCP_IFACE" not in seen


def test_oneccl_that_fails_leaves_gloo_and_the_environment(install: Install) -> None:
    install(intel.CCL, MATCHING, "raise OSError('libccl.so.1')")
    assert devices.group_backend("cpu") == "gloo"
    assert not set(intel.CCL_ENVIRONMENT) & set(os.environ)


def test_intel_gpus_use_xccl_else_oneccl(install: Install) -> None:
    assert devices.group_backend("xpu", has_xccl=True) == "cpu:gloo,xpu:xccl"
    with pytest.raises(DeviceNotFound, match="has no xccl, and there is no oneccl_bindings_for_pytorch for it"):
        devices.group_backend("xpu", has_xccl=False)
    install(intel.CCL, MATCHING, "")
    assert devices.group_backend("xpu", has_xccl=False) == "cpu:gloo,xpu:ccl"
    assert devices.group_backend("cuda") == "cpu:gloo,cuda:nccl"


def real_ipex() -> bool:
    """Whether IPEX is installed, for this torch."""
    try:
        return metadata.version(intel.IPEX.distribution).split(".")[:2] == torch.__version__.split(".")[:2]
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not real_ipex(), reason="IPEX is not installed: see make intel")
@pytest.mark.parametrize(("family", "method", "optimizer"), [("llama", "lora", "AdamW"), ("gpt2", "full", "Adam")])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_run_with_the_real_ipex_learns_the_same(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    model_folder: Callable[[str], Path],
    family: str,
    method: str,
    optimizer: str,
    precision: str,
) -> None:
    monkeypatch.setenv("FINETUNE_CPU_BF16", "1")
    if method == "full":
        command.change("General", lora_config=None)
    command.change("General", base_model=str(model_folder(family)))
    command.change("Training", optimizer=optimizer, mixed_precision=precision)
    used = command.run()
    assert used.code == 0, used.err
    assert "intel-extension-for-pytorch" in (used.output / "logs" / "attempt-1" / "rank-0.log").read_text()
    losses = used.losses
    # In a process of its own: once it is imported, its kernels stay.
    without = command.run_apart(FINETUNE_IPEX="0")
    assert without.code == 0, without.err
    assert losses == pytest.approx(without.losses, abs=1e-2 if precision == "bf16" else 1e-5)
    assert losses[-1] < losses[0]
