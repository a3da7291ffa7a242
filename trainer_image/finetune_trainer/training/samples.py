"""Sample answers: the model answers a few prompts before the first step and after the last one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.config.run import LOGS
from finetune_trainer.errors import output_error
from finetune_trainer.modeling import attention, families
from finetune_trainer.output.answers import ANSWER_TOKENS, Answer, Sample, keep_samples, read_samples
from finetune_trainer.runtime import devices, distributed, parallel
from finetune_trainer.tracking.holder import check_still_held
from finetune_trainer.tracking.stages import enter_stage

if TYPE_CHECKING:
    from finetune_trainer.checkpoint.checkpointer import Start
    from finetune_trainer.config.run import Run
    from finetune_trainer.data.examples import Examples
    from finetune_trainer.runtime.engine import Engine

log = logging.getLogger(__name__)


SHARE = 0.01
"""Largest part of the run for the answers of a sharded model before training, and again for those after it."""

LEAST_SECONDS = 2.0
"""Time for them even if the run takes minutes only."""

PASSES = 3
"""Forward passes that take as long as a forward and a backward pass."""


@dataclass(frozen=True)
class SamplePrompts:
    """Prompts in tokens, with the answers so far."""

    token_ids: tuple[list[int], ...]
    stops: tuple[int, ...]
    """Tokens that end an answer."""
    samples: tuple[Sample, ...]


def answer_before(engine: Engine, tokenizer: Any, start: Start) -> SamplePrompts:
    """Answer the prompts before training; a resumed run takes the answers of the run that made its checkpoint. A collective.

    A run of adapters that begins with the base model has it still after training, and asks it then: its first step comes sooner.

    Raises:
        OutputVolumeFull: no space left for the answers.
        OutputNotWritable: the folder is not writable.
    """
    prompts = choose(engine, tokenizer)
    before: list[Answer | None]
    if start.checkpoint is None and keeps_base(engine.run):
        before = [None] * len(prompts.samples)
    elif start.checkpoint is None:
        if prompts.samples:
            enter_stage(engine.run, engine.worker.rank, f"answering {len(prompts.samples)} sample prompts before training")
        before = answer(engine, tokenizer, prompts)
    else:
        kept = {sample.prompt: sample.before for sample in read_samples(Path(start.checkpoint.path).parent.parent / LOGS)}
        before = [kept.get(sample.prompt) for sample in prompts.samples]
    return _keep(engine, prompts, "before", before)


def answer_after(engine: Engine, tokenizer: Any, prompts: SamplePrompts, seconds: float) -> tuple[Sample, ...]:
    """Answer the prompts after training, which took some seconds, and ask the base model what it was not asked. A collective.

    Raises:
        OutputVolumeFull: no space left for the answers.
        OutputNotWritable: the folder is not writable.
    """
    unasked = any(sample.before is None for sample in prompts.samples)
    if keeps_base(engine.run) and distributed.broadcast_from_rank0(engine.worker, lambda: unasked):
        with engine.model.disable_adapter():
            prompts = _keep(engine, prompts, "before", answer(engine, tokenizer, prompts, seconds))
    return _keep(engine, prompts, "after", answer(engine, tokenizer, prompts, seconds)).samples


def keeps_base(run: Run) -> bool:
    """Whether the model that the run began with is the base model, which its adapters leave as it is."""
    return run.config.general.lora_config is not None and run.resume_from is None and run.given_checkpoint is None


def _keep(engine: Engine, prompts: SamplePrompts, when: str, answers: list[Answer | None]) -> SamplePrompts:
    if not engine.worker.is_rank0:
        return prompts
    pairs = zip(prompts.samples, answers, strict=True)
    samples = tuple(sample.model_copy(update={when: given}) for sample, given in pairs)
    check_still_held(engine.run)
    try:
        keep_samples(engine.run.output_dir, samples)
    except OSError as error:
        raise output_error(engine.run.output_dir, error) from error
    return SamplePrompts(prompts.token_ids, prompts.stops, samples)


def choose(engine: Engine, tokenizer: Any) -> SamplePrompts:
    """Choose the prompts: the first evaluation rows, or the first training rows if there are none."""
    data = engine.data
    examples, rows = (data.eval, data.eval_rows) if len(data.eval_rows) else (data.train, data.train_rows)
    token_ids, samples, stops = [], [], {tokenizer.eos_token_id}
    for row in map(int, rows[: engine.run.config.general.sample_prompts]):
        prompt, rest = split(examples, row)
        texts = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, rest))
        samples.append(Sample(row=examples.place(row), prompt=next(texts), expected=next(texts)))
        token_ids.append(prompt)
        stops.update(rest[-1:])
    return SamplePrompts(tuple(token_ids), tuple(sorted(stops)), tuple(samples))


def split(examples: Examples, row: int) -> tuple[list[int], list[int]]:
    """Split a row into the tokens of its prompt and the rest; a row without a prompt is split in the middle."""
    ids, first, last = examples.row(row).tolist(), int(examples.first[row]), int(examples.last[row])
    # Exactly one of both parts is masked, or none is.
    end = first if first > 1 else last if last < len(ids) else (len(ids) + 1) // 2
    return ids[:end], ids[end:]


def answer(engine: Engine, tokenizer: Any, prompts: SamplePrompts, seconds: float | None = None) -> list[Answer | None]:
    """Let the model answer all prompts; ranks whose answers are not needed return none. A collective.

    A sharded model answers as far as the time allows, since each token may need all weights of all ranks.

    Args:
        engine: the model.
        tokenizer: as it was loaded.
        prompts: what is asked.
        seconds: how long the run has trained; None: it has not begun.
    """
    sharded = parallel.is_sharded(engine.loss)
    if not prompts.token_ids or not (sharded or engine.worker.is_rank0):
        return []
    ids, mask = (tensor.to(engine.worker.device) for tensor in pad(prompts.token_ids, engine.data.pad))
    longest = families.longest_input(engine.model) or ids.shape[1] + ANSWER_TOKENS
    module: Any = getattr(engine.loss, "module", engine.loss)  # of DDP
    with (
        parallel.evaluation_mode(engine.loss),
        parallel.gathered_once(engine.loss, engine.worker),
        own_attention(engine.model),
        engine.autocast(),
    ):
        allowance = Allowance(lambda first: estimate(engine, len(ids), first) if seconds is None else seconds)
        made = module.generate(
            input_ids=ids,
            mask=mask,
            stops=torch.tensor(prompts.stops, device=ids.device),
            limit=min(ANSWER_TOKENS, longest - ids.shape[1]),
            agree=lambda tokens: distributed.broadcast_tensor(allowance.check(tokens)) if sharded else tokens,
        )
    devices.empty_cache(engine.worker.device)
    return [_read(tokenizer, line, prompts.stops) for line in made.tolist()]


@dataclass
class Allowance:
    """The time for answers, from now on."""

    run_seconds: Callable[[float], float]
    """How long the run takes, by the seconds of the first forward pass."""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._began = self.clock()
        self._allowed: float | None = None

    def check(self, tokens: torch.Tensor) -> torch.Tensor:
        """The chosen tokens, or negative ones when the time is over. Called after each forward pass."""
        spent = self.clock() - self._began
        if self._allowed is None:
            self._allowed = max(SHARE * self.run_seconds(spent), LEAST_SECONDS)
        return tokens if spent < self._allowed else torch.full_like(tokens, -1)


def estimate(engine: Engine, prompts: int, first: float) -> float:
    """How many seconds a run takes at least, by those of a forward pass over some prompts."""
    training = engine.run.config.training
    passes = PASSES * training.gradient_accumulation_steps * engine.total_steps
    return first * passes * min(1, training.batch_size / prompts)


def _read(tokenizer: Any, ids: list[int], stops: tuple[int, ...]) -> Answer:
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    return Answer(text=tokenizer.decode(ids[:end], skip_special_tokens=True), stopped=end is not None)


def pad(prompts: tuple[list[int], ...], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as [B, T], padded on the left, and the attention mask; both int64."""
    width = max(map(len, prompts))
    ids = [[filler] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


@contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """Use the family's attention during the block: ours takes no mask, which prompts of different lengths need."""
    model = families.unwrapped(model)
    packs = model.config._attn_implementation == attention.NAME  # noqa: SLF001 - it has no public name
    if packs:
        model.set_attn_implementation(families.family_of(model.config.model_type).attention)
    yield
    if packs:
        model.set_attn_implementation(attention.NAME)
