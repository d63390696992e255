"""Health rules through the commands: a rule that ends a run, how it goes on, and where its alarms are shown."""

import json
from pathlib import Path

import pytest

from pipeline.cli import main
from tests.toy_models import save_toy, write_rows

CONFIG = """\
run: {{name: run, root: {root}}}
model: {{path: {root}/base}}
data: {{prompts: {{train: {root}/prompts.jsonl, eval: {root}/eval.jsonl}}}}
sft: {{enabled: false}}
reward_model: {{enabled: false}}
reward: [{{function: "{root}/rewards.py:brevity"}}]
ppo: {{steps: 5, rollout_batch_size: 8, minibatch_size: 8, microbatch_size: 8, ppo_epochs: 2, max_prompt_tokens: 12,
  max_new_tokens: 6, learning_rate: 1e-3, eval_prompts: 4, eval_every: 2, health: {{}}}}
evaluation: {{judge: "{root}/rewards.py:wordy", prompts: 4}}
"""
REWARDS = """
def brevity(prompts, completions, **columns):
    return [-float(len(c)) for c in completions]
def wordy(prompts, completions, **columns):
    return [float(len(c) > 3) for c in completions]
"""
STOP = "ppo.health={stopped_fraction: {threshold: 1.0, patience: 2, action: ACTION}}"


def rlhf(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_a_rule_ends_the_run_with_its_state_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_toy(tmp_path / "base")
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": p} for p in ("the film", "a plot", "my seat", "so bad")])
    write_rows(tmp_path / "eval.jsonl", [{"prompt": p} for p in ("a film", "the plot", "her seat", "so good")])
    (tmp_path / "rewards.py").write_text(REWARDS)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(root=tmp_path))
    ppo = tmp_path / "run" / "ppo"
    assert rlhf("run", str(config), "--only", "ppo", STOP.replace("ACTION", "stop")) == 4
    told = capsys.readouterr().out
    assert "[HEALTH01] step 2: stopped_fraction: rollout/stopped_fraction is " in told
    assert "[HEALTH02] step 2: stopped_fraction: " in told and "the state after step 2 is saved" in told
    assert json.loads((ppo / "stage.json").read_text())["status"] == "failed"
    assert [path.name for path in (ppo / "checkpoints").glob("step-*")] == ["step-000002"]

    changed = STOP.replace("ACTION", "warn")
    assert rlhf("run", str(config), "--only", "ppo", changed) == 2
    told = capsys.readouterr().err
    assert "[CKPT04]" in told and "--allow ppo.health.stopped_fraction" in told
    allowed = [part for key in ("stopped_fraction", "start") for part in ("--allow", f"ppo.health.{key}")]
    assert rlhf("run", str(config), "--only", "ppo", changed, *allowed) == 0
    assert "resuming from" in capsys.readouterr().out
    alarms = [json.loads(line) for line in (ppo / "alarms.jsonl").read_text().splitlines()]
    assert [(row["step"], row["rule"], row["acted"]) for row in alarms] == [
        (2, "stopped_fraction", [2]),
        (4, "stopped_fraction", []),
    ]
    headline = json.loads((ppo / "stage.json").read_text())["headline"]
    assert headline["alarms/stopped_fraction"] == 2
    rows = [json.loads(line) for line in (ppo / "metrics.jsonl").read_text().splitlines()]
    judged = [row["eval/judge"] for row in rows if "eval/judge" in row]
    assert len(judged) == 4 and all(0.0 <= value <= 1.0 for value in judged)
    assert rlhf("report", str(tmp_path / "run")) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["alarms"] == {"stopped_fraction": 2}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Alarms during PPO" in page and "rollout/stopped_fraction is" in page and "stop after step 2" in page

    before = (ppo / "stage.json").read_bytes()
    assert rlhf("run", str(config), "--only", "ppo", changed.replace("patience: 2", "patience: 4")) == 0
    assert (ppo / "stage.json").read_bytes() == before, "a rule that only warns is no reason to train anew"
