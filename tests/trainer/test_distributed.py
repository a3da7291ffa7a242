"""The process group: what ranks wait for, and for how long."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

import pytest

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
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_wait_for_what_the_first_does_alone_as_long_as_it_takes(tmp_path: Path) -> None:
    lines = [[sys.executable, "-c", WAIT, str(rank), f"file://{tmp_path}/meeting"] for rank in range(2)]
    ranks = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for line in lines]
    for rank in ranks:
        out, err = rank.communicate(timeout=120)
        assert out == "made\n", err
