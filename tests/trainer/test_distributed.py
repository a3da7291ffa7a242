"""The process group: what ranks wait for, and for how long."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer import SIZES

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


def on_two_ranks(script: str, folder: Path, *arguments: str) -> list[str]:
    """Run a script in two processes, with the rank, a folder where they meet and the other arguments; what each prints."""
    line = [sys.executable, "-W", "ignore", "-c", script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    ranks = [subprocess.Popen([*line, str(rank), str(folder), *arguments], **pipes) for rank in range(2)]
    printed, errors = zip(*(rank.communicate(timeout=300) for rank in ranks), strict=True)
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    return list(printed)


WAIT = """
import sys, time
from datetime import timedelta
from pathlib import Path
from finetune_trainer.runtime import distributed
from tests.support import ranks
distributed.GROUP_TIMEOUT = timedelta(seconds=1)
rank = int(sys.argv[1])
worker = ranks.join(Path(sys.argv[2]), rank, 2)
print(distributed.broadcast_from_rank0(worker, lambda: time.sleep(4) or "made"))
print(*distributed.all_gather(worker, lambda: time.sleep(4 * worker.is_rank0) or f"written by {rank}"))
ranks.leave()
"""


@pytest.mark.slow
def test_ranks_wait_for_what_the_first_does_alone_as_long_as_it_takes(tmp_path: Path) -> None:
    assert on_two_ranks(WAIT, tmp_path) == ["made\nwritten by 0 written by 1\n"] * 2


PACK = """
import sys
from pathlib import Path
from tests.support import ranks
from tests.support.trainer import SIZES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaModel
from finetune_trainer.modeling.loss import SupervisedLoss
from finetune_trainer.training.setup import pack_rows
class Deaf(LlamaModel):
    def forward(self, input_ids, **others):
        return super().forward(input_ids, use_cache=others["use_cache"])
rank = int(sys.argv[1])
worker = ranks.join(Path(sys.argv[2]), rank, 2)
config = CONFIG_MAPPING["llama"](vocab_size=400, **SIZES["llama"])
model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
if rank == 1:
    model.model = Deaf(config)
print(pack_rows(SupervisedLoss(model), model, worker), model.config._attn_implementation)
ranks.leave()
"""


@pytest.mark.slow
def test_rows_are_packed_on_every_rank_or_on_none(tmp_path: Path) -> None:
    assert on_two_ranks(PACK, tmp_path) == ["False sdpa\n"] * 2


ACCUMULATES = """
import sys
from pathlib import Path
import torch
from tests.support import ranks
from tests.support.trainer import SIZES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from finetune_trainer.data.batching import batches_with_one_target
from finetune_trainer.modeling.loss import SupervisedLoss
from finetune_trainer.runtime import parallel
rank = int(sys.argv[1])
worker = ranks.join(Path(sys.argv[2]), rank, 2)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](vocab_size=400, **SIZES["llama"]))
loss = parallel.parallelize(SupervisedLoss(model), worker, "FSDP", torch.float32)
for reduces_each in (False, True):
    for last in (False, True):
        with parallel.accumulating(loss, last=last, reduces_each=reduces_each):
            loss(batches_with_one_target()[rank]).backward()
        if not last:
            print(any(weight.grad is not None for weight in loss.parameters()))
    print([float(f"{weight.grad.full_tensor().norm():.5g}") for weight in loss.parameters()])
    loss.zero_grad(set_to_none=True)
ranks.leave()
"""


@pytest.mark.slow
def test_shards_have_the_same_gradients_whether_each_micro_batch_is_reduced_or_all_at_once(tmp_path: Path) -> None:
    """Shards of them are there after the first micro-batch only if it was reduced."""
    for printed in on_two_ranks(ACCUMULATES, tmp_path):
        whole, at_once, in_shards, each = printed.splitlines()
        assert (whole, in_shards) == ("False", "True")
        assert len(json.loads(at_once)) > 10
        assert json.loads(each) == pytest.approx(json.loads(at_once), rel=1e-4)


PREPARES = """
import sys
from pathlib import Path
import torch
from tests.benchmarks import gpu_step
from tests.support import ranks
from tests.support.trainer import SIZES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.training.memory_plan import prepare_memory
rank = int(sys.argv[1])
worker = ranks.join(Path(sys.argv[2]), rank, 2)
training = {"batch_size": 4, "gradient_accumulation_steps": 2, "accelerate_mode": "FSDP", "num_training_workers": 2}
config = {"General": {"base_model": "m"}, "Dataset": {"train_file": "f"}, "Training": training}
model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](vocab_size=1000, **SIZES["llama"])).train()
run, rows = Run(config=TrainerConfig.model_validate(config), output_dir=Path(sys.argv[2])), gpu_step.make_rows("logn", 64, 1000)
for rooms in ((80.0, 0.1), (80.0, 80.0)):
    print(prepare_memory(run, worker, model, rows, torch.bfloat16, int(rooms[rank] * 2**30)).reduces_each)
ranks.leave()
"""


COMPILES = """
import sys
from types import SimpleNamespace
from pathlib import Path
from tests.support import ranks
from finetune_trainer.training.compiling import compile_layers
rank = int(sys.argv[1])
worker = ranks.join(Path(sys.argv[2]), rank, 2)
run = SimpleNamespace(config=SimpleNamespace(training=SimpleNamespace(compile=rank == 0)))
print(compile_layers(SimpleNamespace(run=run, worker=worker)))
ranks.leave()
"""


@pytest.mark.slow
def test_layers_are_compiled_on_every_rank_or_on_none(tmp_path: Path) -> None:
    """As with GPUs of which only some gain by it."""
    assert on_two_ranks(COMPILES, tmp_path) == ["None\n"] * 2


@pytest.mark.slow
def test_ranks_with_different_gpus_reduce_alike(tmp_path: Path) -> None:
    assert on_two_ranks(PREPARES, tmp_path) == ["True\nFalse\n"] * 2


GATHERS = """
import sys
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from finetune_trainer.runtime import distributed, parallel
from tests.support import ranks

rank = int(sys.argv[1])
distributed.create_groups("gloo", rank, 2, f"file://{sys.argv[2]}/meeting")
module = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
for layer in module:
    fully_shard(layer)
fully_shard(module)
worker = distributed.Worker(torch.device("cpu"), rank, 2, local_size=2, backend="gloo")

class Count(TorchDispatchMode):
    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found += "allgather" in str(function)
        return function(*args, **(kwargs or {}))

def gathers(block):
    with parallel.evaluation_mode(module), block, Count() as seen:
        for _ in range(5):
            module(torch.ones(1, 8))
    return seen.found

from contextlib import nullcontext
counts = [gathers(nullcontext()), gathers(parallel.gathered_once(module, worker)), gathers(nullcontext())]
module(torch.ones(1, 8)).sum().backward()
print(*counts)
ranks.leave()
"""


@pytest.mark.slow
def test_sharded_weights_are_gathered_once_for_many_passes(tmp_path: Path) -> None:
    assert on_two_ranks(GATHERS, tmp_path) == ["15 3 15\n"] * 2


READS = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.modeling import families
from finetune_trainer.runtime import distributed, one_reader
from tests.support import ranks
from transformers import AutoModelForCausalLM

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
if rank:
    AutoModelForCausalLM.from_pretrained = None  # only the reader may open the weights
distributed.create_groups("gloo", rank, 2, f"file://{folder}/meeting")
worker = distributed.Worker(torch.device("cpu"), rank, 2, local_size=2, backend="gloo")
for base, lora in json.loads(sys.argv[3]):
    config = {"General": {"base_model": base, "lora_config": lora}, "Dataset": {"train_file": "f"}, "Training": {}}
    run = Run(config=TrainerConfig.model_validate(config), output_dir=folder)
    torch.manual_seed(rank)
    model = one_reader.load_on_rank0(run, worker, torch.float32)
    assert not rank or all(weight.is_meta for weight in model.parameters()), base
    for part in (*families.decoder_layers(model), model):  # as they are sharded
        one_reader.send_from_rank0(part)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.arange(1, 17)[None]).logits
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    every = [None, None]
    dist.all_gather_object(every, (logits, tied, learning, [str(value.dtype) for value in model.parameters()]))
    assert torch.equal(every[0][0], every[1][0]), base
    assert every[0][1:] == every[1][1:], base
ranks.leave()
"""


@pytest.mark.slow
def test_model_that_one_rank_reads_is_the_same_on_the_other(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    cases = [(str(model_folder(family)), lora) for family in SIZES for lora in (None, {"r": 4})]
    on_two_ranks(READS, tmp_path, json.dumps(cases))


WEIGHTS = """
import sys
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from finetune_trainer.errors import ModelInvalid
from finetune_trainer.runtime import distributed, parallel
from tests.support import ranks

rank = int(sys.argv[1])
group = distributed.create_groups("gloo", rank, 2, f"file://{sys.argv[2]}/meeting")
worker = distributed.Worker(torch.device("cpu"), rank, 2, local_size=2, backend="gloo", long_timeout_group=group)

class Sent(TorchDispatchMode):
    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function) == "c10d.broadcast_.default":
            self.found += sum(tensor.nbytes for tensor in args[0])
        return function(*args, **(kwargs or {}))

def module(odd=0.0):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.Linear(512, 3))
    for weight in made[0].parameters():
        weight.requires_grad = False
    with torch.no_grad():
        made[0].weight[7, 7] += odd * rank
        made[2].bias[1] += odd * rank
    eight_bits = torch.full((4, 4), 1 + odd * rank).to(torch.float8_e4m3fn)
    made.register_buffer("eight_bits", eight_bits, persistent=False)
    return made

for odd in (0.0, 1.0):
    with Sent() as sent:
        made = parallel.parallelize(module(odd), worker, "DDP", torch.float32).module
    wanted = module().state_dict()
    same = [torch.equal(value, wanted[name]) for name, value in made.state_dict().items()]
    same.append(bool((made.eight_bits.float() == 1).all()))
    print(all(same), sent.found > 10_000, sep=",")
try:
    parallel.parallelize(nn.Linear(4, 4 + rank), worker, "DDP", torch.float32)
except ModelInvalid as error:
    print(str(error).partition(":")[0])
ranks.leave()
"""


@pytest.mark.slow
def test_ranks_send_each_other_only_the_weights_that_differ(tmp_path: Path) -> None:
    assert on_two_ranks(WEIGHTS, tmp_path) == ["True,False\nTrue,True\nGeneral.base_model\n"] * 2
