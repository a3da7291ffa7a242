r"""The prompt of llm-on-ray, as a chat template.

With E as the tokenizer's end-of-sequence token, `data_preprocess_type: neural_chat` gives

    Below is an instruction ... the request.E\n\n
    ### Instruction:\n{instruction}[### Input:\n{context}]E\n
    ### Response:\n{response}E

llm-on-ray tokenises each segment of it by itself. A tokenizer as that of Llama 2 then puts a space sign in front of each:
the template has spaces there, so that the text in one piece gives the same ids. Where no text does, since line feeds of
two segments become one token, the text without spaces in one piece is the prompt.

Any other type gives the same with one line feed less, in one piece, behind the special tokens that the tokenizer puts in
front of a text.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.chat_template import QUESTION, jinja_text, render
from finetune_trainer.data.parts import Parts, SpecialTokens, ids_of, ids_of_markup
from finetune_trainer.data.truncation import TAIL_TOKENS, longest_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finetune_trainer.config.dataset import Dataset
    from finetune_trainer.data.jsonl import Row

INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
INSTRUCTION = "### Instruction:\n"
INPUT = "### Input:\n"
RESPONSE = "### Response:\n"

_TEMPLATE = (
    "{{{{ {before} }}}}{{% for message in messages %}}"
    "{{% if message['role'] == 'user' %}}{{{{ {instruction} + message['content'] }}}}"
    "{{% if message['context'] %}}{{{{ {input} + message['context'] }}}}{{% endif %}}{{{{ {after} }}}}"
    "{{% elif message['role'] == 'assistant' %}}{{{{ {response} + message['content'] + {close} }}}}"
    "{{% else %}}{{{{ raise_exception('the model was trained without messages of the role ' + message['role']) }}}}{{% endif %}}"
    "{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {response} }}}}{{% endif %}}"
)
"""For str.format. A message of the user may have a context beside its content."""


class LlmOnRayPrompt:
    """Makes the prompts of one tokenizer."""

    def __init__(self, tokenizer: Any, config: Dataset, opening: list[int]) -> None:
        """Find the text that gives llm-on-ray's ids.

        Args:
            tokenizer: a tokenizer of transformers.
            config: which form.
            opening: special tokens in front of each prompt.
        """
        self._tokenizer = tokenizer
        self._chat = config.data_preprocess_type == "neural_chat"
        self._opening = opening
        end, self._feed = tokenizer.eos_token_id, ids_of(tokenizer, ["\n"])[0]
        self._end = end
        head = ids_of_markup(tokenizer, [f"{INTRO}{tokenizer.eos_token}\n"])[0]
        self._head = [*opening, *head, *(self._feed if self._chat else [])]
        self._marker = ids_of(tokenizer, [RESPONSE])[0]
        self._needed = len(self._head) + len(self._body(INSTRUCTION)) + len(self._marker) + TAIL_TOKENS + 1
        self._longest = longest_prompt(config, self._needed)
        self._special = SpecialTokens(tokenizer)
        self.template, self.around = self._find_template()
        """The template of the exported tokenizer, and the text of a prompt before and after the instruction."""
        self._question = ids_of_markup(tokenizer, [render(tokenizer, self.template, {"content": QUESTION})])[0]
        self._specials = self._special.count(self._question)
        self._same, self._varying = self._split_before()

    def _split_before(self) -> tuple[list[int], str]:
        """The ids of the text up to the first end-of-sequence token, and the rest of the text before the instruction.

        A tokenizer splits a text at such a token first of all, so that the ids of both sides are those of the whole text: unless
        it treats the beginning of a text in its own way, which is seen here, since the rest begins alike in all rows.
        """
        before, after = self.around
        first, end, rest = before.partition(self._tokenizer.eos_token)
        same, other = ids_of_markup(self._tokenizer, [first + end, rest + QUESTION + after])
        return (same, rest) if same + other == self._question else ([], before)

    def message(self, row: Row) -> dict[str, str]:
        """The user's message."""
        return {"content": row.instruction} | ({"context": row.context} if row.context else {})

    def parts(self, rows: Sequence[Row]) -> Iterator[Parts]:
        """The parts of each of at least one row."""
        before, after = self._varying, self.around[1]
        # As the template has it, without what takes time and is the same in all rows.
        texts = [before + user_text(row) + after for row in rows]
        prompts = [self._same + ids for ids in ids_of_markup(self._tokenizer, texts)]
        responses = ids_of(self._tokenizer, [row.response.strip() if self._chat else row.response for row in rows])
        for row, prompt, response in zip(rows, prompts, responses, strict=True):
            if len(prompt) <= self._longest and self._special.count(prompt) == self._specials:
                yield Parts(prompt, [], [], response, self._end)
            else:
                yield Parts(self._head, self._body(body_of(row)), self._marker, response, self._end, self._needed)

    def _body(self, body: str) -> list[int]:
        return [*ids_of(self._tokenizer, [body])[0], self._end, *self._feed]

    def _find_template(self) -> tuple[str, tuple[str, str]]:
        """The template, and the text of a prompt before and after the instruction."""
        body = INSTRUCTION + QUESTION
        forms = [self._form(gaps) for gaps in product(("", " "), repeat=5)]
        made = ids_of_markup(self._tokenizer, [before + body + after + RESPONSE for before, after in forms])
        wanted = self._wanted(body)
        before, after = next((form for form, ids in zip(forms, made, strict=True) if ids == wanted), forms[0])
        texts = {"before": before, "instruction": INSTRUCTION, "input": INPUT, "after": after, "response": RESPONSE,
                 "close": f"{self._tokenizer.eos_token}\n"}  # fmt: skip
        return _TEMPLATE.format(**{name: jinja_text(text) for name, text in texts.items()}), (
            before + INSTRUCTION,
            after + RESPONSE,
        )

    def _form(self, gaps: tuple[str, ...]) -> tuple[str, str]:
        """The text before `### Instruction` and that up to `### Response`, with a space or nothing in front of each segment."""
        first, feed, instruction, second_feed, response = gaps
        end = self._tokenizer.eos_token
        opening = "".join(map(str, self._tokenizer.convert_ids_to_tokens(self._opening)))
        between = f"{feed}\n" if self._chat else ""
        return f"{opening}{first}{INTRO}{end}\n{between}{instruction}", f"{end}{second_feed}\n{response}"

    def _wanted(self, body: str) -> list[int]:
        """The ids of llm-on-ray."""
        if self._chat:
            return [*self._head, *self._body(body), *self._marker]
        end = self._tokenizer.eos_token
        ids: list[int] = self._tokenizer(f"{INTRO}{end}\n{body}{end}\n{RESPONSE}")["input_ids"]
        # Some tokenizers append E to every text, but a prompt must not end with it.
        ids = ids[:-1] if ids[-1] == self._end else ids
        return ids if ids[: len(self._opening)] == self._opening else [*self._opening, *ids]


def body_of(row: Row) -> str:
    """The part of a prompt that is the user's, with its heading."""
    return INSTRUCTION + user_text(row)


def user_text(row: Row) -> str:
    """The instruction, and the context if there is one."""
    return row.instruction + (INPUT + row.context if row.context else "")
