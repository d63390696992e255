"""PPO on two ranks under ZeRO 0 to 3 is PPO on one: same weights, same log, same resume, plain files."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.config_loading import load_config
from pipeline.rundir import RunDir
from pipeline.stage_process import run_stage
from tests.distributed.ranks import interrupted, on_two_ranks
from tests.toy_models import random_ids, save_toy, write_rows

METHODS = {
    "full": "{method: full}",
    "adapter": "{method: adapter}",
    "prefix_tuning": "{method: prefix_tuning, virtual_tokens: 3, projection: true}",
    "lora": "{method: lora, r: 4}",
}
ZERO = (0, 1, 2, 3)
HALF = "half"
"""LoRA with products in float16."""
STEPS = 3
CONFIG = """\
run: {{name: ranks, root: {root}}}
seed: 3
model: {{path: {base}, compute: {compute}}}
{trunk}
data:
  demonstrations: {{train: {data}/demonstrations.jsonl}}
  preferences: {{train: {data}/preferences.jsonl}}
  prompts: {{train: {data}/prompts.jsonl, eval: {data}/prompts.jsonl}}
reward:
  - {{model: reward_model, normalise: running}}
  - {{metric: length, arguments: {{target: 4, unit: characters}}, weight: 0.5, clip: 2, normalise: running_centred}}
  - {{metric: chrf, reference: answer, weight: 0.5}}
sft: {{tuning: {tuning}, max_steps: 2, learning_rate: 1e-2, batch_size: 4, microbatch_size: 4, max_length: 32}}
reward_model: {{tuning: {tuning}, max_steps: 2, learning_rate: 1e-2, batch_size: 4, microbatch_size: 4, max_length: 32}}
ppo: {{tuning: {tuning}, steps: 3, rollout_batch_size: 8, minibatch_size: 4, microbatch_size: 1, ppo_epochs: 2,
  max_prompt_tokens: 12, max_new_tokens: 6, learning_rate: 1e-3, max_grad_norm: 0.1, checkpoint_every: 1,
  keep_checkpoints: 3, eval_prompts: 3, eval_every: 2, max_empty_fraction: 1.0}}
"""
STARTS = ("the film", "a plot", "my seat", "so bad")
ANSWERS = ("is good", None, ["so bad", "was sad"], "a film")
IDS = random_ids(2, 8)


@dataclass(frozen=True)
class Cases:
    """Finished runs: of one process by method, of two ranks by (method, ZeRO stage)."""

    alone: dict[str, RunDir]
    ranks: dict[tuple[str, int], RunDir]
    resumed: dict[tuple[str, int], RunDir]
    left_out: dict[str, RunDir]
    """Of two ranks, where gradients are computed and then left out."""
    codes: dict[str, int]
    log: str


def weights(run: RunDir) -> dict[str, Tensor]:
    return load_file(next(run.stage("ppo").final.glob("*model.safetensors")))


def furthest(one: RunDir, other: RunDir) -> float:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def chain(root: Path, method: str, data: Path, base: Path) -> RunDir:
    """SFT, reward model and PPO in this process."""
    root.mkdir()
    trunk = "trunk: {frozen_layers: 1}" if method in ("adapter", "lora", HALF) else ""
    compute, tuning = ("float16", METHODS["lora"]) if method == HALF else ("float32", METHODS[method])
    text = CONFIG.format(root=root, base=base, data=data, tuning=tuning, trunk=trunk, compute=compute)
    (root / "config.yaml").write_text(text)
    run = RunDir.create(load_config(root / "config.yaml"), ["test"])
    for stage in ("sft", "reward_model", "ppo"):
        assert run_stage(run, stage) == 0
    return run


def split(alone: RunDir, root: Path, stage: int, *more: str) -> RunDir:
    """The same run before its PPO stage, to be run under ZeRO, with `more` overrides."""
    root.mkdir(exist_ok=True)
    config = alone.path.parent / "config.yaml"
    run = RunDir.create(load_config(config, [f"run.root={root}", f"deepspeed.zero_stage={stage}", *more]), ["test"])
    for name in ("sft", "reward_model"):
        shutil.copytree(alone.stage(name).path, run.stage(name).path)
    return run


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    root = tmp_path_factory.mktemp("ranks")
    base = save_toy(root / "base")
    demonstrations = [{"prompt": s, "completion": c} for s in STARTS for c in (" is good.", " is bad!")]
    write_rows(root / "demonstrations.jsonl", demonstrations)
    pairs = [{"prompt": s, "chosen": " is good.", "rejected": c} for s in STARTS for c in (" is bad!", " was sad")]
    write_rows(root / "preferences.jsonl", pairs)
    write_rows(root / "prompts.jsonl", [{"prompt": s, "answer": a} for s, a in zip(STARTS, ANSWERS, strict=True)])
    alone = {method: chain(root / method, method, root, base) for method in (*METHODS, HALF)}
    ranks = {(m, z): split(alone[m], root / f"{m}-zero{z}", z) for m in (*METHODS, HALF) for z in ZERO}
    offload, early = "deepspeed.offload_optimizer=true", "ppo.target_kl=1e-6"
    left_out = {
        "half offloaded": split(alone[HALF], root / "half-offloaded", 2, offload),
        "early": split(alone["lora"], root / "early", 2, early),
        "early offloaded": split(alone["lora"], root / "early-offloaded", 2, early, offload),
    }
    codes = on_two_ranks("ppo", [run.path for run in (*ranks.values(), *left_out.values())], root / "log.txt")
    resumed = {}
    for (m, z), run in ranks.items():
        if codes.get(f"{m}-zero{z}") == 0:
            resumed[m, z] = RunDir(interrupted(run.path, root / f"{m}-zero{z}-again", "ppo", at=1))
    # A run of one process goes on with two, and the other way round.
    for m in (*METHODS, HALF):
        there = RunDir(interrupted(alone[m].path, root / f"{m}-spread", "ppo", at=1))
        RunDir.create(load_config(root / m / "config.yaml", [f"run.root={there.path.parent}"]), ["test"])
        resumed[m, -1] = there
    codes |= on_two_ranks("ppo", [run.path for run in resumed.values()], root / "log-again.txt")
    return Cases(
        alone, ranks, resumed, left_out, codes, (root / "log.txt").read_text() + (root / "log-again.txt").read_text()
    )


ALL = [(m, z) for m in METHODS for z in ZERO]


@pytest.mark.parametrize(("method", "zero"), ALL)
def test_two_ranks_train_as_one_does(cases: Cases, method: str, zero: int):
    assert cases.codes[f"{method}-zero{zero}"] == 0, cases.log[-3000:]
    assert furthest(cases.alone[method], cases.ranks[method, zero]) <= 1e-6


@pytest.mark.parametrize(("method", "zero"), ALL)
def test_a_resumed_run_ends_with_the_same_bits(cases: Cases, method: str, zero: int):
    assert cases.codes[f"{method}-zero{zero}-again"] == 0, cases.log[-3000:]
    assert "resuming from" in cases.log
    assert furthest(cases.ranks[method, zero], cases.resumed[method, zero]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_one_process_goes_on_with_two(cases: Cases, method: str):
    assert cases.codes[f"{method}-spread"] == 0, cases.log[-3000:]
    assert furthest(cases.alone[method], cases.resumed[method, -1]) <= 1e-6


@pytest.mark.parametrize(("method", "zero"), [("full", 3), ("lora", 3), ("prefix_tuning", 2)])
def test_a_run_of_two_ranks_goes_on_with_one_process(cases: Cases, method: str, zero: int, tmp_path: Path):
    run = RunDir(interrupted(cases.ranks[method, zero].path, tmp_path, "ppo", at=1))
    config = cases.alone[method].path.parent / "config.yaml"
    RunDir.create(load_config(config, [f"run.root={tmp_path}"]), ["test"])
    assert run_stage(run, "ppo") == 0
    assert furthest(cases.alone[method], run) <= 1e-6


@pytest.mark.parametrize(("method", "zero"), ALL)
@torch.no_grad()
def test_what_two_ranks_leave_loads_plainly(cases: Cases, method: str, zero: int):
    kind = AutoModelForCausalLM if method == "full" else AutoPeftModelForCausalLM
    ours, theirs = (
        kind.from_pretrained(run.stage("ppo").final).eval() for run in (cases.ranks[method, zero], cases.alone[method])
    )
    assert (ours(IDS).logits - theirs(IDS).logits).abs().max() <= 1e-5


@pytest.mark.parametrize(("method", "zero"), ALL)
def test_the_log_has_each_step_once_with_the_same_numbers(cases: Cases, method: str, zero: int):
    ours, theirs = (
        [json.loads(line) for line in (run.stage("ppo").path / "metrics.jsonl").read_text().splitlines()]
        for run in (cases.ranks[method, zero], cases.alone[method])
    )
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        names = {n for n in other if not n.startswith("time") and "per_second" not in n}
        assert names == {n for n in mine if not n.startswith("time") and "per_second" not in n}
        for name in names:
            assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


def scales(run: RunDir, role: str) -> list[float]:
    rows = map(json.loads, (run.stage("ppo").path / "metrics.jsonl").read_text().splitlines())
    return [row[f"{role}/loss_scale"] for row in rows if f"{role}/loss_scale" in row]


@pytest.mark.parametrize("zero", ZERO)
def test_products_in_float16_train_and_resume_to_the_same_bits(cases: Cases, zero: int):
    run, resumed = cases.ranks[HALF, zero], cases.resumed[HALF, zero]
    assert cases.codes[f"{HALF}-zero{zero}"] == cases.codes[f"{HALF}-zero{zero}-again"] == 0, cases.log[-3000:]
    assert furthest(run, resumed) == 0
    assert furthest(run, cases.ranks[HALF, 0]) <= 1e-6
    for role in ("policy", "value"):
        assert len(scales(run, role)) == STEPS
        assert scales(run, role) == scales(resumed, role)
    assert "lr_scheduler.step()" not in cases.log


def test_a_run_in_float16_of_one_process_goes_on_with_two(cases: Cases):
    assert cases.codes[f"{HALF}-spread"] == 0, cases.log[-3000:]
    assert furthest(cases.alone[HALF], cases.resumed[HALF, -1]) <= 1e-3
    assert 0 < furthest(cases.alone[HALF], cases.alone["lora"]) < 0.1


def test_gradients_that_are_left_out_leave_nothing_behind_in_cpu_memory(cases: Cases):
    assert {cases.codes[name] for name in ("half-offloaded", "early", "early-offloaded")} == {0}, cases.log[-3000:]
    assert scales(cases.left_out["half offloaded"], "policy") == scales(cases.ranks[HALF, 2], "policy")
    assert furthest(cases.left_out["half offloaded"], cases.ranks[HALF, 2]) <= 1e-6
    assert furthest(cases.left_out["early offloaded"], cases.left_out["early"]) <= 1e-6
    assert furthest(cases.left_out["early"], cases.ranks["lora", 2]) > 1e-4
