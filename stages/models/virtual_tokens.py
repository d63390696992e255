"""Continuous prompts and prefixes: the one place that knows of virtual tokens. Axes: B batch, P prompt, S, H hidden.

Prompt tuning and P-tuning put N trained embeddings before every sequence, prefix tuning N trained keys and values
into every layer. Both lengthen masks, shift positions by N, and the former would shift hidden states, logits, labels
and the reward's read-out as well. Here the transformer below the heads takes them in and gives back the states of
the real tokens alone, [B, S, H]: no head, loss, trainer or mask outside this file has to know.
"""

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModelForCausalLM, PeftModelForSequenceClassification, PeftType, TaskType
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from stages.base import InputError
from stages.models.gathered import gathered, without_hooks
from stages.models.trunk import decoder_layers, inner_model, unwrapped

ENCODER_FILE = "prompt_encoder.safetensors"
"""The network that makes prompt or prefix. PEFT saves only what it makes, from which training cannot go on."""


def counted_positions(attention_mask: Tensor) -> Tensor:
    """Positions counted from the first attended token, whatever the padding side. bool [B, S] -> long [B, S]."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


class _PrefixLayer(DynamicLayer):
    """Keys and values [1, heads, N, size] before every row. Reading changes nothing, so a layer may be recomputed."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return _joined(self.keys, key_states), _joined(self.values, value_states)


def _joined(prefix: Tensor, states: Tensor) -> Tensor:
    return torch.cat([prefix.to(states.dtype).expand(len(states), -1, -1, -1), states], dim=-2)


class _VirtualTokens:
    """Mixin of PEFT's model classes: the base model takes in the virtual tokens by itself.

    The wrapped forward belongs to this object: do not make structural copies of a model that has it.
    """

    def __init__(self, model: PreTrainedModel, config: PeftConfig, **kwargs: Any):
        super().__init__(model, config, **kwargs)
        inner = inner_model(self)
        self._compute = inner.forward
        # transformers 5.24 renamed the argument; a model's own remote code may keep the old name.
        self.cache_argument = "cache" if "cache" in inspect.signature(inner.forward).parameters else "past_key_values"
        inner.forward = self._inner_forward
        if self._is_prefix:  # a prefix is only read, so checkpointed layers may keep it
            for layer in decoder_layers(self):
                layer._can_checkpoint_with_cache = True

    @property
    def count(self) -> int:
        """Number of virtual tokens, N."""
        return self.active_peft_config.num_virtual_tokens

    @property
    def _is_prefix(self) -> bool:
        return self.active_peft_config.peft_type in (PeftType.PREFIX_TUNING, PeftType.CARTRIDGE)

    def _prompt(self) -> Any:
        """Embeddings [1, N, H], or a cache of keys and values: bit-equal to what is saved.

        So in float32, one row, and with gradients on where a network has some: an LSTM has another kernel without.
        """
        gradients = torch.is_grad_enabled() or self.has_encoder
        frozen = self.active_peft_config.inference_mode  # PEFT then reads the table itself instead of calling it
        whole = gathered(self._encoder.parameters()) if frozen else nullcontext()
        device = next(self.parameters()).device.type
        with whole, torch.autocast(device, enabled=False), torch.set_grad_enabled(gradients):
            return self.get_prompt(batch_size=1)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's own forward; the virtual tokens come in further down."""
        return self.get_base_model()(*args, **kwargs)

    def _inner_forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **rest: Any,
    ) -> Any:
        cache = rest.pop(self.cache_argument, None)
        if cache is not None:
            if cache.get_seq_length() < self.count:
                raise RuntimeError("a model with virtual tokens generates through virtual_tokens.generate")
            inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "position_ids": position_ids}
            return self._compute(**inputs, attention_mask=attention_mask, **{self.cache_argument: cache}, **rest)
        if inputs_embeds is None:
            inputs_embeds = inner_model(self).get_input_embeddings()(input_ids)
        if attention_mask is None:
            attention_mask = inputs_embeds.new_ones(inputs_embeds.shape[:2], dtype=torch.long)
        rest |= {"use_cache": False, "attention_mask": self._lengthened(attention_mask)}
        positions = counted_positions(attention_mask) if position_ids is None else position_ids
        if self._is_prefix:
            prefix = Cache(layers=[_PrefixLayer(layer.keys, layer.values) for layer in self._prompt().layers])
            rest[self.cache_argument] = prefix
            return self._compute(inputs_embeds=inputs_embeds, position_ids=positions + self.count, **rest)
        prompt = self._prompt().to(inputs_embeds.dtype).expand(len(inputs_embeds), -1, -1)
        own = torch.arange(self.count, device=positions.device).expand(len(positions), -1)
        output = self._compute(
            inputs_embeds=torch.cat([prompt, inputs_embeds], 1),
            position_ids=torch.cat([own, positions + self.count], 1),
            **rest,
        )
        # In place and aligned as without a prompt, so that heads give the same bits for the same states.
        output.last_hidden_state = output.last_hidden_state[:, self.count :].contiguous()
        return output

    @torch.no_grad()
    def start_prefix_at(self, words: Tensor) -> None:
        """Let a new prefix be the keys and values of words, ids [N]; random ones would wreck a pretrained model."""
        cache = DynamicCache(config=self.get_base_model().config)
        self._compute(input_ids=words.unsqueeze(0), **{self.cache_argument: cache}, use_cache=True)
        initialize_kv_prefix_from_past_key_values(self, past_key_values=cache)

    def _lengthened(self, mask: Tensor) -> Tensor:
        return torch.cat([mask.new_ones(len(mask), self.count), mask], 1)

    def filled_cache(self, rows: int) -> DynamicCache:
        """Keys and values of the virtual tokens for `rows` sequences, from which generation goes on."""
        if self._is_prefix:
            cache = self._prompt()
            for layer in cache.layers:
                layer.keys, layer.values = _computed(layer.keys), _computed(layer.values)
        else:
            embedding = inner_model(self).get_input_embeddings().weight
            cache = DynamicCache(config=self.get_base_model().config)
            inputs = {"inputs_embeds": self._prompt().to(embedding.dtype), self.cache_argument: cache}
            self._compute(**inputs, use_cache=True)
        cache.batch_repeat_interleave(rows)
        return cache

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """PEFT's adapter, and beside it the network that makes it, so that training can go on."""
        super().save_pretrained(save_directory, **kwargs)
        if self.has_encoder:
            save_file(dict(self._encoder.state_dict()), Path(save_directory) / ENCODER_FILE)

    def load_adapter(self, model_id: str | Path, adapter_name: str = "default", **kwargs: Any) -> Any:
        """Continue from a checkpoint; transformers' Trainer calls this."""
        if not self.has_encoder:
            return super().load_adapter(model_id, adapter_name, **kwargs)
        self.load_encoder(Path(model_id))

    def get_prompt_embedding_to_save(self, adapter_name: str) -> Tensor:
        """What the encoder makes; a rank that saves alone must not wait for others within ZeRO's hooks."""
        with gathered(self._encoder.parameters()), without_hooks(self._encoder):
            return super().get_prompt_embedding_to_save(adapter_name)

    @property
    def _encoder(self) -> nn.Module:
        return self.prompt_encoder[self.active_adapter]

    @property
    def has_encoder(self) -> bool:
        """Whether a network makes the virtual tokens, rather than a table."""
        return set(dict(self._encoder.named_parameters())) != {"embedding.weight"}

    def load_encoder(self, folder: Path) -> None:
        """Copy the network from a folder, and the head if both have one. Raises InputError PEFT02 without a network."""
        if not (folder / ENCODER_FILE).is_file():
            raise InputError(
                "PEFT02",
                f"{folder} has no {ENCODER_FILE}: what the network made is there, the network is not",
                fix="train that stage again, or continue with a method that has no network",
            )
        self._encoder.load_state_dict(load_file(folder / ENCODER_FILE))
        found = load_peft_weights(str(folder), device="cpu")
        head = {name.rpartition(".")[2]: tensor for name, tensor in found.items() if is_head(name)}
        if head:
            self.get_base_model().score.modules_to_save[self.active_adapter].load_state_dict(head)


def is_head(name: str) -> bool:
    """Whether an adapter's tensor belongs to a scalar model's head."""
    return ".score." in name


def _computed(states: Tensor) -> Tensor:
    """In the type that attention will compute with."""
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states


class VirtualTokenCausalLM(_VirtualTokens, PeftModelForCausalLM):
    """A causal language model with a trained prompt or prefix."""


class VirtualTokenClassifier(_VirtualTokens, PeftModelForSequenceClassification):
    """A scalar model with a trained prompt or prefix."""


CLASSES = {TaskType.CAUSAL_LM: VirtualTokenCausalLM, TaskType.SEQ_CLS: VirtualTokenClassifier}


def has_virtual_tokens(model: nn.Module) -> bool:
    return isinstance(model, _VirtualTokens)


@torch.no_grad()
def generate(lm: nn.Module, ids: Tensor, mask: Tensor, **arguments: Any) -> Tensor:
    """The new tokens alone, long [B, T], after prompts `ids` [B, P] under `mask` bool [B, P]; rest: for generate()."""
    base = unwrapped(lm)
    if has_virtual_tokens(lm):
        # generate() takes ids for what is cached; their values are never read.
        cached = ids.new_zeros(len(ids), lm.count)
        ids, mask = torch.cat([cached, ids], 1), torch.cat([cached == 0, mask], 1)
        arguments[lm.cache_argument] = lm.filled_cache(len(ids))
    return base.generate(input_ids=ids, attention_mask=mask.long(), **arguments)[:, ids.shape[1] :]
