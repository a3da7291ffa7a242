"""Compile the layers before the first step, and keep what was compiled for the next attempt."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import families
from finetune_trainer.modeling.compilation import Compiler, in_a_line
from finetune_trainer.modeling.head_loss import fused_slope, plain_slope
from finetune_trainer.runtime import devices, distributed
from finetune_trainer.runtime.engine import make_batch
from finetune_trainer.tracking.holder import check_still_held
from finetune_trainer.tracking.stages import enter_stage

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run
    from finetune_trainer.runtime.engine import Engine

log = logging.getLogger(__name__)

CAPABILITY = (8, 0)
"""CUDA's compute capability from which compiled layers were seen to be faster, Ampere's."""

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Folder in which torch keeps what it compiles, on this host: not every network volume has the locks that it needs."""


def compile_layers(engine: Engine) -> None:
    """Compile the layers if Training.compile says so, by a pass through a batch that changes nothing. A collective."""
    # With different GPUs, ranks differ in what they want, and all are needed to pass through a batch.
    if not all(distributed.all_gather(engine.worker, lambda: is_wanted(engine.run, engine.worker.device))):
        return
    enter_stage(engine.run, engine.worker.rank, "compiling the layers of the model")
    began, kept = time.monotonic(), _file(engine)
    # torch's own choice is named after the user, which the system may not know.
    os.environ.setdefault(CACHE_VARIABLE, str(Path(tempfile.gettempdir()) / f"torchinductor-{os.getuid()}"))
    known = _load(kept)
    compiler = Compiler()
    module: Any = getattr(engine.loss, "module", engine.loss)  # of DDP
    compiler.compile_layers(families.decoder_layers(engine.model))
    module.slope = compiler.compile_function(fused_slope, plain_slope)
    _pass_through(engine, compiler)
    failures = distributed.all_gather(engine.worker, lambda: compiler.failure)
    failure = next((why for why in failures if why is not None), None)
    if failure is not None:
        compiler.give_up(failure)
        enter_stage(engine.run, engine.worker.rank, "the layers cannot be compiled: training goes on without")
        return
    compiler.proved = True
    log.info(
        "compiled the layers in %.1f s%s", time.monotonic() - began, ", with what an earlier attempt has kept" if known else ""
    )
    if engine.worker.is_rank0:
        check_still_held(engine.run)
        _keep(kept)


def is_wanted(run: Run, device: torch.device) -> bool:
    """Whether the layers are to be compiled."""
    wanted = run.config.training.compile
    return devices.capability(device) >= CAPABILITY if wanted == "auto" else wanted


def _pass_through(engine: Engine, compiler: Compiler) -> None:
    """Take the first micro-batch forwards and backwards, and forget its gradients. A collective."""
    rows = next(engine.plan(0)).micro[0][engine.worker.rank]
    batch = make_batch(engine, engine.data.train, engine.data.train_rows[rows])
    try:
        with engine.autocast():
            loss = engine.loss(batch)
        loss.backward()
    except (TrainerError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if engine.worker.size > 1:
            raise  # the other ranks are in the middle of a collective
        compiler.give_up(in_a_line(error))
    engine.loss.zero_grad(set_to_none=True)


def _file(engine: Engine) -> Path:
    """Where the run keeps what was compiled, for this release of torch and this kind of device."""
    device = engine.worker.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return engine.run.compiled / re.sub(r"[^A-Za-z0-9.+]+", "-", f"{torch.__version__}-{name}.bin")


def _load(path: Path) -> bool:
    """Give torch what an earlier attempt has kept; return whether there was something."""
    try:
        return torch.compiler.load_cache_artifacts(path.read_bytes()) is not None
    except FileNotFoundError:
        return False
    except Exception as error:  # noqa: BLE001 - of a file that was cut off: the layers are compiled again
        log.info("%s is not used: %s", path, in_a_line(error))
        return False


def _keep(path: Path) -> None:
    """Keep what torch has compiled, for another attempt."""
    try:
        made = torch.compiler.save_cache_artifacts()
        if made is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        draft.write_bytes(made[0])
        draft.replace(path)
    except Exception as error:  # noqa: BLE001 - the next attempt compiles again
        log.info("what was compiled is not kept: %s", in_a_line(error))
