"""The parts that a row has in tokens, and how text becomes tokens."""

from __future__ import annotations

from typing import Any, NamedTuple


class Parts(NamedTuple):
    """Token ids of one row. The prompt consists of head, body and tail; only the body may be cut."""

    head: list[int]
    body: list[int]
    tail: list[int]
    response: list[int]
    end: int
    """The token that ends the response."""
    least: int = 0
    """Tokens that the prompt needs at least, with some of the user's text; 0: those of head and tail and some more."""


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of texts of the user; nothing in them becomes a special token."""
    return _ids(tokenizer, texts, split_special_tokens=True)


def ids_of_markup(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of texts in which special tokens are recognised."""
    return _ids(tokenizer, texts)


def _ids(tokenizer: Any, texts: list[str], **options: bool) -> list[list[int]]:
    """Token ids, and nothing else: masks are lists as long, which take a quarter of the time."""
    made = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, **options)
    ids: list[list[int]] = made["input_ids"]
    return ids


class SpecialTokens:
    """All special tokens of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Find them: those that it names, and those that were added to it."""
        added = {number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
        self.ids = frozenset(added | set(tokenizer.all_special_ids))

    def count(self, ids: list[int]) -> int:
        """How many of the tokens are special."""
        return sum(token in self.ids for token in ids)
