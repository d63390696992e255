"""From a path to a model: hub ids, folders, GGUF files, adapters; tokenizers whose padding is never the stop token."""

import hashlib
import os
import platform
import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stages.base import InputError
from stages.models.hub import folder_of, name_and_revision
from stages.models.precision import DTYPES, device
from stages.models.quantization import four_bit_config
from stages.models.trusted import adapter_base, require_safe

if TYPE_CHECKING:  # who reads tokenizers alone, as `rlhf check`, does not wait for the classes of models
    from transformers import GenerationConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelSource:
    """Weights on disk: a base, and perhaps an adapter on it."""

    base: str
    adapter: Path | None = None

    @property
    def folder(self) -> str:
        """Where tokenizer and generation config lie."""
        return str(self.adapter or self.base)


def source_of(path: str | Path) -> ModelSource:
    """What a stage's `final/` or a `model.path` holds. A GGUF file is converted once into a cached folder."""
    path = str(path)
    if path.endswith(".gguf"):
        return ModelSource(convert_gguf(Path(path)))
    base = adapter_base(path)
    return ModelSource(path) if base is None else ModelSource(base, Path(path))


def cache_folder() -> Path:
    """`$RLHF_CACHE`, or `~/.cache/rlhf-pipeline`."""
    return Path(os.environ.get("RLHF_CACHE") or Path.home() / ".cache" / "rlhf-pipeline")


def convert_gguf(file: Path) -> str:
    """Dequantise a GGUF file into a plain transformers folder, once per content of the file.

    Raises InputError PATH01 when there is no such file, and those of `require_safe`.
    """
    if not file.is_file():
        raise InputError(
            "PATH01",
            f"model.path '{file}' is no file here",
            fix="correct model.path, or run the prepare script",
        )
    require_safe(file)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_folder() / f"{file.stem}-{digest[:12]}"
    if (folder / "config.json").is_file():
        return str(folder)
    from transformers import AutoModelForCausalLM

    print(f"converting {file.name} to {folder} (once)", flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    # save_pretrained refuses a model that still looks quantised; its weights are plain float32 by now.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    aside = aside_of(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    tokenizer.save_pretrained(aside)
    model.save_pretrained(aside)
    return str(put_in_place(aside, folder))


def aside_of(folder: Path) -> Path:
    """Where to write what will be `folder`; another one in every process on every host that shares the disk."""
    return folder.with_name(f".{folder.name}-{platform.node()}-{os.getpid()}")


def put_in_place(aside: Path, folder: Path) -> Path:
    """Rename a finished folder to its name; one that another process put there first is as good."""
    try:
        os.rename(aside, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(aside)
    return folder


def load_tokenizer(source: ModelSource, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a source, padding with an id that is not a stop token.

    Masks come from lengths everywhere in this project; the distinct id is for the readers of a reward model's
    folder, because transformers looks for the last id that is not padding, and would skip the stop token.
    """
    folder = folder_of(source.folder, code=trust_remote_code)
    require_safe(folder, trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    tokenizer.name_or_path, _ = name_and_revision(source.folder)
    tokenizer.init_kwargs.pop("local_files_only", None)  # of this machine: it would be saved with the tokenizer
    return _with_padding(tokenizer, source.folder)


def tokenizer_alone(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that a stage on this model will load; of a GGUF file without converting its weights.

    Raises InputError as load_tokenizer does.
    """
    file = Path(path)
    if file.suffix != ".gguf":
        return load_tokenizer(source_of(path), trust_remote_code)
    require_safe(file)
    # Not AutoTokenizer, which would first make a model's config of the whole header: 5 s for a vocabulary of 49k.
    return _with_padding(PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name), path)


def _with_padding(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    if tokenizer.eos_token_id is None:
        raise InputError(
            "TOK03",
            f"the tokenizer of '{name}' has no eos_token",
            fix="set eos_token in tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _padding_token(tokenizer)
    return tokenizer


def _padding_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token other than EOS, or else the last word of the vocabulary, which merges make rare."""
    unwanted = {tokenizer.eos_token, tokenizer.bos_token}
    named = [t for t in ("<|pad|>", "<pad>", "[PAD]", tokenizer.unk_token) if t and t in tokenizer.get_vocab()]
    special = [str(t) for t in tokenizer.added_tokens_decoder.values()]
    last_words = (tokenizer.convert_ids_to_tokens(i) for i in reversed(range(len(tokenizer))))
    return next(token for token in chain(named, special, last_words) if token not in unwanted)


def load_causal_lm(
    base: str, dtype: str = "float32", trust_remote_code: bool = False, quantization: str = "none"
) -> "PreTrainedModel":
    """A causal language model in eval mode, with dropout off for good so that the first ratio is exactly 1.

    Raises InputError PATH01 (no such model), DEP02 (4-bit weights where bitsandbytes cannot compute with them), and
    those of `require_safe`.
    """
    four_bit = {"quantization_config": four_bit_config(), "device_map": str(device())} if quantization == "4bit" else {}
    folder = folder_of(base, code=trust_remote_code)
    require_safe(folder, trust_remote_code)
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code, use_safetensors=True, **four_bit
        )
    except OSError as error:
        raise InputError(
            "PATH01", f"no model at '{base}' ({str(error).splitlines()[0]})", fix="correct model.path"
        ) from error
    # What an adapter on it writes down: the hub's name and revision, not where this machine keeps the snapshot.
    model.name_or_path, model.hub_revision = name_and_revision(base)
    model.config.name_or_path = model.name_or_path
    return disable_dropout(model.eval())


def disable_dropout(model: "PreTrainedModel") -> "PreTrainedModel":
    """Set every dropout probability to 0, in modules and in the config that attention reads."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def stop_ids(model: "PreTrainedModel", tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends a completion: the tokenizer's EOS and all of the model's generation config."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({tokenizer.eos_token_id, *(i for i in configured if i is not None)}))


def neutral_generation_config(stops: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> "GenerationConfig":
    """Plain sampling from the full softmax: what PPO trains is what the saved model does."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        eos_token_id=list(stops),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def same_reading(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers, with their templates, make the same ids of every row."""
    return a.chat_template == b.chat_template and same_tokenizer(a, b)


def same_tokenizer(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids, judged by content: vocabulary, added tokens and a probe."""
    probe = "The 3 quick-brown foxes' œuvre:\n\tcan't stop — 日本語 "
    return a.get_vocab() == b.get_vocab() and a(probe).input_ids == b(probe).input_ids
