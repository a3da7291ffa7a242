"""Errors of Ray, torch, transformers and the hub are explained: what is wrong, and what to do."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from aiohttp import web
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from tests.support.http_server import running

from finetune_trainer.advice import to_save_memory
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.errors import ModelNotFound, TrainerError, in_words, output_error
from finetune_trainer.explain import explain
from finetune_trainer.launch.ray_hooks import FinalErrors
from finetune_trainer.launch.worker_errors import find_cause

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.http_server import Seen
    from tests.support.trainer import Command

WORKER = """A worker health check failed.
Worker info: Worker(
  actor=Actor(RayTrainWorker, 9f913c97e4133076d7e9550704000000),
  metadata=ActorMetadata(
    hostname='demo-workers-worker-bk8zf',
    node_ip='10.244.0.68',
    pid=703,
  ),
  distributed_context=DistributedContext(world_rank=1, world_size=2),
)"""
MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.244.0.68, ID: 40db) was \
0.95GB used / 1.00GB limit (0.953388)
OOM kill reason: Memory usage 1025884160B exceeded threshold"""
DEATH = "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker"


def make_run(**sections: dict[str, Any]) -> Run:
    """A run with these settings."""
    given = {"General": {"base_model": "m"}, "Dataset": {"train_file": "f"}}
    return Run(config=TrainerConfig.model_validate(given | sections), output_dir=Path("/out"))


def lost(cause: str) -> TrainerError | None:
    return explain(WorkerHealthCheckFailedError(WORKER, RuntimeError(cause)), make_run())


@pytest.mark.parametrize(
    ("cause", "reason", "message", "retryable"),
    [
        (
            MEMORY,
            "WorkerOOMKilled",
            (
                "the worker on demo-workers-worker-bk8zf was ended for lack of memory (0.95GB used / 1.00GB limit); "
                "try Training.batch_size: 2 with gradient_accumulation_steps: 2, which takes as many rows a step; "
                "General.enable_gradient_checkpointing: true; "
                "General.lora_config, since an adapter needs a small part of the optimizer's memory; "
                "a Dataset.max_length below 512; or more memory for each worker (workers.memory of a FinetuneJob)"
            ),
            False,
        ),
        (
            DEATH,
            "WorkerLost",
            (
                "the worker on demo-workers-worker-bk8zf was lost: The actor died unexpectedly before finishing this task. "
                "class_name: RayTrainWorker"
            ),
            True,
        ),
    ],
    ids=["memory", "death"],
)
def test_a_lost_worker_is_named_with_what_is_known(cause: str, reason: str, message: str, retryable: bool) -> None:
    error = lost(cause)
    assert error is not None
    assert (error.reason, str(error), error.retryable) == (reason, message, retryable)
    assert str(pickle.loads(pickle.dumps(error))) == message


def test_a_worker_of_which_nothing_is_known_is_lost_all_the_same() -> None:
    error = explain(WorkerHealthCheckFailedError("other words", RuntimeError("x")), make_run())
    assert error is not None
    assert (error.reason, str(error)) == ("WorkerLost", "a worker was lost: ")


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "device"),
        (torch.OutOfMemoryError("XPU out of memory. Tried to allocate 2.00 GiB."), "device"),
        (RuntimeError("UR error: level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"), "device"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), "host"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host"),
        (MemoryError(), "host"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (OSError(errno.EIO, "out of memory"), None),
    ],
)
def test_memory_of_host_and_device_are_distinguished(error: Exception, memory: str | None) -> None:
    known = explain(error, make_run())
    assert (known and known.reason, known and str(known).partition(" is exhausted")[0]) == (
        (memory and "OutOfMemory", memory and f"the memory of the {memory}")
    )


TRANSIENT = [
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:4242"),
    torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited"),
    torch.distributed.DistStoreError("wait timeout after 300000ms"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    OSError(errno.ESTALE, "Stale file handle"),
    ConnectionResetError("by peer"),
    RayActorError(),
]
RECURRING = [
    RuntimeError("The size of tensor a (600) must match the size of tensor b (512) at non-singleton dimension 2"),
    RuntimeError("CUDA error: device-side assert triggered"),
    ValueError("sequence length is out of range"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    KeyError("x"),
]


@pytest.mark.parametrize("error", [*TRANSIENT, *RECURRING], ids=lambda error: str(error)[:30])
def test_only_what_a_restart_may_mend_is_tried_again(error: Exception) -> None:
    assert in_words(error).retryable == (error in TRANSIENT)


@pytest.mark.parametrize(
    ("number", "words", "retryable"),
    [
        (errno.ESTALE, "the volume of the output folder does not answer: Stale file handle", True),
        (errno.EIO, "does not answer: Input/output error", True),
        (errno.EROFS, "is not writable: Read-only file system", False),
        (errno.ENOSPC, "no space left on the output volume", False),
    ],
)
def test_a_volume_that_does_not_answer_is_tried_again_and_one_that_refuses_is_not(
    number: int, words: str, retryable: bool
) -> None:
    error = output_error(Path("out"), OSError(number, os.strerror(number)))
    assert words in str(error)
    assert (error.retryable, error.exit_code) == (retryable, 7)


def test_too_little_memory_is_not_tried_again_with_the_same_configuration() -> None:
    error = explain(torch.OutOfMemoryError("CUDA out of memory."), make_run())
    assert error is not None
    assert not error.retryable


SHAPES = in_words(RECURRING[0], "rank 0: ")
CUT_OFF = in_words(TRANSIENT[0], "rank 1: ")
KILLED = WorkerHealthCheckFailedError(WORKER, RuntimeError(DEATH))
NO_MODEL = ModelNotFound("no model")


@pytest.mark.parametrize(
    ("failures", "reason", "retryable"),
    [
        ({0: SHAPES, 1: CUT_OFF}, "TrainingFailed", False),
        ({0: CUT_OFF, 1: SHAPES}, "TrainingFailed", False),
        ({0: CUT_OFF, 1: KILLED}, "WorkerLost", True),
        ({0: SHAPES, 1: KILLED}, "WorkerLost", True),
        ({0: KILLED, 1: NO_MODEL}, "ModelNotFound", False),
        ({0: CUT_OFF, 1: TRANSIENT[0]}, "TrainingFailed", True),
    ],
    ids=["shapes first", "shapes second", "killed", "odd words about a killed one", "no model", "all cut off"],
)
def test_the_most_telling_error_of_the_workers_decides(failures: dict[int, BaseException], reason: str, retryable: bool) -> None:
    cause = find_cause(failures, make_run())
    assert cause is not None
    assert (cause.reason, cause.retryable) == (reason, retryable)
    final = FinalErrors(make_run())
    with nullcontext() if retryable else pytest.raises(TrainerError):
        final.after_exception(None, dict(failures))


def test_allocation_that_really_fails() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert "the memory of the host is exhausted" in str(explain(caught.value, make_run()))


FULL = {
    "General": {"base_model": "m"},
    "Training": {"batch_size": 6, "num_training_workers": 2, "device": "GPU", "resources_per_worker": {"GPU": 1}},
}
SPARING = {
    "General": {"base_model": "m", "lora_config": {}, "enable_gradient_checkpointing": True},
    "Training": {"batch_size": 1, "num_training_workers": 2, "accelerate_mode": "FSDP"},
}


@pytest.mark.parametrize(
    ("sections", "memory", "advice"),
    [
        (
            FULL,
            "device",
            (
                "try Training.batch_size: 3 with gradient_accumulation_steps: 2, which takes as many rows a step; "
                "General.enable_gradient_checkpointing: true; Training.mixed_precision: bf16; "
                "General.lora_config, since an adapter needs a small part of the optimizer's memory; "
                "Training.accelerate_mode: FSDP, which spreads the weights over the 2 workers; "
                "a Dataset.max_length below 512; or a device with more memory"
            ),
        ),
        (
            SPARING,
            "host",
            "try a Dataset.max_length below 512; or more memory for each worker (workers.memory of a FinetuneJob)",
        ),
    ],
    ids=["full", "sparing"],
)
def test_only_what_the_configuration_leaves_is_advised(sections: dict[str, Any], memory: Any, advice: str) -> None:
    assert to_save_memory(make_run(**sections).config, memory) == advice


def test_odd_batch_is_advised_to_become_single_rows() -> None:
    advice = to_save_memory(make_run(Training={"batch_size": 3, "gradient_accumulation_steps": 2}).config, "host")
    assert advice.startswith("try Training.batch_size: 1 with gradient_accumulation_steps: 6, ")


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


UNLOADABLE: dict[str, tuple[Callable[[Path], Any], int, str]] = {
    "weights cut off": (cut("model.safetensors", 30000), 9, "{folder}/model.safetensors cannot be read (Error while deserializ"),
    "weights empty": (cut("model.safetensors", 0), 9, "{folder}/model.safetensors cannot be read (Error while deserializing"),
    "pointer of Git LFS": (lfs_pointer, 9, "{folder}/model.safetensors cannot be read (it is a pointer of Git LFS"),
    "config cut off": (cut("config.json", 20), 9, "{folder}/config.json cannot be read (Expecting value"),
    "tokenizer cut off": (
        cut("tokenizer.json", 50),
        9,
        "cannot load the tokenizer from folder {folder}: {folder}/tokenizer.json",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), 4, "Error no file named model.safetensors"),
    "other shapes": (change_config(vocab_size=500), 9, "the weights do not have the shapes of its config.json"),
    "weights missing": (
        change_config(num_hidden_layers=3),
        9,
        (
            "its files lack model.layers.2.input_layernorm.weight, model.layers.2.mlp.down_proj.weight, "
            "model.layers.2.mlp.gate_proj.weight and 6 more, which its config.json asks for"
        ),
    ),
}


@pytest.mark.parametrize("how", UNLOADABLE)
def test_model_that_cannot_be_loaded_is_reported_with_the_file(command: Command, how: str) -> None:
    harm, code, words = UNLOADABLE[how]
    folder = command.folder / "model"
    shutil.copytree(command.config["General"]["base_model"], folder)
    harm(folder)
    outcome = command.change("General", base_model="org/m").run("--model_dir", str(folder))
    assert outcome.code == code, outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: org/m: ")
    assert words.format(folder=folder) in outcome.err.splitlines()[-1]
    assert outcome.progress["failure"]["reason"] == {4: "ModelNotFound", 9: "ModelInvalid"}[code]


def test_tokenizer_without_end(command: Command) -> None:
    folder = command.folder / "model"
    shutil.copytree(command.config["General"]["base_model"], folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    outcome = command.change("General", base_model=str(folder)).run()
    assert outcome.code == 2
    lacks = f"General.tokenizer_name: {folder} has no end-of-sequence token"
    assert f"error: {lacks}; name another tokenizer, or set eos_token in its tokenizer_config.json" in outcome.err


ANSWERS = {
    "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/gated is restricted"}),
    "private": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "expired": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "forbidden": (403, {"X-Error-Message": "Forbidden"}),
    "none": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "old": (404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id: v9"}),
}
"""What the hub answers for models of an organisation: status and headers."""

ASKED = [
    # model, token, exit code and words
    ("gated", "", 8, "it is gated, and no token was given: accept the licence at {hub}/org/gated, and give a token of that"),
    ("gated", "hf_x", 8, "it is gated, and the token that was given is of an account that has not: accept the licence at {hub}/"),
    ("private", "", 4, "there is no {hub}/org/private; or it is private, and needs a token that may read it (spec.model.tokenSe"),
    ("expired", "hf_x", 8, "the hub refuses the token (401): give a valid one that may read {hub}/org/expired (spec.model.token"),
    ("forbidden", "hf_x", 8, "the hub refuses the token (403): give a valid one that may read {hub}/org/forbidden"),
    ("none", "hf_x", 4, "there is no {hub}/org/none; or it is private"),
    ("old", "", 4, "{hub}/org/old has no revision v9"),
]

RUN_ALL = """
import json, os, sys
from finetune_trainer.__main__ import main
codes = []
for line, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    print("##", file=sys.stderr)
    codes.append(main(line))
print(json.dumps(codes))
"""
"""Several runs of the command in one process, since each process imports torch anew; the hub's address is read once."""


async def hub(request: Seen) -> web.StreamResponse:
    """A hub that has no model to give."""
    status, headers = ANSWERS[request.path.split("/")[2]]
    return web.Response(status=status, headers=headers)


@pytest.mark.slow
async def test_refusals_of_the_hub_are_distinguished(command: Command) -> None:
    async with running(hub) as address:
        lines = []
        for model, token, _, _ in ASKED:
            command.change("General", base_model=f"org/{model}")
            command.write_config(f"{model}{token}.yaml")
            options = ["--dataset_dir", command.folder, "--output_dir", command.folder / f"{model}{token}"]
            line = ["--config_file", command.folder / f"{model}{token}.yaml", *options, "--model_revision", "v9"]
            lines.append((list(map(str, line)), token))
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(command.folder / "hf"), "NO_PROXY": "*"}
        line = [sys.executable, "-c", RUN_ALL, json.dumps(lines)]
        options = {"capture_output": True, "text": True, "env": os.environ | environment}
        done = await asyncio.to_thread(lambda: subprocess.run(line, **options))
    assert json.loads(done.stdout) == [code for _, _, code, _ in ASKED], done.stderr
    for (model, token, code, words), said in zip(ASKED, done.stderr.split("##\n")[1:], strict=True):
        assert f"error: org/{model}: cannot load the tokenizer from the Hugging Face hub" in said
        assert words.format(hub=address) in said
        failure = json.loads((command.folder / f"{model}{token}" / "logs" / "progress.json").read_text())["failure"]
        assert failure["reason"] == {4: "ModelNotFound", 8: "ModelAccessDenied"}[code]
