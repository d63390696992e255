"""Mistakes that users make, driven through `rlhf`: each is told before a model is loaded, with code, place and fix.

Numbers are rows of a list of thirty such mistakes. Those of texts as tokens (4 to 8, 10, 16) have more in
pipeline/texts, those of checkpoints and storage (19, 20, 22, 29) are in pipeline, empty completions (9) in stages/ppo.
Two, a host file and a DeepSpeed configuration (25, 26), cannot be made yet: there is no launcher.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline import cli

ROOT = Path(__file__).parents[1]
CONFIG = """\
run: {name: small}
model: {path: base}
data:
  demonstrations: {train: demonstrations.jsonl, eval: demonstrations.eval.jsonl}
  preferences: {train: preferences.jsonl, eval: preferences.eval.jsonl}
  prompts: {train: prompts.jsonl, eval: prompts.eval.jsonl}
sft: {batch_size: 4, microbatch_size: 2, max_length: 32}
reward_model: {batch_size: 4, microbatch_size: 2, max_length: 32}
ppo: {steps: 3, rollout_batch_size: 4, minibatch_size: 2, microbatch_size: 1, max_prompt_tokens: 16, max_new_tokens: 8}
"""
ROWS: dict[str, Callable[[int], dict[str, str]]] = {
    "demonstrations": lambda n: {"prompt": f"film {n}", "completion": " is great"},
    "preferences": lambda n: {"prompt": f"film {n}", "chosen": " is great", "rejected": " is bad"},
    "prompts": lambda n: {"prompt": f"film {n}", "answer": "great"},
}
FOLDERS = {"base": "LlamaForCausalLM", "classifier": "LlamaForSequenceClassification"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a config without mistakes, twelve rows in each training file and four in each other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RLHF_DEBUG", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    Path("config.yaml").write_text(CONFIG)
    for folder, architecture in FOLDERS.items():
        Path(folder).mkdir()
        content = {"architectures": [architecture], "max_position_embeddings": 64}
        Path(folder, "config.json").write_text(json.dumps(content))
    for name, row in ROWS.items():
        write(f"{name}.jsonl", *map(row, range(12)))
        write(f"{name}.eval.jsonl", *map(row, range(100, 104)))
    return tmp_path


def write(name: str, *rows: object) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def replace(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


def function(body: str, signature: str = "prompts, completions, **columns") -> None:
    Path("rewards.py").write_text(f"def score({signature}):\n    {body}\n")


@dataclass(frozen=True)
class Case:
    """One mistake, and what has to be said about it."""

    row: int
    name: str
    said: str
    """The line that is printed; `…` stands for anything."""
    make: Callable[[], None] = lambda: None
    overrides: tuple[str, ...] = ()
    exit: int = 2

    @property
    def id(self) -> str:
        return f"{self.row}-{self.name}"


SCORED = ("reward=[{function: 'rewards.py:score'}]",)
JUDGED = ("evaluation.judge=rewards.py:score",)
UNUSABLE = "(all unusable rows at once: sed -i.bak '{}' {})"
ONE_EACH = "fix: return a list with one float per completion"


def row(name: str, number: int, **changes: object) -> None:
    rows = [json.loads(line) for line in Path(name).read_text().splitlines()]
    rows[number - 1] |= changes
    write(name, *rows)


def nulls() -> None:
    for number in (3, 7, 12):
        row("preferences.jsonl", number, chosen=None)


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


def installed(name: str, version: str) -> None:
    """What pip leaves of a package of that version, found before the real one."""
    folder = Path("site", f"{name}-{version}.dist-info")
    folder.mkdir(parents=True)
    Path(folder, "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


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
        13,
        "language model as reward model",
        "[STAGE01] reward model base is a model of kind 'causal_lm'; found no score head, expected a reward model; "
        "fix: set it to `reward_model`, or to the final/ folder of that stage",
        overrides=("reward=[{model: base}]",),
    ),
    Case(
        13,
        "reward model without its centring",
        "[STAGE01] reward model scorer has no reward_model.json (centring and probes), so no stage here made it; "
        "fix: set it to `reward_model`, or to the final/ folder of that stage",
        lambda: model("scorer", architectures=["LlamaForSequenceClassification"], id2label={"0": "LABEL_0"}),
        ("reward=[{model: scorer}]",),
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
        "[RM01] reward model three gives 3 values per text (num_labels), need 1: it is a classifier; "
        "fix: train one: data.preferences and reward_model, or score by a function",
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


def rlhf(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and what was printed by the command in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    printed = capsys.readouterr()
    return ended.value.code or 0, printed.out, printed.err


def tells(line: str, said: str) -> bool:
    """Whether a line is what has to be said; `…` stands for anything."""
    start, gap, end = said.partition("…")
    return line.startswith(start) and line.endswith(end) if gap else line == said


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_a_config_without_mistakes_has_none(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = rlhf(capsys, "check", "config.yaml")
    assert (code, err) == (0, "")
    assert out.endswith("config.yaml: no mistakes found\n")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_mistake_is_told_with_its_place_and_its_fix(
    case: Case, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.make()
    code, out, err = rlhf(capsys, "check", "config.yaml", *case.overrides)
    assert [line for line in err.splitlines() if not tells(line, case.said)] == []
    assert err.count("\n") == 1
    assert code == case.exit
    assert "Traceback" not in out + err


@pytest.mark.parametrize("command", ["check", "run"])
def test_mistakes_of_all_files_come_together_from_check_and_run(place: Path, command: str) -> None:
    cases = [CASES[0], CASES[1], next(case for case in CASES if case.name == "path typo")]
    for case in cases:
        case.make()
    done = shell(command, "config.yaml", *cases[-1].overrides)
    assert sorted(done.stderr.splitlines()) == sorted(case.said for case in cases)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr


def test_a_traceback_is_shown_on_demand_with_the_same_exit_code(place: Path) -> None:
    done = shell("--debug", "check", "config.yaml", "model.path=./bse")
    assert "Traceback" in done.stderr
    assert "[PATH01] model.path: no file or folder './bse'" in done.stderr
    assert done.returncode == 2


def test_mistakes_of_config_data_models_and_rewards_come_together(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nulls()
    replace("config.yaml", "{steps: 3", "{stepz: 3")
    function("return None")
    overrides = (*SCORED, "model.path=./bse", "sft.learning_rate=fast", "tracking.wandb=online")
    code, _, err = rlhf(capsys, "check", "config.yaml", *overrides)
    assert [line.partition("]")[0] for line in err.splitlines()] == [
        "[CONF01", "[CONF02", "[WB01", "[DATA02", "[PATH01", "[REW01",
    ]  # fmt: skip
    assert code == 2  # as long as a person's hand is needed


def test_parts_that_are_mistaken_in_the_config_are_not_blamed_twice(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace("config.yaml", "prompts: {train: prompts.jsonl", "prompts: {trian: prompts.jsonl")
    _, _, err = rlhf(capsys, "check", "config.yaml")
    assert sorted(line.partition("]")[0] for line in err.splitlines()) == ["[CONF01", "[CONF06"]


def test_a_few_oddities_are_told_and_refuse_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("preferences.jsonl", *map(ROWS["preferences"], [*range(30), 3]))
    row("prompts.eval.jsonl", 2, prompt="film 5")
    code, out, _ = rlhf(capsys, "check", "config.yaml", "ppo.rollout_batch_size=16")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("note: ") and "tokens" not in line] == [
        "note: preferences.jsonl: 1 of 31 rows repeat an earlier row (31)",
        "note: prompts.eval.jsonl: 1 of 4 rows are also in prompts.jsonl (2); what is measured on them is flattered",
        "note: data.prompts.train has 12 rows, fewer than ppo.rollout_batch_size 16: each rollout repeats prompts",
        "note: data.prompts.eval has 4 rows, fewer than ppo.eval_prompts 64 and evaluation.prompts 256: all are used",
    ]


def test_what_is_in_order_is_said_stage_by_stage(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    function("return [float(len(c)) for c in completions]")
    _, out, _ = rlhf(capsys, "check", "config.yaml", *SCORED)
    said = [
        "[environment] W&B disabled",
        "[sft] demonstrations.eval.jsonl: 4 rows of prompt, completion, none of them in train",
        "[reward_model] preferences.jsonl: 12 rows of prompt, chosen, rejected",
        "[ppo] prompts.jsonl: 12 rows of prompt, answer",
        "[ppo] rewards.py:score on 4 samples: 9, 9, 9, 0",
    ]
    assert [line for line in said if line not in out.splitlines()] == []
