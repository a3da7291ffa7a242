"""What the model answers to a few prompts before the first step and after the last one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.config.run import LOGS
from finetune_trainer.errors import output_error
from finetune_trainer.modeling import attention, families, load
from finetune_trainer.output.answers import ANSWER_TOKENS, SAMPLES_FILE, Answer, Sample, read_samples
from finetune_trainer.runtime import devices, distributed
from finetune_trainer.tracking.progress import write_atomically
from finetune_trainer.tracking.tracker import enter_stage

if TYPE_CHECKING:
    from finetune_trainer.checkpoint.resume import Start
    from finetune_trainer.data.prompts import Examples
    from finetune_trainer.training.setup import Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """Prompts in tokens, and what they are answered with so far."""

    prompts: tuple[list[int], ...]
    stops: tuple[int, ...]
    """Tokens that end an answer."""
    samples: tuple[Sample, ...]


def begin(engine: Engine, tokenizer: Any, start: Start) -> Asked:
    """Ask for the first time; a run that goes on takes the first answers from where its checkpoint is. A collective.

    Raises:
        OutputVolumeFull: no space left for the answers.
        OutputNotWritable: the folder refuses to be written.
    """
    asked = choose(engine, tokenizer)
    if start.checkpoint is None:
        if asked.prompts:
            enter_stage(engine.run, engine.worker.rank, f"answering {len(asked.prompts)} sample prompts before training")
        before = answer(engine, tokenizer, asked)
    else:
        kept = {sample.prompt: sample.before for sample in read_samples(Path(start.checkpoint.path).parent.parent / LOGS)}
        before = [kept.get(sample.prompt) for sample in asked.samples]
    return _keep(engine, asked, "before", before)


def finish(engine: Engine, tokenizer: Any, asked: Asked) -> tuple[Sample, ...]:
    """Ask for the last time. A collective.

    Raises:
        OutputVolumeFull: no space left for the answers.
        OutputNotWritable: the folder refuses to be written.
    """
    return _keep(engine, asked, "after", answer(engine, tokenizer, asked)).samples


def _keep(engine: Engine, asked: Asked, when: str, answers: list[Answer | None]) -> Asked:
    if not engine.worker.is_first:
        return asked
    path = engine.run.logs / SAMPLES_FILE
    pairs = zip(asked.samples, answers, strict=True)
    samples = tuple(sample.model_copy(update={when: given}) for sample, given in pairs)
    text = json.dumps([sample.model_dump(mode="json") for sample in samples], indent=1, ensure_ascii=False)
    try:
        if samples:
            write_atomically(path, text.encode() + b"\n")
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(engine.run.output_dir, error) from error
    return Asked(asked.prompts, asked.stops, samples)


def choose(engine: Engine, tokenizer: Any) -> Asked:
    """The first rows for evaluation, or to train on if there are none of those."""
    data = engine.data
    examples, rows = (data.held, data.held_rows) if len(data.held_rows) else (data.train, data.train_rows)
    prompts, samples, stops = [], [], {tokenizer.eos_token_id}
    for row in map(int, rows[: engine.run.config.general.sample_prompts]):
        prompt, rest = split(examples, row)
        texts = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, rest))
        samples.append(Sample(row=examples.place(row), prompt=next(texts), expected=next(texts)))
        prompts.append(prompt)
        stops.update(rest[-1:])
    return Asked(tuple(prompts), tuple(sorted(stops)), tuple(samples))


def split(examples: Examples, row: int) -> tuple[list[int], list[int]]:
    """Tokens of a row's prompt, and of the rest; a row that is learned as a whole is cut in the middle."""
    ids, first, last = examples.row(row).tolist(), int(examples.first[row]), int(examples.last[row])
    # Exactly one of both parts is masked, or none is.
    end = first if first > 1 else last if last < len(ids) else (len(ids) + 1) // 2
    return ids[:end], ids[end:]


def answer(engine: Engine, tokenizer: Any, asked: Asked) -> list[Answer | None]:
    """Have the model answer all prompts; nothing on ranks whose answers are not needed. A collective."""
    sharded = distributed.is_sharded(engine.loss)
    if not asked.prompts or not (sharded or engine.worker.is_first):
        return []
    ids, mask = (tensor.to(engine.worker.device) for tensor in pad(asked.prompts, engine.data.pad))
    longest = load.longest_input(engine.causal) or ids.shape[1] + ANSWER_TOKENS
    module: Any = getattr(engine.loss, "module", engine.loss)  # of DDP
    with distributed.without_learning(engine.loss), own_attention(engine.causal), engine.autocast():
        made = module.generate(
            input_ids=ids,
            mask=mask,
            stops=torch.tensor(asked.stops, device=ids.device),
            limit=min(ANSWER_TOKENS, longest - ids.shape[1]),
            agree=distributed.as_first if sharded else lambda tokens: tokens,
        )
    devices.empty_cache(engine.worker.device)
    return [_read(tokenizer, line, asked.stops) for line in made.tolist()]


def _read(tokenizer: Any, ids: list[int], stops: tuple[int, ...]) -> Answer:
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    return Answer(text=tokenizer.decode(ids[:end], skip_special_tokens=True), stopped=end is not None)


def pad(prompts: tuple[list[int], ...], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as [B, T], padded on the left, and the mask of what is no padding; both int64."""
    width = max(map(len, prompts))
    ids = [[filler] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


@contextmanager
def own_attention(causal: Any) -> Iterator[None]:
    """Ours takes no mask, which prompts of different lengths need: until the end of the block it is the family's."""
    causal = families.unwrapped(causal)
    joins = causal.config._attn_implementation == attention.NAME  # noqa: SLF001 - it has no public name
    if joins:
        causal.set_attn_implementation(families.family_of(causal.config.model_type).attention)
    yield
    if joins:
        causal.set_attn_implementation(attention.NAME)
