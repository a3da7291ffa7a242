"""Turn rows into prompts by the tokenizer's own chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from finetune_trainer.data.parts import Parts, ids_of, ids_of_markup
from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finetune_trainer.data.jsonl import Row

_QUESTION, _ANSWER = "instruction-3141592653", "response-2718281828"
"""Texts that no template contains: everything around them belongs to the template."""


@dataclass(frozen=True)
class _Frame:
    """What the template puts around instruction and response."""

    before: str
    between: str
    """From the instruction to the response; it is not supervised."""
    thoughts: str
    """The end of `between`, which a template puts before a response but leaves out of a prompt."""
    lead: str
    """White space before the response that is supervised with it."""
    close: str
    """White space after the response, before the token that ends it."""
    end: int


class ChatTemplate:
    """The tokenizer's own chat template.

    A row is tokenised in one piece, as it is when the model is used. Its parts are tokenised separately only if the
    prompt has to be cut, or if text of the row would become special tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Find what the template puts around an instruction and its response.

        Raises:
            ConfigError: the tokenizer has no template, or the template leaves out the instruction or the response.
        """
        self._tokenizer = tokenizer
        self._special = {str(token) for token in tokenizer.all_special_tokens}
        self._special |= {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
        if not tokenizer.chat_template:
            self._refuse("has no chat template; use Dataset.chat_template: llm_on_ray")
        self._frame = self._find_frame()

    def parts(self, rows: Sequence[Row], longest_prompt: int) -> Iterator[Parts]:
        """The parts of each row.

        Args:
            rows: at least one row.
            longest_prompt: a prompt with more tokens is tokenised in parts, so that it can be cut.
        """
        frame = self._frame
        bodies, responses = [_message(row) for row in rows], [row.response.strip() for row in rows]
        prompts = [self._render(body) + frame.thoughts for body in bodies]
        whole = [prompt + frame.lead + response + frame.close for prompt, response in zip(prompts, responses, strict=True)]
        lines = zip(
            bodies, responses, ids_of_markup(self._tokenizer, prompts), ids_of_markup(self._tokenizer, whole), strict=True
        )
        for body, response, prompt, both in lines:
            fits = len(prompt) <= longest_prompt and both[: len(prompt)] == prompt
            if fits and not any(token in body or token in response for token in self._special):
                yield Parts(prompt, [], [], both[len(prompt) :], frame.end)
            else:
                yield self._in_parts(body, response)

    def _in_parts(self, body: str, response: str) -> Parts:
        frame = self._frame
        before, between, lead, close = ids_of_markup(self._tokenizer, [frame.before, frame.between, frame.lead, frame.close])
        words, answer = ids_of(self._tokenizer, [body, response])
        return Parts(before, words, between, [*lead, *answer, *close], frame.end)

    def _find_frame(self) -> _Frame:
        prompt = self._render(_QUESTION)
        before, found, between = prompt.partition(_QUESTION)
        opened, answered, rest = self._render(_QUESTION, _ANSWER).rpartition(_ANSWER)
        if not found or not answered:
            self._refuse("has a chat template that leaves the instruction or the response out; use llm_on_ray")
        lead, thoughts = (opened.removeprefix(prompt) if opened.startswith(prompt) else ""), ""
        if lead.strip():
            # For example empty thoughts: the model writes them itself, so they are not supervised.
            lead, thoughts = "", lead
        close, end = self._find_end(rest)
        return _Frame(before, between + thoughts, thoughts, lead, close, end)

    def _find_end(self, rest: str) -> tuple[str, int]:
        """The token that ends a response and the white space before it: the first special token, else end-of-sequence."""
        found = [(rest.index(token), token) for token in self._special if token and token in rest]
        if found:
            position, token = min(found, key=lambda pair: (pair[0], -len(pair[1])))
            if not rest[:position].strip():
                return rest[:position], int(self._tokenizer.convert_tokens_to_ids(token))
        return "", int(self._tokenizer.eos_token_id)

    def _render(self, body: str, response: str | None = None) -> str:
        messages = [{"role": "user", "content": body}]
        if response is not None:
            messages.append({"role": "assistant", "content": response})
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=response is None)
        except Exception as error:  # noqa: BLE001 - a template is foreign code, which may raise anything
            self._refuse(f"has a chat template that fails: {error}; use Dataset.chat_template: llm_on_ray")
        return str(text)

    def _refuse(self, why: str) -> NoReturn:
        raise ConfigError([f"General.tokenizer_name: {self._tokenizer.name_or_path} {why}"])


def _message(row: Row) -> str:
    """Instruction and context as one message of the user."""
    instruction, context = row.instruction.strip(), row.context.strip()
    return f"{instruction}\n\n{context}" if context else instruction
