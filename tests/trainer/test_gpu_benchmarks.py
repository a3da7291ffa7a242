"""The benchmarks of a GPU run on a CPU, too, as far as it goes there: a fault of theirs costs no time on a GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from tests.benchmarks import gpu_check, gpu_peer, gpu_peers, gpu_step, scaling

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["gptj", "bloom", "mpt", "gpt2"])
def test_check_finds_packed_rows_to_be_what_transformers_computes(family: str) -> None:
    """With rows of up to 1,500 tokens: there scores with ALiBi reach some hundreds, here and in transformers."""
    assert 0 < gpu_check.check(family)["float32"] < (5e-5 if family in ("bloom", "mpt") else 1e-5)


def test_check_finds_dropout_to_be_what_it_should() -> None:
    found = gpu_check.drop("heads of 96 with ALiBi")
    assert all(found[name] <= gpu_check.BOUNDS[name] for name in ("seed", "average"))


def test_check_finds_a_frozen_layer_in_8_bits_to_be_near_what_it_was() -> None:
    found = gpu_check.check_frozen()
    assert all(0 <= found[name] <= gpu_check.BOUNDS[name] for name in ("forward", "backward", "emulated"))
    assert found["forward"] > 0


def test_step_is_measured_and_what_was_warned_of_is_told() -> None:
    found = gpu_step.measure("tiny-full:logn:1000")
    assert found["packed"]
    assert found["notes"] == []
    assert found["tok_s"] > 0


@pytest.mark.parametrize("peer", ["hf", "hf-flat"])
def test_peer_is_measured_in_the_fastest_of_its_ways(peer: str) -> None:
    found = gpu_peer.measure(peer, "tiny-lora:logn:1000")
    assert found["tok_s"] > 0
    assert all(way["came"] > 0 for way in found["tried"])
    assert found["filled"] == 1 if peer == "hf-flat" else 0.5 < found["filled"] < 1


def test_rows_in_a_line_have_the_loss_that_they_have_beside_each_other() -> None:
    """What a peer computes for rows that its attention keeps apart is no less than what this trainer does."""
    rows = gpu_peer.read_rows(gpu_step.make_rows("logn", 5, 1000).train)
    flat = transformers.DataCollatorWithFlattening()(rows)
    losses = []
    for implementation, batch in (("sdpa", gpu_peer.pad(rows)), (gpu_peer.APART, flat)):
        with torch.no_grad():
            losses.append(float(gpu_peer.make_model("tiny-full", implementation)(**batch).loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_peers_have_a_process_each_and_all_stands_for_each_of_them() -> None:
    assert gpu_peers.expand(["trl:a", "product:a", "trl:b"]) == [("product", ["a"]), ("trl", ["a", "b"])]
    assert [peer for peer, _ in gpu_peers.expand(["all:a"])] == list(gpu_peers.PEERS)
    with pytest.raises(SystemExit, match="no peer torchtune"):
        gpu_peers.expand(["torchtune:a"])


def test_scaling_measures_worlds_and_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    specs = ["tiny-lora:DDP:1:1000", "tiny-full:FSDP:2:2000", "none/tiny-full:DDP:1:1000"]
    scaling.main([str(tmp_path / "results.jsonl"), "--seconds", "300", *specs])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["gpus"] for line in lines] == [1, 2, 1]
    assert all(line["tok_s"] > 0 for line in lines[:2])
    assert "none" in lines[2]["error"]


def test_scaling_compares_with_the_fewest_gpus_of_as_many_tokens(tmp_path: Path) -> None:
    results = scaling.Results(tmp_path / "results.jsonl")
    for spec, speed in (("8b:DDP:1:8192", 100), ("8b:DDP:1:16384", 120), ("8b:DDP:2:16384", 190)):
        results.add(scaling.Spec.parse(spec), {"tok_s": speed})
    last = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[-1])
    assert last["efficiency_for_each_gpu"] == {"against": "ours/8b:DDP:1:8192:1", "is": 0.95}
    assert last["efficiency_altogether"] == {"against": "ours/8b:DDP:1:16384:1", "is": 0.792}
