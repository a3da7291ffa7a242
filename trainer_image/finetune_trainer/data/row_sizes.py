"""How many rows there are, and how many tokens they have, from a sample of them: without the libraries of training."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data import folders, jsonl, readers
from finetune_trainer.data.llm_on_ray_prompt import INPUT, INSTRUCTION, INTRO, RESPONSE
from finetune_trainer.errors import DatasetInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from finetune_trainer.config.dataset import Dataset

    Count = Callable[[str], int]

SAMPLE = 2000
"""Rows whose tokens are counted: their mean is then within some per cent of that of all."""

CHARACTERS = 4.0
"""Characters of a token, about, where there is no tokenizer: those of English text."""

SPREAD = 0.6
"""Of the logarithms of lengths, where only their mean is known: that of instructions and responses in chats."""

PROMPT_SHARE = 0.5
"""Part of a row that is its prompt, where the rows are not known."""


@dataclass(frozen=True)
class Sizes:
    """Rows to train on, and tokens of a sample of them."""

    rows: int
    lengths: tuple[int, ...]
    """Tokens of each row of the sample, cut as the trainer cuts them."""
    supervised: tuple[int, ...]
    """How many of them count in the loss."""
    evaluated: int = 0
    """Rows of a split of their own for evaluation."""

    @property
    def mean(self) -> float:
        """Tokens of a row, on average."""
        return sum(self.lengths) / len(self.lengths)

    @property
    def seen(self) -> float:
        """Positions that a token sees in its row, on average."""
        return sum(length * (length + 1) / 2 for length in self.lengths) / sum(self.lengths)


def assumed(rows: int, mean: float, config: Dataset) -> Sizes:
    """Rows of a mean length, whose lengths spread as those of chats do."""
    chance = random.Random(0)  # noqa: S311 - nothing secret
    raw = [chance.lognormvariate(0, SPREAD) for _ in range(SAMPLE)]
    scale = mean * len(raw) / sum(raw)
    lengths = tuple(max(2, min(config.max_length, round(scale * size))) for size in raw)
    share = 1 - PROMPT_SHARE if config.mask_input else 1.0
    return Sizes(rows, lengths, tuple(max(1, round(share * length)) for length in lengths))


def measured(path: Path, name: str, config: Dataset, count: Count) -> Sizes:
    """Count the rows of a file or folder, and the tokens of a sample of them.

    Args:
        path: the file or folder.
        name: as the user wrote it.
        config: how rows are cut, and what of them is supervised.
        count: the tokens of a text.

    Raises:
        DatasetNotFound, DatasetInvalid: it cannot be read, or there are no rows.
    """
    if not path.is_dir():
        return _sizes(*_sample(_rows(path, name)), config, count, name)
    splits = folders.splits_of(path, folders.data_files(path, path / "no run"))
    rows, sample = _sample(row for file in splits.get("train", ()) for row in _rows(file, file.name))
    apart = sum(1 for file in splits.get("validation", ()) for _ in _rows(file, file.name))
    return _sizes(rows, sample, config, count, name, apart)


def count_rows(path: Path, name: str) -> int:
    """Rows of a file.

    Raises:
        DatasetNotFound, DatasetInvalid: it cannot be read.
    """
    return sum(1 for _ in _rows(path, name))


def counter(tokenizer_file: Path | None) -> tuple[Count, bool]:
    """What counts tokens, and whether it is the model's own tokenizer: its file and the library have to be there."""
    try:
        from tokenizers import Tokenizer

        tokenizer: Any = Tokenizer.from_file(str(tokenizer_file)) if tokenizer_file else None
    except Exception:  # noqa: BLE001 - the library raises nothing better, and is not there everywhere
        tokenizer = None
    if tokenizer is None:
        return lambda text: round(len(text) / CHARACTERS), False
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), True


def _rows(path: Path, name: str) -> Iterator[Any]:
    """The rows of a file: lines of JSON as they are, so that only those of the sample are parsed, or values."""
    try:
        lines = readers.is_json_lines(path)
    except OSError as error:
        raise jsonl.unreadable(path, name, error) from None
    if not lines:
        yield from readers.read_rows(path, name)
        return
    with path.open("rb") as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _sample(rows: Iterable[Any]) -> tuple[int, list[Any]]:
    """How many rows there are, and some of them, each with the same chance."""
    kept: list[Any] = []
    chance, number = random.Random(0), 0  # noqa: S311 - nothing secret
    for number, row in enumerate(rows, start=1):
        if len(kept) < SAMPLE:
            kept.append(row)
        elif (place := chance.randrange(number)) < SAMPLE:
            kept[place] = row
    return number, kept


def _sizes(rows: int, sample: Sequence[tuple[int, Any]], config: Dataset, count: Count, name: str, apart: int = 0) -> Sizes:
    lengths: list[int] = []
    supervised: list[int] = []
    around = count(INTRO + "\n" + INSTRUCTION + RESPONSE) + 4
    for line, value in sample:
        try:
            row = jsonl.check_row(jsonl.parse_line(value, line) if isinstance(value, bytes) else value, line)
        except ValueError as error:
            raise DatasetInvalid(f"{name}:{line}: {error}") from None
        for length, learned in _row_sizes(row, config, count, around):
            lengths.append(length)
            supervised.append(learned)
    if not lengths:
        raise DatasetInvalid(f"{name}: the file has no rows")
    return Sizes(round(rows * len(lengths) / len(sample)), tuple(lengths), tuple(supervised), apart)


def _row_sizes(row: jsonl.Row, config: Dataset, count: Count, around: int) -> Iterator[tuple[int, int]]:
    """Tokens of the examples of a row, and how many are supervised."""
    if row.text:
        whole = count(row.text) + 1
        blocks = -(-whole // config.longest_block)
        yield from ((whole // blocks, whole // blocks) for _ in range(blocks))
        return
    prompt = min(around + count(row.instruction) + (count(INPUT + row.context) if row.context else 0), config.longest_prompt)
    response = max(1, min(count(row.response) + 1, config.max_length - prompt))
    yield prompt + response, response if config.mask_input else prompt + response
