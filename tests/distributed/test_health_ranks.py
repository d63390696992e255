"""Health rules on two ranks: the same alarms, the same actions, the same weights as on one."""

import json
from pathlib import Path

from safetensors.torch import load_file

from pipeline.config_loading import load_config
from pipeline.rundir import RunDir
from pipeline.stage_process import run_stage
from tests.distributed.ranks import on_two_ranks
from tests.toy_models import save_toy, write_rows

CONFIG = """\
run: {{name: run, root: {root}/one}}
seed: 3
model: {{path: {root}/base}}
data: {{prompts: {{train: {root}/prompts.jsonl, eval: {root}/eval.jsonl}}}}
sft: {{enabled: false}}
reward_model: {{enabled: false}}
reward: [{{function: "{root}/rewards.py:vowels"}}]
ppo: {{steps: 5, rollout_batch_size: 8, minibatch_size: 4, microbatch_size: 2, ppo_epochs: 2, max_prompt_tokens: 12,
  max_new_tokens: 6, learning_rate: 1e-3, max_grad_norm: 0.1, checkpoint_every: 1, eval_prompts: 3, eval_every: 2,
  max_empty_fraction: 1.0, health: {{settle: 2, approx_kl: {{threshold: 1e-9, patience: 2, action: rollback}},
    stopped_fraction: {{threshold: 1.0, patience: 1, action: raise_kl_coef}}}}}}
evaluation: {{judge: "{root}/rewards.py:vowels"}}
"""
REWARDS = """
def vowels(prompts, completions, **columns):
    return [float(sum(letter in "aeiou" for letter in c)) for c in completions]
"""


def left(run: RunDir) -> tuple[list, list]:
    """What the alarms did when, and what the judge and the coefficient were."""
    folder = run.stage("ppo").path
    alarms, metrics = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("alarms.jsonl", "metrics.jsonl")
    )
    seen = [(row["step"], row.get("eval/judge"), row.get("objective/kl_coef")) for row in metrics]
    return [(row["rule"], row["step"], row["over"], row["acted"]) for row in alarms], seen


def test_two_ranks_roll_back_together_as_one_would(tmp_path: Path):
    save_toy(tmp_path / "base")
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": p} for p in ("the film", "a plot", "my seat", "so bad")])
    write_rows(tmp_path / "eval.jsonl", [{"prompt": p} for p in ("a film", "the plot", "her seat")])
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "config.yaml").write_text(CONFIG.format(root=tmp_path))
    one = RunDir.create(load_config(tmp_path / "config.yaml"), ["test"])
    assert run_stage(one, "ppo") == 0
    zero = ["deepspeed.zero_stage=2", f"run.root={tmp_path}/two"]
    two = RunDir.create(load_config(tmp_path / "config.yaml", zero), ["test"])
    codes = on_two_ranks("ppo", [two.path], tmp_path / "log.txt")
    assert codes == {"two": 0}, (tmp_path / "log.txt").read_text()[-3000:]
    alarms, seen = left(one)
    assert [row for row in alarms if row[0] == "approx_kl"] == [
        ("approx_kl", 2, 2, [2]),
        ("approx_kl", 4, 4, [4]),
    ]
    assert left(two) == (alarms, seen)
    ours, theirs = (load_file(run.stage("ppo").final / "model.safetensors") for run in (two, one))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) <= 1e-6
