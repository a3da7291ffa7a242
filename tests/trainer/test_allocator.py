"""The memory of a GPU is not left in pieces, unless the user wants it otherwise."""

from __future__ import annotations

import pytest

from finetune_trainer.launch.allocator import set_up_memory


def test_blocks_may_grow() -> None:
    environment: dict[str, str] = {}
    set_up_memory(environment)
    assert environment == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_settings_of_the_user_stay(name: str) -> None:
    environment = {name: "max_split_size_mb:512"}
    set_up_memory(environment)
    assert environment == {name: "max_split_size_mb:512"}
