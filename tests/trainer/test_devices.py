"""Which device a worker takes. Intel GPUs are a stand-in for torch.xpu, which says what the driver would."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune_trainer.errors import DeviceNotFound
from finetune_trainer.runtime.devices import find_device


def library(xpus: int = 0, cudas: int = 0) -> Any:
    """A torch that sees so many GPUs."""
    return SimpleNamespace(
        **{
            name: SimpleNamespace(is_available=lambda count=count: count > 0, device_count=lambda count=count: count)
            for name, count in (("xpu", xpus), ("cuda", cudas))
        }
    )


def test_cpu_is_taken_when_it_is_asked_for() -> None:
    assert find_device("cpu", library=library(xpus=1, cudas=1)) == torch.device("cpu")


def test_intel_gpu_comes_before_another_one() -> None:
    assert find_device("gpu", library=library(xpus=1, cudas=1)) == torch.device("xpu", 0)
    assert find_device("gpu", library=library(cudas=1)) == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("ray_ids", "visible", "taken"),
    [
        pytest.param(None, 4, 0, id="no Ray"),
        pytest.param(["2"], 1, 0, id="Ray hides the others by ZE_AFFINITY_MASK"),
        pytest.param(["2"], 4, 2, id="Ray hides none, as without dpctl"),
        pytest.param(["2", "3"], 4, 2, id="Ray hides none, several for a worker"),
        pytest.param(["0", "1"], 2, 0, id="the pod has those of its worker only"),
        pytest.param([], 2, 0, id="Ray assigned none"),
        pytest.param(["GPU-ab12"], 2, 0, id="a name that is no number"),
    ],
)
def test_worker_takes_its_own_intel_gpu(ray_ids: list[str] | None, visible: int, taken: int) -> None:
    assert find_device("gpu", ray_ids, library(xpus=visible)) == torch.device("xpu", taken)


def test_missing_gpu_is_reported_with_what_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZE_AFFINITY_MASK", "3")
    with pytest.raises(DeviceNotFound, match=r"Ray assigned GPUs \['0'\]; ZE_AFFINITY_MASK=3"):
        find_device("gpu", ["0"], library())
