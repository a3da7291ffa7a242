"""What a rank of `scaling` does: it measures what is in its world's folder, one after the other."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import gpu_step, scaling_peers
from tests.benchmarks.scaling import NO_ROOM, Spec
from tests.support import ranks

HOPELESS = 1.15
"""A prediction of memory that exceeds that of the GPU by this factor is believed without a trial."""
LAW = "logn"
RANGES = ("nccl:", "FSDP::", "## ")
"""Names of ranges of a trace that hold kernels, and are none."""
PREDICTED = re.compile(r"was predicted to take ([\d.]+) GiB .* of the GPU's (\d+)")


class DoesNotFit(Exception):  # noqa: N818 - it says what is the case
    """The GPUs have too little memory; the message says for what."""


def measure(spec: Spec, worker: Any, told: list[str]) -> dict[str, Any]:
    """What came of a training with the trainer's own loop; `told` gets the prediction of its memory. A collective.

    Raises:
        DoesNotFit: the prediction leaves no hope.
    """
    import torch

    from finetune_trainer.modeling import attention
    from finetune_trainer.runtime import distributed

    torch.compiler.reset()
    attention._tell.cache_clear()
    switches, began = {"auto", "budget"}, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = gpu_step.configure(spec.shape, LAW, spec.tokens, switches, Path(folder))
        training = config["Training"]
        training |= {"accelerate_mode": spec.mode, "gradient_accumulation_steps": spec.micro}
        if training["device"] == "GPU":  # one worker with several GPUs
            training["resources_per_worker"] = {"CPU": 4 * spec.gpus, "GPU": spec.gpus}
        engine = gpu_step.make_engine(config, spec.shape, LAW, switches, worker)
        told[:] = [engine.forecast]
        predicted = PREDICTED.search(engine.forecast)
        if predicted and float(predicted[1]) > HOPELESS * float(predicted[2]):
            raise DoesNotFit("not tried")
        built = time.perf_counter() - began
        done = gpu_step.train(engine, switches)
        found = gpu_step.describe(engine, spec.shape, LAW, done)
        peaks = distributed.all_gather(worker, gpu_step.memory)
        found |= {name: max(peak[name] for peak in peaks) for name in peaks[0]}
        found |= collectives(engine)
    if predicted and "reserved_gib" in found:
        found |= {
            "predicted_gib": float(predicted[1]),
            "predicted_over_reserved": round(float(predicted[1]) / found["reserved_gib"], 3),
        }
    return found | {"build_s": round(built, 1), "recomputes": recomputes(engine)}


def recomputes(engine: Any) -> bool:
    """Whether activations are recomputed."""
    return any(getattr(part, "gradient_checkpointing", False) for part in engine.model.modules())


def collectives(engine: Any) -> dict[str, Any]:
    """Shares of two further steps, of which a trace is made, in NCCL's kernels, the mean of all ranks. A collective.

    A kernel of NCCL lasts from when its rank has come to when all have sent: it has the waiting for slower ranks in it.
    """
    import torch

    from finetune_trainer.runtime import distributed
    from finetune_trainer.training.optimizer_step import take_step

    if engine.worker.device.type != "cuda":
        return {}
    plan = engine.plan(0)
    take_step(engine, 1, next(plan)).finish()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        taken = [take_step(engine, number, next(plan)) for number in (2, 3)]
        for step in taken:
            step.finish()
        torch.cuda.synchronize()
    everyone = distributed.all_gather(engine.worker, lambda: shares(profile.events()))
    return {name: round(sum(one[name] for one in everyone) / len(everyone), 4) for name in everyone[0]}


def shares(events: Any) -> dict[str, float]:
    """Shares of the time between the first and the last kernel."""
    from torch.autograd import DeviceType

    kernels = [event for event in events if event.device_type == DeviceType.CUDA
               and not getattr(event, "is_user_annotation", False) and not event.name.startswith(RANGES)]  # fmt: skip
    spans = [((event.time_range.start, event.time_range.end), event.name.startswith("nccl")) for event in kernels]
    sent, work = ([span for span, is_sent in spans if is_sent is wanted] for wanted in (True, False))
    whole = max(end for (_, end), _ in spans) - min(start for (start, _), _ in spans)
    busy, all_of_it = covered(work), covered(work + sent)
    return {
        "collectives": covered(sent) / whole,
        "collectives_exposed": (all_of_it - busy) / whole,
        "idle": 1 - all_of_it / whole,
    }


def covered(spans: list[tuple[float, float]]) -> float:
    """The time that is in one of the spans at least."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def in_words(error: Exception, told: list[str]) -> str:
    """What an error means; the prediction explains a lack of memory."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | DoesNotFit):
        return f"{NO_ROOM} ({str(error).partition('. ')[0]}); {''.join(told) or 'there was no prediction'}"
    return repr(error)[:500]


def measure_or_explain(spec: Spec, worker: Any) -> dict[str, Any]:
    """What came of it. A lack of memory that all ranks find together is a result, too. A collective."""
    import torch

    told: list[str] = []
    try:
        return scaling_peers.measure(spec) if worker is None else measure(spec, worker, told)
    except DoesNotFit as error:
        return {"error": in_words(error, told)}
    except torch.OutOfMemoryError as error:
        if spec.gpus > 1:
            raise RuntimeError(in_words(error, told)) from error  # the other ranks may be in the middle of a collective
        return {"error": in_words(error, told)}


def main(folder: Path) -> None:
    """Measure all; a failure ends the world."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    specs = [Spec.parse(text) for text in json.loads((folder / "specs.json").read_text())]
    try:
        worker = join(folder, rank, size) if specs[0].tool == "ours" else None
        if size == 1:
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                del os.environ[name]  # a peer would take it for a group, and wrap the model for nothing
        for spec in specs:
            found = measure_or_explain(spec, worker) | gpu_step.about()
            if rank == 0:
                with (folder / "results.jsonl").open("a") as file:
                    file.write(json.dumps(found) + "\n")
            gpu_step.free()
    except Exception as error:
        logging.exception("rank %d", rank)  # noqa: LOG015 - it is for whoever reads the log of this process
        (folder / f"error-{rank}.txt").write_text(in_words(error, []))
        os._exit(1)  # a group in the middle of a collective would keep the process


def join(folder: Path, rank: int, size: int) -> Any:
    """The worker: with one GPU without a process group, as the trainer does it."""
    import torch

    from finetune_trainer.config.training import Training
    from finetune_trainer.runtime import distributed

    if size > 1:
        return ranks.join(folder, rank, size)
    gpus = int(torch.cuda.is_available())
    kind = {"device": "GPU" if gpus else "CPU", "resources_per_worker": {"CPU": 4, "GPU": gpus}}
    return distributed.single_process(Training.model_validate(kind))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
