"""The section Dataset of the configuration: where the rows are, and how they become tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from finetune_trainer.config.section import Section, lower

DEFAULT_PROMPT = 384
"""Tokens of the longest prompt with llm-on-ray's defaults, three quarters of the longest example."""


class Dataset(Section):
    """Where the rows are, {instruction, context, response} or {text}, and how they become tokens."""

    train_file: Annotated[str, Field(min_length=1, max_length=256)]
    """A JSONL file, one row {instruction, context (optional), response} or {text} a line; a CSV or Parquet file, or a
    folder, with such columns; or, where there is no such file or folder, a data set of the hub, owner/name. In a
    FinetuneJob: relative to its data set (spec.dataset), or in the image."""
    validation_file: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Rows for evaluation: as train_file. Default: the split validation of a folder or data set, else rows split off."""
    validation_split_percentage: Annotated[int, Field(ge=0, lt=100)] = 5
    """Share of train_file that is split off for evaluation when there is no validation_file and train_file has no split
    validation of its own, in percent; 0: none."""
    preprocessing_num_workers: Annotated[int, Field(ge=1, le=256)] | None = None
    """Number of processes that tokenise; a small file takes one. Default: one for each CPU, in a cluster for each CPU of
    the workers on the first worker's node."""
    max_length: Annotated[int, Field(ge=8, le=1048576)] = 512
    """Longest example in tokens: prompt, response, and the token that ends it. Longer responses are cut."""
    group: bool = True
    """Pack the rows of a batch without padding; no row attends to another. GPT-J, BLOOM and MPT do not support it: there
    rows of similar length share a batch to reduce padding. false: batches of any rows, padded."""
    block_size: Annotated[int, Field(ge=8, le=1048576)] | None = None
    """A longer text, in tokens, is split into blocks of at most this length, each of which is an example. Default: as
    max_length. Rows of instruction and response are never split."""
    shuffle: bool = True
    """Shuffle the rows in each epoch, by Training.seed."""
    max_source_length: Annotated[int, Field(ge=4, le=1048576)] | None = None
    """Longest prompt in tokens; the end of instruction and context of a longer one is cut off. Default: 384, but at most
    three quarters of max_length."""
    padding_side: Annotated[Literal["left", "right"], BeforeValidator(lower)] = "right"
    """Side on which short examples are padded, where they are: right or left."""
    truncation_side: Annotated[Literal["left", "right"], BeforeValidator(lower)] = "right"
    """Side on which long responses are cut: right or left."""
    max_seq_length: Annotated[int, Field(ge=1, le=1048576)] | None = None
    """Obsolete, accepted and ignored."""
    truncation: bool = True
    """Cut rows that are longer than max_source_length or max_length; false: refuse them, by line."""
    padding: bool = True
    """Accepted: without group, the examples of a batch are always padded to one length."""
    mask_input: bool = True
    """Leave the prompt out of the loss. A row with text has no prompt: all of it is supervised."""
    mask_response: bool = False
    """Leave the response out of the loss (with mask_input false)."""
    data_preprocess_type: Annotated[str, Field(min_length=1, max_length=64)] = "neural_chat"
    """How a row becomes a prompt: neural_chat; anything else: prompt and response as one text."""
    chat_template: Annotated[Literal["llm_on_ray", "model"], BeforeValidator(lower)] = "llm_on_ray"
    """Whose prompt: llm_on_ray, as data_preprocess_type says; or model, the chat template of the tokenizer, with
    instruction and context as the user's message and the response as the assistant's."""
    bos: bool = False
    """Begin each example with the tokenizer's beginning-of-sequence token, unless it does already. llm-on-ray leaves the
    token out of neural_chat prompts, but models of some families, as Gemma, answer worse without it."""

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return self.max_source_length or min(DEFAULT_PROMPT, self.max_length * 3 // 4)

    @property
    def longest_block(self) -> int:
        """Tokens of the longest block of a text."""
        return self.block_size or self.max_length
