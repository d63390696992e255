"""Mistakes in models, adapters, paths, reward functions and the environment."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.bad_inputs.data import row
from tests.bad_inputs.place import Case, replace, write

SCORED = ("reward=[{function: 'rewards.py:score'}]",)
JUDGED = ("evaluation.judge=rewards.py:score",)
ONE_EACH = "fix: return a list with one float per completion"


def function(body: str, signature: str = "prompts, completions, **columns") -> None:
    Path("rewards.py").write_text(f"def score({signature}):\n    {body}\n")


def model(folder: str, **config: object) -> None:
    """A folder with one head and the config of a model."""
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "config.json").write_text(json.dumps(config))
    save_file({"score.weight": np.zeros((3, 4), np.float32)}, f"{folder}/model.safetensors")


def adapter(layers: int = 2, width: int = 4, probe: str | None = None, empty: bool = False) -> None:
    """A base of two layers, and a LoRA adapter in `adapter` that says to be of it."""
    module = "model.layers.{}.self_attn.q_proj"
    save_file({f"{module.format(i)}.weight": np.ones((4, 4), np.float32) for i in range(2)}, "base/model.safetensors")
    shapes = {"lora_A": (2, width), "lora_B": (width, 2)}
    tensors = {
        f"base_model.model.{module.format(layer)}.{part}.weight": np.ones((0,) if empty else shape, np.float32)
        for layer in range(layers)
        for part, shape in shapes.items()
    }
    Path("adapter").mkdir()
    save_file(tensors, "adapter/adapter_model.safetensors")
    names = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base"}
    Path("adapter/adapter_config.json").write_text(json.dumps({**names, "target_modules": ["q_proj"]}))
    probes = {f"{module.format(0)}.weight": probe} if probe else {}
    Path("adapter/base.json").write_text(json.dumps({"id": "mother", "weights": "0" * 64, "probes": probes}))


def installed(name: str, version: str) -> None:
    """What pip leaves of a package of that version, found before the real one."""
    folder = Path("site", f"{name}-{version}.dist-info")
    folder.mkdir(parents=True)
    Path(folder, "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


CASES = [
    Case(
        13,
        "language model as reward model",
        "[STAGE01] reward model base is a model of kind 'causal_lm'; found no score head, expected a reward model; "
        "fix: set it to `reward_model`, to the final/ folder of that stage, or to a sequence classifier",
        overrides=("reward=[{model: base}]",),
    ),
    Case(
        13,
        "label that a classifier does not have",
        "[RM07] reward model scorer has no label 2; found 0 bad, 1 good; "
        "fix: set label_index of that term to one of 0 to 1",
        lambda: model("scorer", architectures=["LlamaForSequenceClassification"], id2label={"0": "bad", "1": "good"}),
        ("reward=[{model: scorer, label_index: 2}]",),
    ),
    Case(
        14,
        "reward model as policy",
        "[STAGE02] model.path classifier is a reward model (score head, no language-model head); "
        "fix: set model.path to a causal language model",
        overrides=("model.path=classifier",),
    ),
    Case(
        14,
        "encoder as policy",
        "[STAGE02] model.path encoder is a BertForMaskedLM, which does not generate text; "
        "fix: set model.path to a causal language model",
        lambda: model("encoder", architectures=["BertForMaskedLM"]),
        ("model.path=encoder",),
    ),
    Case(
        15,
        "classifier as reward model",
        "[RM01] reward model three gives 3 values per text (0 a, 1 b, 2 c); which is the score is not said; "
        "fix: set label_index of that term to one of 0 to 2",
        lambda: model(
            "three", architectures=["LlamaForSequenceClassification"], id2label={"0": "a", "1": "b", "2": "c"}
        ),
        ("reward=[{model: three}]",),
    ),
    Case(
        17,
        "adapter of another shape",
        "[PEFT01] the adapter adapter was not trained on 'base': it changes model.layers.0.self_attn.q_proj of shape "
        "(8, 8), there it is (4, 4); fix: name its own base in adapter/adapter_config.json, base_model_name_or_path",
        lambda: adapter(width=8),
        ("model.path=adapter",),
    ),
    Case(
        17,
        "adapter of other weights",
        "[PEFT01] the adapter adapter was not trained on 'base': model.layers.0.self_attn.q_proj.weight has other "
        "values there than in 'mother'; fix: name its own base in adapter/adapter_config.json, base_model_name_or_path",
        lambda: adapter(probe="0040" * 16),
        ("model.path=adapter",),
    ),
    Case(
        18,
        "incomplete adapter",
        "[PEFT02] adapter: holds 1 of 2 adapted modules; model.layers.1.self_attn.q_proj is missing; "
        "fix: give the final/ folder of a finished stage, or train it again",
        lambda: adapter(layers=1),
        ("model.path=adapter",),
    ),
    Case(
        18,
        "empty adapter",
        "[PEFT02] adapter: 4 of 4 tensors are empty, such as base_model.model.model.layers.0.self_attn.q_proj."
        "lora_A.weight (saved without gathering shards?); …",
        lambda: adapter(empty=True),
        ("model.path=adapter",),
    ),
    Case(
        18,
        "adapter without tensors",
        "[PEFT02] adapter: holds no tensors, expected those of an adapter in adapter_model.safetensors; …",
        lambda: (adapter(), os.remove("adapter/adapter_model.safetensors")),
        ("model.path=adapter",),
    ),
    Case(
        21,
        "path typo",
        "[PATH01] model.path: no file or folder './bse'; fix: did you mean base?",
        overrides=("model.path=./bse",),
    ),
    Case(
        21,
        "folder for a file",
        "[PATH01] data.prompts.train: base is a folder, expected a JSONL file; fix: name the file in it",
        overrides=("data.prompts.train=base",),
    ),
    Case(
        21,
        "config typo",
        "[CONF01] config.yaml:9: unknown key 'ppo.stepz'; fix: did you mean 'ppo.steps'?",
        lambda: replace("config.yaml", "{steps: 3", "{stepz: 3"),
    ),
    Case(
        23,
        "wrong count",
        f"[REW01] rewards.py:score returned 3 values for 4 completions; {ONE_EACH}",
        lambda: function("return [0.0] * (len(prompts) - 1)"),
        SCORED,
    ),
    Case(
        23,
        "not a number",
        "[REW02] rewards.py:score gave nan for sample 1 (prompt 'film 3', completion ' is great'); "
        "expected a finite number; fix: return a finite float for every completion",
        lambda: function("return [0.0, float('nan'), 0.0, 0.0]"),
        SCORED,
    ),
    Case(
        23,
        "raises on an empty completion",
        "[REW03] rewards.py:score raised ZeroDivisionError: division by zero at …/rewards.py:2 on sample 3 "
        "(prompt 'film 9', completion ''); fix: mend that line",
        lambda: function("return [1 / len(c) for c in completions]"),
        SCORED,
    ),
    Case(
        23,
        "judge that raises",
        "[REW03] rewards.py:score raised KeyError: 'text' at …/rewards.py:2 on sample 0 "
        "(prompt 'film 100', completion ' is great'); fix: mend that line",
        lambda: function("return [columns['text'] for c in completions]"),
        JUDGED,
    ),
    Case(
        23,
        "never returns",
        "[REW05] rewards.py:score has not returned after 1 s on 4 samples; it is at …/rewards.py:2; "
        "fix: mend it, or give it longer: check.reward_seconds",
        lambda: function("import time; time.sleep(1e6)"),
        (*SCORED, "check.reward_seconds=1"),
    ),
    Case(
        24,
        "not importable",
        "[REW04] reward function 'rewards.py:score' cannot be imported (No module named 'no_such'); "
        "fix: module:function, or path/to/file.py:function",
        lambda: Path("rewards.py").write_text("import no_such\n"),
        SCORED,
    ),
    Case(
        24,
        "other parameters",
        "[REW04] rewards.py:score takes (prompts); needs (prompts, completions, **columns); "
        "fix: add the missing parameters",
        lambda: function("return []", "prompts"),
        SCORED,
    ),
    Case(
        24,
        "column that the data lacks",
        "[REW04] rewards.py:score needs 'label', which is no column of the prompt data and no argument; found answer; "
        "fix: add 'label' to the prompt rows, or give it a default",
        lambda: function("return label", "prompts, completions, label, **columns"),
        SCORED,
    ),
    Case(
        24,
        "metric against a column that the data lacks",
        "[REW04] prompts.jsonl row 1: no column 'answr', which the reward term 'bleu' compares with; found answer; "
        "fix: set reward.0.reference=answer",
        overrides=("reward=[{metric: bleu, reference: answr}]",),
    ),
    Case(
        24,
        "metric against a held-out column that is missing",
        "[REW04] prompts.eval.jsonl row 1: no column 'answer', which the reward term 'rougeL' compares with; "
        "found none beside prompt; fix: add 'answer' to every row",
        lambda: write("prompts.eval.jsonl", *({"prompt": f"film {n}"} for n in range(100, 104))),
        ("reward=[{metric: rougeL, reference: answer}]",),
    ),
    Case(
        24,
        "metric against numbers",
        "[DATA02] prompts.jsonl row 3: 'answer' is a number, expected a text, a list of texts, or null; "
        "fix: correct or remove them",
        lambda: row("prompts.jsonl", 3, answer=7),
        ("reward=[{metric: exact_match, reference: answer}]",),
    ),
    Case(
        24,
        "metric against nothing",
        "[REW04] prompts.jsonl: 'answer' is null in all 12 rows, so the reward term 'chrf' never applies; "
        "fix: write the texts to compare with, or remove reward.0",
        lambda: write("prompts.jsonl", *({"prompt": f"film {n}", "answer": None} for n in range(12))),
        ("reward=[{metric: chrf, reference: answer}]",),
    ),
    Case(
        24,
        "metric of no such name",
        "[CONF02] override 'reward=[{metric: blue, reference: answer}]': 'reward.0.metric' is wrong; found 'blue', …",
        overrides=("reward=[{metric: blue, reference: answer}]",),
    ),
    Case(
        24,
        "single call that raises",
        "[REW03] rewards.py:score raised ZeroDivisionError: division by zero at …/rewards.py:2 on sample 3 "
        "(prompt 'film 9', completion ''); fix: mend that line",
        lambda: function("return 1 / len(completion)", "prompt, completion, **columns"),
        ("reward=[{function: 'rewards.py:score', call: single}]",),
    ),
    Case(
        27,
        "W&B online without key",
        "[WB01] tracking.wandb: online, but there is no API key (WANDB_API_KEY, ~/.netrc) and no terminal to ask at; "
        "fix: `wandb login`, or set WANDB_API_KEY, or tracking.wandb=auto",
        overrides=("tracking.wandb=online",),
        exit=3,
    ),
    Case(
        30,
        "old package",
        "[DEP01] package trl: found 0.9.6, expected <2,>=1.16; fix: pip install -c constraints.txt 'trl<2,>=1.16'",
        lambda: installed("trl", "0.9.6"),
        exit=3,
    ),
]
