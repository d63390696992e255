"""Two-layer models of width 32 with fixed weights, their character tokenizer, and the services of a stage.

Initial weights are scaled up (std 0.3), so that distributions are far from uniform and mistakes are visible.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pipeline.checkpoints import CheckpointManager
from stages.base import StageContext

torch.set_num_threads(1)

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(4)
CHARACTERS = "abcdefghijklmnopqrstuvwxyz .,!?\n:"
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'][:1] + ':' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
ARCHITECTURES = ("gpt2", "llama", "gpt_neox")


def toy_config(architecture: str, **changes: Any) -> PreTrainedConfig:
    """A config of two layers and width 32 whose special ids are those of the toy tokenizer."""
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "vocab_size": VOCABULARY}
    if architecture == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}
        return GPT2Config(**sizes | ids | changes)
    wide = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    rest = {"max_position_embeddings": 128, "initializer_range": 0.3, **wide, **ids, **changes}
    if architecture == "llama":
        return LlamaConfig(**{"num_key_value_heads": 2, **rest})
    if architecture == "gpt_neox":
        return GPTNeoXConfig(**{"hidden_dropout": 0.1, "attention_dropout": 0.1, **rest})
    return AutoConfig.for_model(architecture, **{"num_key_value_heads": 2, "head_dim": 8, **rest})


def toy_lm(architecture: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A causal model with random weights in eval mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(toy_config(architecture, **changes)).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, where they could hide a mistake
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def toy_tokenizer(**changes: Any) -> PreTrainedTokenizerFast:
    """One token per character, BOS in front, a chat template; keyword arguments replace its settings."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    tokenizer.decoder = decoders.Fuse()
    settings = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings | {"chat_template": CHAT_TEMPLATE} | changes)


def bare_tokenizer(tokens: Sequence[str], special: Sequence[str] = (), **roles: str) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly these tokens, of which `special` are special, with the given special roles."""
    tokenizer = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=roles.get("unk_token", tokens[0]))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def save_toy(folder: Path, architecture: str = "llama", seed: int = 0, tokenizer: Any = None, **changes: Any) -> Path:
    """A model folder with weights and tokenizer."""
    toy_lm(architecture, seed, **changes).save_pretrained(folder)
    (tokenizer or toy_tokenizer()).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    """Ids of ordinary tokens."""
    return torch.randint(len(SPECIAL), VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def noise(model: torch.nn.Module, only: str = "", seed: int = 0, scale: float = 0.1) -> None:
    """Add noise to every parameter whose name contains `only`, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@dataclass
class MemoryTracker:
    """Keeps what a stage logs."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append({"step": step, **metrics})

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        self.rows += [{"step": step, **row} for row in rows]

    def series(self, name: str) -> list[float]:
        """All logged values of a metric."""
        return [row[name] for row in self.metrics if name in row]


def context(folder: Path, seed: int = 0) -> StageContext:
    """The services of a stage, remembering its log in `context.tracker`."""
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(folder, MemoryTracker(), CheckpointManager(folder / "checkpoints", keep=2), seed)
