"""Packed rows through the families of transformers whose attention can neither be replaced nor tell rows apart.

GPT-J, BLOOM and MPT compute attention by themselves, over all positions of a line, and the models pass nothing on to it. Here
it is replaced by `attend`, by another class of the same module; and the model is taken through its layers without the mask
of all positions by all positions that transformers would make. Without packed rows, as for answers, they are as before.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.gptj.modeling_gptj import GPTJAttention
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor

from finetune_trainer.memory import HEAD_MULTIPLE
from finetune_trainer.modeling.attention import NAME, Alibi, Segments, attend
from finetune_trainer.modeling.families import family_of

if TYPE_CHECKING:
    from collections.abc import Callable

DIGIT = 256
"""Positions are told in two digits to this base, and slopes in three parts: bfloat16 holds each of them exactly, and their
products are added in float32, so the bias is as exact as in float32."""

PARTS = 3


class PackedGPTJAttention(GPTJAttention):  # type: ignore[misc]
    """GPT-J's attention, over packed rows where the mask says which."""

    def _attn(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None, *others: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not isinstance(attention_mask, Segments):
            made: tuple[torch.Tensor, torch.Tensor | None] = super()._attn(query, key, value, attention_mask, *others, **named)
            return made
        dropout = self.attn_dropout.p if self.training else 0.0
        return attend(self, query, key, value, None, None, dropout, attention_mask)[0].transpose(1, 2), None


class PackedBloomAttention(BloomAttention):  # type: ignore[misc]
    """BLOOM's attention, over packed rows where the mask says which."""

    def forward(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, alibi: Any, attention_mask: Any, *others: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in transformers."""
        if not isinstance(attention_mask, Segments):
            made: tuple[torch.Tensor, torch.Tensor | None] = super().forward(
                hidden_states, residual, alibi, attention_mask, *others, **named
            )
            return made
        fused = self.query_key_value(hidden_states).view(*hidden_states.shape[:2], self.num_heads, 3, self.head_dim)
        query, key, value = (part.transpose(1, 2) for part in fused.unbind(3))
        dropout = self.attention_dropout.p if self.training else 0.0
        attended = attend(self, query, key, value, None, self.inv_norm_factor, dropout, attention_mask)[0]
        output = functional.dropout(self.dense(attended.flatten(2)), self.hidden_dropout, self.training)
        return output + residual, None


class PackedMptAttention(MptAttention):  # type: ignore[misc]
    """MPT's attention, over packed rows where the mask says which."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: Any,
        past_key_values: Any = None,
        attention_mask: Any = None,
        **named: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in transformers."""
        if not isinstance(attention_mask, Segments):
            made: tuple[torch.Tensor, torch.Tensor | None] = super().forward(
                hidden_states, position_bias, past_key_values=past_key_values, attention_mask=attention_mask, **named
            )
            return made
        fused = self.Wqkv(hidden_states)
        if self.clip_qkv:
            fused = fused.clamp(-self.clip_qkv, self.clip_qkv)
        heads = fused.view(*hidden_states.shape[:2], 3, self.n_heads, self.head_dim)
        query, key, value = (part.transpose(1, 2) for part in heads.unbind(2))
        dropout = self.attn_dropout_p if self.training else 0.0
        attended = attend(self, query, key, value, None, self.softmax_scale, dropout, attention_mask)[0]
        return self.out_proj(attended.flatten(2)), None


@dataclass(frozen=True)
class PackedFamily:
    """How a family is taken over."""

    before: type[torch.nn.Module]
    after: type[torch.nn.Module]
    """The class of its attention."""
    path: Callable[[Any, torch.Tensor, torch.Tensor, Segments], torch.Tensor]
    """The hidden states of the model without output layer, [1, T], [1, T] positions and the rows."""


def _through(layers: Any, hidden: torch.Tensor, **named: Any) -> torch.Tensor:
    for layer in layers:
        made = layer(hidden, **named)
        hidden = made[0] if isinstance(made, tuple) else made
    return hidden


def _gptj(model: Any, ids: torch.Tensor, positions: torch.Tensor, segments: Segments) -> torch.Tensor:
    hidden: torch.Tensor = model.drop(model.wte(ids))
    hidden = _through(model.h, hidden, attention_mask=segments, position_ids=positions)
    made: torch.Tensor = model.ln_f(hidden)
    return made


def _bloom(model: Any, ids: torch.Tensor, positions: torch.Tensor, segments: Segments) -> torch.Tensor:
    segments.alibi = alibi(bloom_slopes, model.num_heads, model.h[0].self_attention.inv_norm_factor, positions[0])
    hidden: torch.Tensor = model.word_embeddings_layernorm(model.word_embeddings(ids))
    hidden = _through(model.h, hidden, alibi=None, attention_mask=segments)
    made: torch.Tensor = model.ln_f(hidden)
    return made


def _mpt(model: Any, ids: torch.Tensor, positions: torch.Tensor, segments: Segments) -> torch.Tensor:
    segments.alibi = alibi(mpt_slopes, model.num_heads, model.blocks[0].attn.softmax_scale, positions[0])
    hidden = _through(model.blocks, model.wte(ids), position_bias=None, attention_mask=segments)
    made: torch.Tensor = model.norm_f(hidden)
    return made


def bloom_slopes(heads: int) -> torch.Tensor:
    """[H]: what a step of the distance adds to a score."""
    slopes: torch.Tensor = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    return slopes


def mpt_slopes(heads: int) -> torch.Tensor:
    """[H]: what a step of the distance adds to a score."""
    slopes: torch.Tensor = -build_mpt_alibi_tensor(heads, 2)[:, 0, 0]
    return slopes


def alibi(slopes: Callable[[int], torch.Tensor], heads: int, scaling: float, positions: torch.Tensor) -> Alibi:
    """The bias of tokens at these positions of their rows, [T]."""
    low = positions % DIGIT
    digits = torch.stack([positions - low, low], dim=1).repeat_interleave(PARTS, dim=1)
    queries = _parts(slopes, heads, scaling, positions.device)
    return Alibi(queries, functional.pad(digits, (0, queries.shape[1] - digits.shape[1])).float())


@functools.cache
def _parts(slopes: Callable[[int], torch.Tensor], heads: int, scaling: float, device: torch.device) -> torch.Tensor:
    """[H, E]: the slopes before scaling, in parts of bfloat16 that add up to them, for each of the two digits of a position.

    They are made once, and not in a compiled layer, where torch would leave out the rounding.
    """
    rest, parts = slopes(heads).double() / scaling, []
    for _ in range(PARTS):
        parts.append(rest.to(torch.bfloat16).double())
        rest = rest - parts[-1]
    both = torch.stack(parts, dim=1).repeat(1, 2)
    return functional.pad(both, (0, -both.shape[1] % HEAD_MULTIPLE)).float().to(device)


FAMILIES = {
    "gptj": PackedFamily(GPTJAttention, PackedGPTJAttention, _gptj),
    "bloom": PackedFamily(BloomAttention, PackedBloomAttention, _bloom),
    "mpt": PackedFamily(MptAttention, PackedMptAttention, _mpt),
}
"""By config.model_type. Others take `attend` as an implementation of their attention."""


def take_over(model: Any) -> bool:
    """Let the attention of a model tell packed rows apart; False: it is that of its own code, which is not known here."""
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        model.set_attn_implementation(NAME)
        return True
    known = [part for part in model.modules() if type(part) is family.before]
    for part in known:
        part.__class__ = family.after
    return bool(len(known) == model.config.num_hidden_layers)


def give_back(model: Any) -> None:
    """Let the model have its own attention again."""
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        model.set_attn_implementation(family_of(model.config.model_type).attention)
        return
    for part in model.modules():
        if type(part) is family.after:
            part.__class__ = family.before


def hidden_states(model: Any, ids: torch.Tensor, positions: Any, segments: Segments) -> torch.Tensor:
    """The hidden states [1, T, H] of packed rows, before the output layer of a transformers model.

    Args:
        model: as `setup.pack_rows` has left it.
        ids: [1, T].
        positions: [1, T], from 0 in each row.
        segments: the rows.
    """
    family, trunk = FAMILIES.get(model.config.model_type), model.base_model
    if family is not None:
        return family.path(trunk, ids, positions, segments)
    hidden: torch.Tensor = trunk(input_ids=ids, use_cache=False, position_ids=positions, segments=segments)[0]
    return hidden
