"""The rows, the model and the clock that all contestants of `cpu_bench` share; it imports nothing of the trainer.

A contestant is a process that holds its model ready and takes steps when it is asked: lines of JSON come on standard input, as
{"batch": 4, "warm": 1, "steps": 2, "seconds": 8}, and the answers go to standard output.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any, NamedTuple, TextIO

MODEL_VARIABLE = "CPU_BENCH_MODEL"
"""Folder of the model."""
BF16_VARIABLE = "CPU_BENCH_BF16"
"""If it is 1, the CPU computes faster in bfloat16 than in float32."""

ROWS = 512
LONGEST = 512
"""Tokens of the longest row, and the length to which llm-on-ray pads by default."""
PROMPT = 0.57
"""Part of a row that is its prompt, which is not learned."""
LORA = {"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
RATE = 1e-4


class Row(NamedTuple):
    """Tokens, and the first of them that is learned."""

    ids: list[int]
    first: int


def make_rows(vocabulary: int, law: str = "logn") -> list[Row]:
    """The rows: random tokens, of lognormal length as in chats (`logn`), with a mean of 190, or uniform ones from 50 to 400."""
    chance = random.Random(0)
    rows = []
    for _ in range(ROWS):
        drawn = chance.lognormvariate(5.11, 0.62) if law == "logn" else chance.uniform(50, 400)
        size = max(24, min(LONGEST, int(drawn)))
        rows.append(Row([chance.randrange(10, vocabulary) for _ in range(size)], int(PROMPT * size)))
    return rows


def labels(row: Row) -> list[int]:
    """The tokens, with -100 in place of the prompt."""
    return [-100] * row.first + row.ids[row.first :]


def load_model(dtype: Any) -> Any:
    """The real model in this type, with new adapters on it."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(os.environ[MODEL_VARIABLE], dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(**LORA))


def claim_stdout() -> TextIO:
    """Standard output for the answers alone: what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


class Clock:
    """Takes the orders, and counts what was done for each: a training loop calls `step` after each of its steps."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self.order: dict[str, Any] = {}
        """What is being done; empty: nothing more is asked for."""
        self._steps = self._tokens = 0
        self._loss: float | None = None
        self._began = self._cpu = 0.0

    @property
    def batch(self) -> int:
        """Rows, or lines of packed rows, of a step."""
        return int(self.order["batch"])

    def answer(self, **said: Any) -> None:
        """Say something to who asks."""
        self._answers.write(json.dumps(said) + "\n")
        self._answers.flush()

    def wait(self) -> bool:
        """Wait for the next order; return whether it is for other batches than the one before, or for none at all."""
        before = self.order.get("batch")
        line = sys.stdin.readline()
        self.order = json.loads(line) if line.strip() else {}
        self._steps = -int(self.order.get("warm", 0))
        self._begin()
        return self.order.get("batch") != before

    def _begin(self) -> None:
        self._tokens, self._began, self._cpu = 0, time.perf_counter(), time.process_time()

    def step(self, tokens: int, loss: float | None = None) -> bool:
        """Count a step; return whether the loop has to end, since other batches are wanted.

        Args:
            tokens: that are no padding.
            loss: of the step.
        """
        self._steps += 1
        if self._steps <= 0:
            self._begin()
            return False
        self._tokens += tokens
        seconds = time.perf_counter() - self._began
        if self._steps < self.order["steps"] or seconds < self.order["seconds"]:
            return False
        cpu = time.process_time() - self._cpu
        self.answer(steps=self._steps, tokens=self._tokens, seconds=seconds, cpu=cpu, loss=loss)
        return self.wait()
