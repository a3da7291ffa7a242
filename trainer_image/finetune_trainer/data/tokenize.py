"""Tokenise the data files into the cache: once for all ranks, with as many processes as there are CPUs."""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune_trainer.config.dataset import DEFAULT_PROMPT
from finetune_trainer.config.run import addresses_cluster
from finetune_trainer.data import cache_writer, jsonl, sources, token_cache
from finetune_trainer.data.copies import COPIES
from finetune_trainer.data.encode import encode
from finetune_trainer.data.examples import Encoded, Examples
from finetune_trainer.data.process_pool import in_processes
from finetune_trainer.data.progress_meter import progress_meter
from finetune_trainer.data.tokenize_options import TokenizeOptions
from finetune_trainer.errors import output_error
from finetune_trainer.tracking.holder import check_still_held

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.config.dataset import Dataset
    from finetune_trainer.config.run import Run
    from finetune_trainer.data.jsonl import Piece
    from finetune_trainer.data.sources import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """Where the tokenised rows of a data file are."""

    key: str
    name: str
    """The data file as the user wrote it."""


def tokenize_files(run: Run, tokenizer: Any, options: TokenizeOptions) -> tuple[Tokens, Tokens | None]:
    """Tokenise the rows to train on and, if they are in another file, those to evaluate on, unless the cache has them.

    Args:
        run: the data and the output folder.
        tokenizer: a tokenizer of transformers.
        options: number of processes, and sizes.

    Raises:
        DatasetNotFound, DatasetInvalid: as `sources.check`, and when rows are too long.
        ConfigError: the settings leave no room for a row, or do not fit the tokenizer.
        OutputVolumeFull, OutputNotWritable: the output folder cannot take the tokens.
        OutputInUse: another run has taken the output folder.
    """
    train, evaluation = sources.find_sources(run)
    try:
        made = _tokens(run, train, tokenizer, options), _tokens(run, evaluation, tokenizer, options) if evaluation else None
        _remove_others(
            run, {run.tokens / one.key for one in made if one} | {one.path.parent for one in (train, evaluation) if one}
        )
    except OSError as error:
        raise output_error(run.output_dir, error) from error
    return made


def count_processes(run: Run, available: float, workers_here: int = 1) -> int:
    """Number of processes: as configured; else one for each CPU, or with Ray one for each CPU of the workers.

    Args:
        run: the configuration.
        available: CPUs that this process may use.
        workers_here: workers on this host, which all wait for this one.
    """
    asked = run.config.dataset.preprocessing_num_workers
    if asked is not None:
        return asked
    if (training := run.config.training).ranks > 1 or addresses_cluster():
        # The pods of workers have no CPU limit, and other pods need the node's other CPUs.
        cpus = math.ceil(training.resources_per_worker.CPU) / training.ranks_per_worker
        available = min(available, workers_here * cpus)
    return max(1, int(available))


def _tokens(run: Run, source: Source, tokenizer: Any, options: TokenizeOptions) -> Tokens:
    config = run.config.dataset
    try:
        key = token_cache.key_of(source.path, tokenizer, config)
    except OSError as error:
        raise jsonl.unreadable(source.path, source.name, error) from None
    contents = token_cache.find(run.tokens, key)
    if contents is None:
        with cache_writer.CacheWriter(run.tokens, key) as draft:
            _fill(draft, source, tokenizer, config, options)
            check_still_held(run)
            draft.complete()
        contents = draft.contents
    _warn_of_cuts(contents, source.name, config)
    return Tokens(key, source.name)


def _fill(draft: cache_writer.CacheWriter, source: Source, tokenizer: Any, config: Dataset, options: TokenizeOptions) -> None:
    broken = jsonl.BrokenRows(source.name)
    size = source.path.stat().st_size
    encode_with = partial(encode_piece, source=source, tokenizer=tokenizer, config=config)
    in_this_process = options.processes == 1 or size <= options.small_bytes
    with progress_meter(source.name, size, options) as advance:
        pieces = jsonl.pieces(source.path, source.name, options.piece_bytes)
        made = map(encode_with, pieces) if in_this_process else in_processes(encode_with, pieces, options.processes)
        for piece, reasons, encoded in made:
            broken.add(reasons)
            if encoded is not None:
                broken.add(encoded.refused)
                draft.add(encoded)
            advance(piece.size, draft.contents.rows)
    broken.refuse()


def encode_piece(
    piece: Piece, source: Source, tokenizer: Any, config: Dataset
) -> tuple[Piece, list[tuple[int, str]], Encoded | None]:
    """Read and tokenise a piece of a data file; return its broken lines, and its tokenised rows if there are any."""
    there, broken = jsonl.read_piece(source.path, source.name, piece)
    return piece, broken, encode(there, tokenizer, config, source.name) if there else None


def _warn_of_cuts(contents: token_cache.Contents, name: str, config: Dataset) -> None:
    longer = f"raise Dataset.max_length (now {config.max_length})"
    source = f"raise Dataset.max_source_length (now {config.longest_prompt})"
    set_by_length = config.max_source_length is None and config.longest_prompt < DEFAULT_PROMPT
    limits = (
        ("prompts", contents.cut_prompts, longer if set_by_length else source),
        ("responses", contents.cut_responses, longer),
    )
    for what, cut, advice in limits:
        if cut.count:
            share = 100 * cut.count / contents.rows
            lines = ", ".join(map(str, cut.lines)) + (", …" if cut.count > len(cut.lines) else "")
            how_many = f"{cut.count} of {contents.rows} {what} ({share:.1f} %)"
            log.warning("%s: %s were cut to fit, in lines %s; %s", name, how_many, lines, advice)


def _remove_others(run: Run, used: set[Path]) -> None:
    """Remove caches and copies of earlier starts with other data, settings or tokenizers."""
    check_still_held(run)
    copies = run.tokens / COPIES
    for path in (*run.tokens.iterdir(), *copies.glob("*")):
        if path not in used and path != copies:
            shutil.rmtree(path, ignore_errors=True)


def open_tokens(run: Run, tokens: Tokens) -> Examples:
    """Map tokenised rows into the memory of this process.

    Raises:
        OSError: they cannot be read.
    """
    return token_cache.open_cache(run.tokens, tokens.key, tokens.name)
