"""Make a tiny language model and a task whose true score is known, in seconds and without any download.

    python scripts/prepare_tiny.py --out data/tiny [--seed 0]

The task: strings of consonant-vowel syllables from a random grammar. People are simulated by a formula,
the gold score: they like the letter "a" and mildly dislike length. The judge of configs/tiny.yaml reads that
formula, the reward model has to learn it from pairs.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>", "<system>", "<user>", "<assistant>"]
SYMBOLS = " .,?!\n"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TARGET = "a"
LENGTH_COST = 0.02
"""Gold score that each letter costs."""
GOOD = 0.15
"""Gold score above which the judge counts a completion as a success; one string of the grammar in nine."""
ROWS = {"demonstrations": (1536, 128), "preferences": (1536, 256), "prompts": (256, 128)}
"""Training and held-out rows of each file."""


def gold(completion: str) -> float:
    """Fraction of the letters that are the target, minus a small cost per letter; -1 for an empty string."""
    if not completion:
        return -1.0
    return completion.count(TARGET) / len(completion) - LENGTH_COST * len(completion)


def good(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """The judge: 1 where the gold score is above GOOD, else 0."""
    return [float(gold(completion) > GOOD) for completion in completions]


class Grammar:
    """Random syllables: each consonant follows the previous one with a probability of its own."""

    def __init__(self, seed: int):
        random_weights = random.Random(seed)
        self._weights = {last: [random_weights.random() ** 3 for _ in CONSONANTS] for last in [*CONSONANTS, ""]}

    def string(self, source: random.Random, syllables: int, last: str = "") -> str:
        """`syllables` syllables that continue after the consonant `last`."""
        text = ""
        for _ in range(syllables):
            last = source.choices(CONSONANTS, self._weights[last])[0]
            text += last + source.choice(VOWELS)
        return text

    def completion(self, source: random.Random, prompt: str) -> str:
        """Two to five syllables after `prompt`."""
        return self.string(source, source.randint(2, 5), last=prompt[-2])


def prompt(grammar: Grammar, source: random.Random) -> str:
    """An opening of two syllables."""
    return grammar.string(source, 2)


def demonstration(grammar: Grammar, source: random.Random) -> dict[str, str]:
    """An opening and how the grammar goes on."""
    start = prompt(grammar, source)
    return {"prompt": start, "completion": grammar.completion(source, start)}


def preference(grammar: Grammar, source: random.Random) -> dict[str, str]:
    """Two completions of one opening, the one of higher gold score chosen."""
    start = prompt(grammar, source)
    while True:
        first, second = (grammar.completion(source, start) for _ in range(2))
        if gold(first) != gold(second):
            chosen, rejected = sorted((first, second), key=gold, reverse=True)
            return {"prompt": start, "chosen": chosen, "rejected": rejected}


def prompt_row(grammar: Grammar, source: random.Random) -> dict[str, str]:
    """An opening alone."""
    return {"prompt": prompt(grammar, source)}


def distinct(make: Callable[[], dict[str, str]], count: int) -> list[dict[str, str]]:
    """The first `count` different rows."""
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < count:
        row = make()
        rows.setdefault(json.dumps(row), row)
    return list(rows.values())


def build_rows(seed: int) -> dict[str, list[dict[str, str]]]:
    """Rows of every file, by its stem; no row is both in a training and a held-out file."""
    grammar, source = Grammar(seed), random.Random(seed + 1)
    makers = {"demonstrations": demonstration, "preferences": preference, "prompts": prompt_row}
    files = {}
    for name, make in makers.items():
        train, held_out = ROWS[name]
        rows = distinct(lambda make=make: make(grammar, source), train + held_out)
        files[f"{name}.train"], files[f"{name}.eval"] = rows[:train], rows[train:]
    return files


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """One token per character, distinct pad, bos and eos, a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *VOWELS, *CONSONANTS, *SYMBOLS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=64,
    )


def build_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "LlamaForCausalLM":
    """Two Llama layers of width 64 with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def write(out: Path, seed: int) -> None:
    """Fill a temporary folder, then move its files: none is ever half written."""
    (out / "model").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".preparing-") as temporary:
        tokenizer = build_tokenizer()
        tokenizer.save_pretrained(Path(temporary) / "model")
        build_model(tokenizer, seed).save_pretrained(Path(temporary) / "model")
        for name, rows in build_rows(seed).items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (Path(temporary) / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        for path in sorted(p for p in Path(temporary).rglob("*") if p.is_file()):
            os.replace(path, out / path.relative_to(temporary))


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="A tiny model and a task whose true score is known.")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets model/ and the JSONL files")
    parser.add_argument("--seed", type=int, default=0, help="decides grammar, rows and weights")
    args = parser.parse_args(arguments)
    write(args.out, args.seed)
    print(f"model and data in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
