"""Mistakes in rows, their number and their length. The first three are told about three different files."""

import json
import shutil
from pathlib import Path

from tests.bad_inputs.place import Case, replace, write

UNUSABLE = "(all unusable rows at once: sed -i.bak '{}' {})"


def row(name: str, number: int, **changes: object) -> None:
    rows = [json.loads(line) for line in Path(name).read_text().splitlines()]
    rows[number - 1] |= changes
    write(name, *rows)


def nulls() -> None:
    for number in (3, 7, 12):
        row("preferences.jsonl", number, chosen=None)


def tokenizer(rows: int | None = None, **settings: object) -> None:
    """A base with a real tokenizer, one token per character, and an embedding of so many rows."""
    from tests.toy_models import VOCABULARY, toy_config, toy_tokenizer  # torch

    shutil.rmtree("base")
    toy_config("llama", vocab_size=rows or VOCABULARY, architectures=["LlamaForCausalLM"]).save_pretrained("base")
    toy_tokenizer(**settings).save_pretrained("base")


def chat() -> None:
    """Messages for a tokenizer without template."""
    tokenizer(chat_template=None)
    talk = [{"role": "user", "content": "film?"}, {"role": "assistant", "content": "good"}]
    write("demonstrations.jsonl", *[{"messages": talk}] * 12)


def swap() -> None:
    """Three pairs that say the opposite of three others."""
    rows = [json.loads(line) for line in Path("preferences.jsonl").read_text().splitlines()]
    turned = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows[:3]]
    write("preferences.jsonl", *rows, *turned)


CASES = [
    Case(
        1,
        "missing column",
        "[DATA01] preferences.jsonl row 1: no field 'rejected' (12 such rows: 1, 2, 3, 4, 5, ...). "
        "Found: prompt, chosen, reject. Did you mean 'reject'?; fix: rename 'reject' to 'rejected'",
        lambda: replace("preferences.jsonl", '"rejected"', '"reject"'),
    ),
    Case(
        3,
        "broken line",
        "[DATA03] prompts.jsonl line 12: not JSON (Expecting ',' delimiter, column 23); "
        "fix: write one JSON object per line " + UNUSABLE.format("12d", "prompts.jsonl"),
        lambda: replace("prompts.jsonl", '"film 11", ', '"film 11"  '),
    ),
    Case(
        1,
        "column of held-out rows alone",
        "[DATA01] prompts.eval.jsonl row 1: no field 'prompt' (4 such rows: 1, 2, 3, 4). "
        "Found: question, answer; fix: add 'prompt'",
        lambda: replace("prompts.eval.jsonl", '"prompt"', '"question"'),
    ),
    Case(
        2,
        "null",
        "[DATA02] preferences.jsonl row 3: 'chosen' is null (3 such rows: 3, 7, 12); fix: correct or remove them "
        + UNUSABLE.format("3d;7d;12d", "preferences.jsonl"),
        nulls,
    ),
    Case(
        2,
        "number for text",
        "[DATA02] demonstrations.jsonl row 5: 'completion' is a number, expected a string; fix: correct or remove them "
        + UNUSABLE.format("5d", "demonstrations.jsonl"),
        lambda: row("demonstrations.jsonl", 5, completion=3),
    ),
    Case(
        2,
        "empty completion",
        "[DATA02] demonstrations.jsonl row 5: 'completion' is empty; fix: correct or remove them "
        + UNUSABLE.format("5d", "demonstrations.jsonl"),
        lambda: row("demonstrations.jsonl", 5, completion=" "),
    ),
    Case(
        3,
        "empty file",
        "[DATA03] demonstrations.jsonl holds no rows; fix: check the path, or run the script that makes the data",
        lambda: Path("demonstrations.jsonl").write_text(""),
    ),
    Case(
        3,
        "other encoding",
        "[DATA03] prompts.jsonl line 2: not UTF-8; fix: save the file as UTF-8",
        lambda: Path("prompts.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n'),
    ),
    Case(
        4,
        "messages without template",
        "[TMPL01] demonstrations.jsonl row 1: the data has messages but the tokenizer has no chat_template; …",
        chat,
        ("data.demonstrations.eval=null",),
    ),
    Case(
        8,
        "more tokens than embedding rows",
        "[TOK02] base: the tokenizer has …",
        lambda: tokenizer(pad_token="[PAD]"),
    ),
    Case(
        10,
        "no target tokens",
        "[DATA04] demonstrations.jsonl: 12 of 12 rows have no target token, their prompts have 7 tokens or more "
        "(median 7; rows 1, 2, 3, 4, 5, ...); fix: raise sft.max_length; the longest row has 18 tokens",
        tokenizer,
        ("sft.max_length=7", "data.demonstrations.eval=null"),
    ),
    Case(
        28,
        "longer than the context",
        "[LEN01] ppo.max_prompt_tokens + max_new_tokens is 65 tokens, more than the model's context 64; "
        "fix: lower ppo.max_prompt_tokens + max_new_tokens",
        overrides=("ppo.max_prompt_tokens=57",),
    ),
    Case(
        11,
        "fewer rows than a batch",
        "[BATCH01] data.demonstrations.train has 12 rows, fewer than sft.batch_size 16; "
        "fix: add rows, or sft.batch_size=12 sft.microbatch_size=12",
        overrides=("sft.batch_size=16",),
    ),
    Case(
        12,
        "batches that do not divide",
        "[BATCH02] override 'ppo.rollout_batch_size=10': ppo.rollout_batch_size 10 is not a multiple of "
        "ppo.minibatch_size 4; fix: ppo.rollout_batch_size=8 or ppo.rollout_batch_size=12",
        overrides=("ppo.rollout_batch_size=10", "ppo.minibatch_size=4", "ppo.microbatch_size=4"),
    ),
    Case(
        12,
        "microbatches that do not divide",
        "[BATCH02] sft.batch_size 4 is not a multiple of sft.microbatch_size 3; fix: sft.microbatch_size=2",
        overrides=("sft.microbatch_size=3",),
    ),
    Case(
        0,
        "held-out rows that are training rows",
        "[DATA08] prompts.jsonl: 12 of 12 rows are also in prompts.jsonl (1, 2, 3, 4, 5, ...), more than "
        "check.max_shared_rows 0.5; fix: hold out rows that training does not see, or check.max_shared_rows=1.00",
        overrides=("data.prompts.eval=prompts.jsonl",),
    ),
    Case(
        0,
        "swapped pairs",
        "[DATA09] preferences.jsonl: 6 of 15 rows prefer what another row of the same prompt rejects "
        "(1, 2, 3, 13, 14, ...), more than check.max_conflicting_pairs 0.1; "
        "fix: check whether chosen and rejected are swapped, or check.max_conflicting_pairs=0.41",
        swap,
    ),
    Case(
        0,
        "equal pairs",
        "[DATA05] preferences.jsonl 'chosen' equals 'rejected' in 12 of 12 rows (1, 2, 3, 4, 5, ...); "
        "fix: check what wrote the file, then remove those rows",
        lambda: replace("preferences.jsonl", " is bad", " is great"),
    ),
]
