"""Turn rows into prompts by a chat template: the tokenizer's own, or the one of llm-on-ray's prompt.

The exported tokenizer gets the same template, and a prompt is what the tokenizer makes of its text in one piece: so
`apply_chat_template` gives the prompt that was trained, id by id. Only a prompt that has to be cut, or in which text of
the user would become special tokens, is tokenised in parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from finetune_trainer.data.parts import Parts, SpecialTokens, ids_of, ids_of_markup
from finetune_trainer.data.truncation import TAIL_TOKENS, longest_prompt
from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finetune_trainer.config.dataset import Dataset
    from finetune_trainer.data.jsonl import Row

QUESTION, ANSWER = "instruction-3141592653", "response-2718281828"
"""Texts that no template contains: everything around them belongs to the template."""


@dataclass(frozen=True)
class Frame:
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
    """The tokenizer's own chat template, with instruction and context as the user's message."""

    def __init__(self, tokenizer: Any, config: Dataset) -> None:
        """Find what the template puts around an instruction and its response.

        Args:
            tokenizer: a tokenizer of transformers.
            config: the lengths, and whether a prompt has to begin with the beginning-of-sequence token.

        Raises:
            ConfigError: the tokenizer has no template, or the template leaves out the instruction or the response.
        """
        self._tokenizer = tokenizer
        if not tokenizer.chat_template:
            self._refuse("has no chat template; use Dataset.chat_template: llm_on_ray")
        self._template: str = tokenizer.get_chat_template()
        if config.bos and not self._render({"content": QUESTION}).startswith(tokenizer.bos_token):
            self._template = "{{ bos_token }}" + self._template
        self._special = SpecialTokens(tokenizer)
        self.frame = self._find_frame()
        self._before, self._between = ids_of_markup(tokenizer, [self.frame.before, self.frame.between])
        self._specials = self._special.count([*self._before, *self._between])
        self._longest = longest_prompt(config, len(self._before) + len(self._between) + TAIL_TOKENS + 1)

    @property
    def template(self) -> str:
        """The template of the exported tokenizer. It ends a prompt with the thoughts that were trained as part of it."""
        if not self.frame.thoughts:
            return self._template
        asked = "add_generation_prompt and (enable_thinking is not defined or enable_thinking)"
        return f"{self._template}{{% if {asked} %}}{{{{ {jinja_text(self.frame.thoughts)} }}}}{{% endif %}}"

    @property
    def around(self) -> tuple[str, str]:
        """The text of a prompt before and after the message."""
        return self.frame.before, self.frame.between

    def message(self, row: Row) -> dict[str, str]:
        """The user's message."""
        instruction, context = row.instruction.strip(), row.context.strip()
        return {"content": f"{instruction}\n\n{context}" if context else instruction}

    def parts(self, rows: Sequence[Row]) -> Iterator[Parts]:
        """The parts of each of at least one row."""
        frame = self.frame
        responses = [row.response.strip() for row in rows]
        prompts = [self._render(self.message(row)) + frame.thoughts for row in rows]
        whole = [prompt + frame.lead + response + frame.close for prompt, response in zip(prompts, responses, strict=True)]
        apart = ids_of(self._tokenizer, responses)
        lines = zip(rows, apart, ids_of_markup(self._tokenizer, prompts), ids_of_markup(self._tokenizer, whole), strict=True)
        lead, close = ids_of_markup(self._tokenizer, [frame.lead, frame.close])
        for row, answer, prompt, both in lines:
            response = both[len(prompt) :]
            if both[: len(prompt)] != prompt or self._special.count(response) != self._special.count([*lead, *close]):
                response = [*lead, *answer, *close]
            if len(prompt) <= self._longest and self._special.count(prompt) == self._specials:
                yield Parts(prompt, [], [], response, frame.end)
            else:
                body = ids_of(self._tokenizer, [self.message(row)["content"]])[0]
                yield Parts(self._before, body, self._between, response, frame.end)

    def _find_frame(self) -> Frame:
        prompt = self._render({"content": QUESTION})
        before, found, between = prompt.partition(QUESTION)
        opened, answered, rest = self._render({"content": QUESTION}, ANSWER).rpartition(ANSWER)
        if not found or not answered:
            self._refuse("has a chat template that leaves the instruction or the response out; use llm_on_ray")
        lead, thoughts = (opened.removeprefix(prompt) if opened.startswith(prompt) else ""), ""
        if lead.strip():
            # For example empty thoughts: the model writes them itself, so they are not supervised.
            lead, thoughts = "", lead
        close, end = self._find_end(rest)
        return Frame(before, between + thoughts, thoughts, lead, close, end)

    def _find_end(self, rest: str) -> tuple[str, int]:
        """The token that ends a response and the white space before it: the first special token, else end-of-sequence."""
        texts = [str(token) for token in self._tokenizer.convert_ids_to_tokens(sorted(self._special.ids))]
        found = [(rest.index(token), token) for token in texts if token and token in rest]
        if found:
            position, token = min(found, key=lambda pair: (pair[0], -len(pair[1])))
            if not rest[:position].strip():
                return rest[:position], int(self._tokenizer.convert_tokens_to_ids(token))
        return "", int(self._tokenizer.eos_token_id)

    def _render(self, message: dict[str, str], response: str | None = None) -> str:
        try:
            return render(self._tokenizer, self._template, message, response)
        except Exception as error:  # noqa: BLE001 - a template is foreign code, which may raise anything
            self._refuse(f"has a chat template that fails: {error}; use Dataset.chat_template: llm_on_ray")

    def _refuse(self, why: str) -> NoReturn:
        raise ConfigError([f"General.tokenizer_name: {self._tokenizer.name_or_path} {why}"])


def render(tokenizer: Any, template: str, message: dict[str, str], response: str | None = None) -> str:
    """The text of a prompt, or of a prompt with its response."""
    messages = [{"role": "user", **message}]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    text: str = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=response is None
    )
    return text


def jinja_text(text: str) -> str:
    """A text as a literal of a template."""
    return "'" + text.encode("unicode_escape").decode().replace("'", "\\'") + "'"
