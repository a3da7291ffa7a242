"""The process group: what ranks wait for, and for how long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAIT = """
import sys, time
from datetime import timedelta
import torch
from finetune_trainer.runtime import distributed
distributed.GROUP_TIMEOUT = timedelta(seconds=1)
rank, init_method = int(sys.argv[1]), sys.argv[2]
long_timeout_group = distributed.create_groups("gloo", rank, 2, init_method)
worker = distributed.Worker(torch.device("cpu"), rank, 2, long_timeout_group=long_timeout_group)
print(distributed.broadcast_from_rank0(worker, lambda: time.sleep(4) or "made"))
print(*distributed.all_gather(worker, lambda: time.sleep(4 * worker.is_rank0) or f"written by {rank}"))
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_wait_for_what_the_first_does_alone_as_long_as_it_takes(tmp_path: Path) -> None:
    lines = [[sys.executable, "-c", WAIT, str(rank), f"file://{tmp_path}/meeting"] for rank in range(2)]
    ranks = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for line in lines]
    for rank in ranks:
        out, err = rank.communicate(timeout=120)
        assert out == "made\nwritten by 0 written by 1\n", err


PACK = """
import sys
import torch
from tests.support.trainer import SIZES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaModel
from finetune_trainer.modeling.loss import SupervisedLoss
from finetune_trainer.runtime import distributed
from finetune_trainer.training.setup import pack_rows
class Deaf(LlamaModel):
    def forward(self, input_ids, **others):
        return super().forward(input_ids, use_cache=others["use_cache"])
rank, init_method = int(sys.argv[1]), sys.argv[2]
long_timeout_group = distributed.create_groups("gloo", rank, 2, init_method)
worker = distributed.Worker(torch.device("cpu"), rank, 2, long_timeout_group=long_timeout_group)
config = CONFIG_MAPPING["llama"](vocab_size=400, **SIZES["llama"])
model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
if rank == 1:
    model.model = Deaf(config)
print(pack_rows(SupervisedLoss(model), model, worker), model.config._attn_implementation)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_rows_are_packed_on_every_rank_or_on_none(tmp_path: Path) -> None:
    lines = [[sys.executable, "-c", PACK, str(rank), f"file://{tmp_path}/meeting"] for rank in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    ranks = [subprocess.Popen(line, **pipes) for line in lines]
    for rank in ranks:
        out, err = rank.communicate(timeout=120)
        assert out == "False sdpa\n", err
