"""One other trainer in this process: what `gpu_peers` starts.

python -m tests.benchmarks.gpu_peer hf|hf-flat|trl|trl-flash SHAPE:ROWS:TOKENS…
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import sys
import tempfile
import time
import traceback
import warnings
from typing import Any, NamedTuple

import torch
import transformers
from tests.benchmarks.gpu_step import LAWS, PEAK, SHAPES, STEPS, WARM, about, make_rows, memory, operations
from tests.support.trainer import make_tokenizer

from finetune_trainer.data.examples import Examples
from finetune_trainer.modeling import attention

TRIED = 3, 4
"""Steps before, and steps of, the trial of a way."""
APART = "rows_apart"
"""Name of the attention that keeps the rows of a line apart."""
IGNORED = -100
"""Label of a token that is not supervised."""


class Way(NamedTuple):
    """How a step is computed."""

    batches: int
    """It is split into so many."""
    liger: bool = True
    """Whether Liger's kernels compute; TRL's own loss, which skips masked tokens, is not for them."""


WAYS = {
    "hf": [Way(1), Way(2), Way(4)],
    "hf-flat": [Way(1), Way(2)],
    "trl": [Way(1), Way(2), Way(2, liger=False)],
    "trl-flash": [Way(1), Way(1, liger=False)],
}
"""What is tried: a mask of all places by all places, which padded and unkept rows need, grows with the square of a batch."""


class Clock(transformers.TrainerCallback):
    """When the steps that count began and ended."""

    def __init__(self, first: int, last: int) -> None:
        self.times: dict[int, float] = dict.fromkeys((first, last), 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Look at the time once the device has ended what it has to do."""
        if state.global_step in self.times:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times[state.global_step] = time.perf_counter()

    @property
    def seconds(self) -> float:
        """From the end of the last step before those that count."""
        first, last = self.times.values()
        return last - first


class Counter:
    """A collator that counts the tokens of the batches that it makes, without padding, and with it."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.batches: list[tuple[int, int]] = []

    def __call__(self, rows: list[Any]) -> Any:
        batch = self.collator(rows)
        mask, places = batch.get("attention_mask"), batch["input_ids"].numel()
        self.batches.append((places if mask is None else int(mask.sum()), places))
        return batch


class Apart:
    """Attention in which no row of a line sees another. The rows are found once for each batch, not in each layer."""

    def __init__(self) -> None:
        self.positions: torch.Tensor | None = None
        self.segments: attention.Segments | None = None

    def __call__(self, module: Any, query: Any, key: Any, value: Any, mask: Any, *, position_ids: Any, **others: Any) -> Any:
        if position_ids is not self.positions:
            starts = (position_ids[0] == 0).nonzero()[:, 0].tolist()
            ends = [*starts[1:], position_ids.shape[1]]
            lengths = tuple(end - start for start, end in zip(starts, ends, strict=True))
            self.segments = attention.Segments.of(lengths, query.device)
            self.positions = position_ids
        known = {name: others[name] for name in ("scaling", "dropout") if name in others}
        return attention.attend(module, query, key, value, None, segments=self.segments, **known)


def make_model(shape: str, implementation: str) -> Any:
    """A model with random weights in bfloat16, with LoRA as `gpu_step` has it."""
    family, sizes = SHAPES[shape.rpartition("-")[0]]
    config = transformers.CONFIG_MAPPING[family](**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0, use_cache=False)
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    torch.manual_seed(0)
    with torch.device(device):
        made = transformers.AutoModelForCausalLM.from_config
        model = made(config, dtype=dtype, attn_implementation=implementation)
    if shape.endswith("-full"):
        return model
    from peft import LoraConfig, get_peft_model

    options = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))


def read_rows(examples: Examples) -> list[dict[str, list[int]]]:
    """Token ids and labels of each row."""
    rows = []
    for number, first in enumerate(examples.first.tolist()):
        ids = examples.row(number).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * first + ids[first:]})
    return rows


def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch whose rows are as long as the longest one, and a multiple of eight."""
    width = -(-max(len(row["input_ids"]) for row in rows) // 8) * 8
    filled = {"input_ids": 0, "labels": IGNORED}
    batch = {name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows]) for name, fill in filled.items()}
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {**batch, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}


def rows_of_step(law: str, tokens: str) -> int:
    """About how many rows have so many tokens, as `gpu_step` has it."""
    return max(1, round(int(tokens) / LAWS[law]))


def options(folder: str, way: Way, steps: int) -> dict[str, Any]:
    """The arguments that all peers have."""
    gpu = torch.cuda.is_available()
    return {
        "output_dir": folder, "max_steps": steps, "gradient_accumulation_steps": way.batches, "learning_rate": 1e-4,
        "bf16": gpu, "use_cpu": not gpu, "use_liger_kernel": way.liger and gpu, "optim": "adamw_torch_fused",
        "logging_steps": 1000, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "gradient_checkpointing": False,
        "dataloader_pin_memory": gpu,
    }  # fmt: skip


def make_hf(model: Any, rows: list[dict[str, list[int]]], law: str, tokens: str, given: dict[str, Any], *, flat: bool) -> Any:
    """The Trainer of transformers."""
    size = rows_of_step(law, tokens) // given["gradient_accumulation_steps"]
    grouped = {} if flat else {"train_sampling_strategy": "group_by_length"}
    arguments = transformers.TrainingArguments(
        per_device_train_batch_size=size, remove_unused_columns=False, **grouped, **given
    )  # fmt: skip
    collator = transformers.DataCollatorWithFlattening() if flat else pad
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)


def make_trl(model: Any, rows: list[dict[str, list[int]]], tokens: int, given: dict[str, Any]) -> Any:
    """The SFTTrainer of TRL, with lines that best-fit packing fills."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    masked = [
        {"input_ids": row["input_ids"], "completion_mask": [int(label != IGNORED) for label in row["labels"]]} for row in rows
    ]
    arguments = SFTConfig(
        per_device_train_batch_size=1, packing=True, max_length=tokens // given["gradient_accumulation_steps"],
        completion_only_loss=True, **given,
    )  # fmt: skip
    table = datasets.Dataset.from_list(masked)
    return SFTTrainer(model=model, args=arguments, train_dataset=table, processing_class=make_tokenizer())


def train(peer: str, spec: str, way: Way, warm: int, steps: int) -> dict[str, Any]:
    """Take steps in this way, and measure those after the first `warm` ones."""
    shape, law, tokens = spec.split(":")
    vocabulary = SHAPES[shape.rpartition("-")[0]][1]["vocab_size"]
    rows = read_rows(make_rows(law, (warm + steps + 3) * rows_of_step(law, tokens), vocabulary).train)
    model = make_model(shape, "sdpa" if peer in ("hf", "trl") else APART)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        given = options(folder, way, warm + steps)
        if peer.startswith("hf"):
            trainer = make_hf(model, rows, law, tokens, given, flat=peer == "hf-flat")
        else:
            trainer = make_trl(model, rows, int(tokens), given)
        trainer.data_collator = counter = Counter(trainer.data_collator)
        trainer.remove_callback(transformers.PrinterCallback)
        clock = Clock(warm, warm + steps)
        trainer.add_callback(clock)
        loss = trainer.train().training_loss
    counted = counter.batches[warm * way.batches : (warm + steps) * way.batches]
    taken, places = (sum(numbers) for numbers in zip(*counted, strict=True))
    speed = taken / clock.seconds
    return {
        "tok_s": round(speed), "mfu": round(speed * operations(model, shape, law) / PEAK, 3), **memory(),
        "step_ms": round(1000 * clock.seconds / steps, 1), "tok_step": round(taken / steps), "filled": round(taken / places, 3),
        "loss": round(loss, 4),
    }  # fmt: skip


def attempt(peer: str, spec: str, way: Way, warm: int, steps: int) -> dict[str, Any]:
    """As `train`, but an error is a finding: most often, there is not enough memory."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they use names of each other that have changed
            return train(peer, spec, way, warm, steps)
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    except Exception as error:  # noqa: BLE001 - the other ways are tried all the same
        traceback.print_exc()
        return {"error": repr(error)[:300]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(peer: str, spec: str) -> dict[str, Any]:
    """Try each way, and measure the fastest one."""
    tried = {}
    law, tokens = spec.split(":")[1:]
    for way in [way for way in WAYS[peer] if way.batches <= rows_of_step(law, tokens)]:
        tried[way] = attempt(peer, spec, way, *TRIED)
        print(f"# {peer} {spec} {way}: {tried[way]}", file=sys.stderr, flush=True)
    best = max(tried, key=lambda way: tried[way].get("tok_s", 0))
    found = attempt(peer, spec, best, WARM, STEPS)
    ways = [{**way._asdict(), "came": each.get("tok_s", each.get("error"))} for way, each in tried.items()]
    return {"peer": peer, "spec": spec, **found, **best._asdict(), "tried": ways}


def versions() -> dict[str, str]:
    """Of what the peers are made of."""
    found = {}
    for name in ("accelerate", "datasets", "liger-kernel", "peft", "trl"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def main(peer: str, *specs: str) -> None:
    """Measure one spec after the other."""
    for spec in specs:
        print(json.dumps({**measure(peer, spec), **about(), **versions()}), flush=True)


transformers.AttentionInterface.register(APART, Apart())

if __name__ == "__main__":
    main(*sys.argv[1:])
