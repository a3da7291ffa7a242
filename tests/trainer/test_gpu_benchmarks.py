"""The benchmarks of a GPU run on a CPU, too, as far as it goes there: a fault of theirs costs no time on a GPU."""

from __future__ import annotations

import pytest
from tests.benchmarks import gpu_check, gpu_step

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["gptj", "bloom", "mpt", "gpt2"])
def test_check_finds_packed_rows_to_be_what_transformers_computes(family: str) -> None:
    """With rows of up to 1,500 tokens: there scores with ALiBi reach some hundreds, here and in transformers."""
    assert 0 < gpu_check.check(family)["float32"] < (5e-5 if family in ("bloom", "mpt") else 1e-5)


def test_check_finds_dropout_to_be_what_it_should() -> None:
    found = gpu_check.drop("heads of 96 with ALiBi")
    assert all(found[name] <= gpu_check.BOUNDS[name] for name in ("seed", "average"))


def test_step_is_measured_and_what_was_warned_of_is_told() -> None:
    found = gpu_step.measure("tiny-full:logn:1000")
    assert found["packed"]
    assert found["notes"] == []
    assert found["tok_s"] > 0
