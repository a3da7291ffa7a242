"""Ranks of a process group on this host, without Ray: each takes the trainer's loop through the same runs.

    python -m tests.support.ranks FOLDER RANK SIZE

FOLDER/runs.json lists runs: {"config": …, "data": folder, "stop": step or null, "name": run name or null}, and where a run
starts from another one's checkpoints "resume_from": its output folder.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

WHOLE_ANSWERS_SECONDS = 600.0
"""Time that sharded models have for their answers: a busy machine must not cut them, or they differ by its load."""


def start(folder: Path, runs: list[dict[str, Any]], size: int) -> None:
    """Run all of them over this many ranks, and wait for the end.

    Raises:
        AssertionError: a rank failed; with what it printed.
    """
    folder.mkdir(parents=True)
    (folder / "runs.json").write_text(json.dumps(runs))
    line = [sys.executable, "-m", "tests.support.ranks", str(folder)]
    files = [(folder / f"rank-{rank}.log").open("w") for rank in range(size)]
    ranks = [
        subprocess.Popen([*line, str(rank), str(size)], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        for rank, file in enumerate(files)
    ]
    codes = [rank.wait(timeout=900) for rank in ranks]
    for file in files:
        file.close()
    assert not any(codes), "\n".join((folder / f"rank-{rank}.log").read_text()[-3000:] for rank in range(size))


def main(folder: Path, rank: int, size: int) -> None:
    """What a rank does."""
    sys.path.insert(0, str(ROOT / "trainer_image"))
    from finetune_trainer.training import samples

    samples.LEAST_SECONDS = WHOLE_ANSWERS_SECONDS
    worker = join(folder, rank, size)
    for entry in json.loads((folder / "runs.json").read_text()):
        train(entry, worker)
    leave()


def leave() -> None:
    """End this process, without the end of Python: a thread of gloo that then frees its last tensor would abort it."""
    import torch.distributed as dist

    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def join(folder: Path, rank: int, size: int) -> Any:
    """Join the process group of this many ranks, which meet in the folder; each takes the GPU of its number, if there are any."""
    import torch

    from finetune_trainer.runtime import devices, distributed

    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    devices.select_device(device)
    backend = devices.group_backend(device.type)
    group = distributed.create_groups(backend, rank, size, f"file://{folder}/meeting")
    places = {"rank": rank, "size": size, "local_size": size, "local_rank": rank}
    return distributed.Worker(device, **places, backend=backend, long_timeout_group=group)


def train(entry: dict[str, Any], worker: Any) -> None:
    """One run."""
    import torch
    import torch.distributed as dist

    from finetune_trainer.config.run import Run
    from finetune_trainer.config.schema import TrainerConfig
    from finetune_trainer.training.train import train

    config = TrainerConfig.model_validate(entry["config"])
    earlier = Path(entry["resume_from"]) if "resume_from" in entry else None
    places = {"output_dir": Path(config.general.output_dir), "dataset_dir": Path(entry["data"]), "resume_from": earlier}
    run = Run(config=config, run_name=entry["name"], **places)
    if worker.is_rank0:
        run.logs.mkdir(parents=True, exist_ok=True)
        (run.logs / "stop").unlink(missing_ok=True)

    def ask(record: dict[str, Any]) -> None:
        if worker.is_rank0 and record["step"] == entry["stop"]:
            (run.logs / "stop").touch()

    dist.barrier()
    train(run, worker, ask)
    if worker.device.type == "cuda":
        print(json.dumps({"peakBytes": torch.cuda.max_memory_allocated()}), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
