"""``finetune estimate``: what a job will take, in memory and time, predicted by the trainer's own arithmetic."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_client import submission
from finetune_client.claims import Folders
from finetune_client.commands.common import duration, note, print_value, size, table
from finetune_client.errors import ClientError
from finetune_client.home import at_home
from finetune_client.local_job import find_job, read_job
from finetune_client.manifest import read_documents
from finetune_trainer import estimate, memory, speed
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.config.yaml_file import load_config
from finetune_trainer.data import row_sizes
from finetune_trainer.errors import ConfigError

CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"
GIGABIT = 1e9 / 8
LONGEST_CONFIG = 1 << 20
"""Bytes of a config.json, at most: it is somebody else's file."""


@dataclass(frozen=True)
class Given:
    """What is to be estimated, and where its files are, as far as they are here."""

    config: TrainerConfig
    model: Path | None
    data: Path
    validation: Path | None
    gpu: str
    """GPU if nobody names one."""


def run(options: argparse.Namespace) -> int:
    """Print the estimate.

    Raises:
        ConfigError: the file is wrong; with every error.
        ClientError: the model or the rows are not here, and the options do not tell of them.
        DatasetInvalid: the rows cannot be read.
    """
    given = _read(options)
    notes: list[str] = []
    shape, sizes = _shape(given), _sizes(given, options, notes)
    device = _device(given, options)
    found = estimate.estimate(given.config, shape, sizes, device, options.network and options.network * GIGABIT)
    if not found.is_measured:
        notes.append("no run like this one was measured: the figures follow from data sheets, and may be off by half")
    if options.output:
        print_value(_object(found, sizes, notes), options.output)
        return 0
    sys.stdout.writelines(f"{line}\n" for line in table(_lines(found, sizes)))
    for line in notes:
        note(f"note: {line}")
    return 0


def _read(options: argparse.Namespace) -> Given:
    documents = read_documents(options.filename)
    if len(documents) == 1 and submission.is_bare(documents[0].value):
        config = load_config(options.filename).config
        return _given(options, config, _model_here(options, config, None), Path(), "h100")
    job = read_job(find_job(documents, options.filename))
    config, folders = job.spec.config, Folders(job, dict(options.claim), options.claims_dir)
    if unknown := folders.unknown():
        raise ConfigError(unknown)
    gpu = "h100" if job.spec.accelerator == "nvidia" else "max-1550"
    return _given(options, config, _model_here(options, config, folders.model), folders.dataset or Path(), gpu)


def _given(options: argparse.Namespace, config: TrainerConfig, model: Path | None, data: Path, gpu: str) -> Given:
    names = config.dataset.train_file, config.dataset.validation_file
    train, validation = (data / at_home(name) if name else None for name in names)
    if options.data is not None or train is None:
        train, validation = options.data, None
    return Given(config, model, train, validation, gpu)


def _model_here(options: argparse.Namespace, config: TrainerConfig, claim: Path | None) -> Path | None:
    """The folder of the model, if it is on this machine: as the options or the job say, or where the hub's library keeps it."""
    name = config.general.base_model
    home = at_home(os.environ.get("HF_HOME") or "~/.cache/huggingface")
    kept = sorted((home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots").glob("*"))
    places = [options.model] if options.model else [claim, at_home(name), *kept]
    return next((place for place in places if place and (place / CONFIG_FILE).is_file()), options.model)


def _shape(given: Given) -> memory.Shape:
    if given.model is None:
        name = given.config.general.base_model
        hint = "name a folder with its config.json: --model DIR, or --claim NAME=DIR for the claim of the model"
        raise ClientError(f"the model {name} is not on this machine", hint)
    path = given.model / CONFIG_FILE
    with path.open("rb") as file:
        text = file.read(LONGEST_CONFIG)
    try:
        return memory.Shape.of(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, RecursionError) as error:
        hint = "it has to be the config.json of a causal language model of transformers, with its sizes"
        raise ClientError(f"{path} does not tell the size of a model: {error!r}", hint) from None


def _sizes(given: Given, options: argparse.Namespace, notes: list[str]) -> row_sizes.Sizes:
    config = given.config.dataset
    if options.mean_tokens and options.rows:
        return row_sizes.assumed(options.rows, options.mean_tokens, config)
    if not given.data.exists():
        hint = "name them with --data FILE, or give their number and size: --rows N --mean-tokens N"
        raise ClientError(f"the rows are not on this machine: there is no {given.data}", hint)
    count, exact = row_sizes.counter(given.model / TOKENIZER_FILE if given.model else None)
    if not exact:
        notes.append(f"tokens are guessed from characters, {row_sizes.CHARACTERS:g} each: the tokenizer, or the package "
                     "tokenizers, is not here; --mean-tokens N tells them")  # fmt: skip
    sizes = row_sizes.measured(given.data, config.train_file, config, count)
    if given.validation is not None and given.validation.exists():
        sizes = dataclasses.replace(sizes, evaluated=row_sizes.count_rows(given.validation, str(config.validation_file)))
    if options.mean_tokens:
        assumed = row_sizes.assumed(sizes.rows, options.mean_tokens, config)
        sizes = dataclasses.replace(assumed, evaluated=sizes.evaluated)
    return dataclasses.replace(sizes, rows=options.rows) if options.rows else sizes


def _device(given: Given, options: argparse.Namespace) -> speed.Device:
    training = given.config.training
    if training.device == "cpu":
        if options.device:
            raise ClientError(f"--device {options.device}: the job trains on CPUs", "leave it out, or set Training.device")
        rate = options.core_gflops * 1e9 if options.core_gflops else speed.CORE_RATE
        return speed.cpu(training.resources_per_worker.CPU, rate)
    name = (options.device or given.gpu).lower()
    if name not in speed.GPUS:
        raise ClientError(f"--device {name}: there is no such GPU in the table", f"it has {', '.join(speed.GPUS)}")
    return speed.GPUS[name]


def _object(found: estimate.Estimate, sizes: row_sizes.Sizes, notes: list[str]) -> dict[str, Any]:
    """The estimate for programs."""
    parts = {name: value for name, value in vars(found.memory).items() if value}
    seconds = {name: round(value, 6) for name, value in vars(found.step).items() if value}
    return {
        "device": found.device.name,
        "isEstimate": not found.is_measured,
        "ranks": found.ranks,
        "rows": found.rows,
        "meanTokensPerRow": round(sizes.mean, 1),
        "memory": {"bytesPerRank": found.bytes_of_rank, "deviceBytes": found.device.memory or None, "fits": found.fits,
                   "recomputesActivations": found.recomputes, "parts": parts},
        "tokensPerStep": round(found.tokens_per_step),
        "tokensPerSecond": round(found.tokens_per_second),
        "secondsPerStep": {"total": round(found.step.total, 6)} | seconds,
        "steps": found.steps,
        "hours": round(found.seconds / 3600, 3),
        "notes": notes,
    }  # fmt: skip


def _lines(found: estimate.Estimate, sizes: row_sizes.Sizes) -> list[list[str]]:
    """The estimate for people."""
    step = found.step
    parts = ", ".join(f"{name} {value / step.total:.0%}" for name, value in vars(step).items() if value >= 0.005 * step.total)
    unit = "worker" if found.device.is_cpu else "GPU"
    room = f" of {size(found.device.memory)}" if found.device.memory else ""
    verdict = {True: "", False: ": it does not fit", None: ""}[found.fits]
    return [
        ["what", "estimate"],
        ["device", f"{found.ranks} × {found.device.name}" + ("" if found.is_measured else ", not measured")],
        [f"memory of a {unit}", f"{size(found.bytes_of_rank)}{room}{verdict}"],
        ["activations", "recomputed" if found.recomputes else "kept"],
        ["rows", f"{found.rows:,} of {sizes.mean:,.0f} tokens on average"],
        ["a step", f"{found.tokens_per_step:,.0f} tokens in {step.total:.3g} s ({parts})"],
        ["speed", f"{found.tokens_per_second:,.0f} tokens/s"],
        ["steps", f"{found.steps:,}"],
        ["time", duration(found.seconds)],
    ]
