"""A DeepSpeed JSON of the user's is read key by key; DeepSpeed itself ignores what it does not know."""

from pathlib import Path

import pytest

from pipeline.config_loading import load_config
from pipeline.deepspeed_file import deepspeed_errors

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs/deepspeed").glob("*.json"))


def told(text: str, workplace: Path) -> list[str]:
    (workplace / "ds.json").write_text(text)
    return [str(error) for error in deepspeed_errors(load_config("config.yaml", ["deepspeed.file=ds.json"]))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_file_is_accepted_by_us_and_by_deepspeed(path: Path, workplace: Path):
    from deepspeed.runtime.config import DeepSpeedConfig as Theirs

    from stages.batch_split import BatchSplit
    from stages.deepspeed_json import deepspeed_json

    config = load_config("config.yaml", [f"deepspeed.file={path}"])
    assert deepspeed_errors(config) == []
    theirs = Theirs(deepspeed_json(config.deepspeed, BatchSplit(2, 2, 1), 1.0))
    assert f"zero{int(theirs.zero_config.stage)}.json" == path.name


def test_all_four_stages_are_shipped():
    assert [path.name for path in SHIPPED] == [f"zero{stage}.json" for stage in range(4)]


def test_a_config_without_a_file_has_nothing_to_check(workplace: Path):
    assert deepspeed_errors(load_config("config.yaml")) == []
    assert deepspeed_errors(load_config("config.yaml", ["deepspeed.zero_stage=2"])) == []


def test_every_mistake_is_told_with_its_line_and_the_others_do_not_hide_it(workplace: Path):
    text = """{
  "zero_optimization": {
    "stage": true,
    "overlap_comm": "yes",
    "offload_optimizer": {"device": "gpu", "pin_memry": true},
    "offload_param": 3
  },
  "optimizer": {"type": "Adam"},
  "zero_force_ds_cpu_optimizer": true,
  "dump_state": true,
  "dump_state": false
}"""
    assert told(text, workplace) == [
        "[DS01] ds.json:11: duplicate key 'dump_state', first given in line 10; fix: keep one of the two lines",
        "[DS01] ds.json:3: 'zero_optimization.stage' is true, expected 0 or 1 or 2 or 3; "
        "fix: change 'zero_optimization.stage'",
        "[DS01] ds.json:4: 'zero_optimization.overlap_comm' is \"yes\", expected true or false; "
        "fix: change 'zero_optimization.overlap_comm'",
        '[DS01] ds.json:5: \'zero_optimization.offload_optimizer.device\' is "gpu", expected "none" or "cpu"; '
        "fix: change 'zero_optimization.offload_optimizer.device'",
        "[DS01] ds.json:5: unknown key 'zero_optimization.offload_optimizer.pin_memry'; "
        "fix: did you mean 'zero_optimization.offload_optimizer.pin_memory'?",
        "[DS01] ds.json:6: 'zero_optimization.offload_param' is 3, expected a section; "
        "fix: change 'zero_optimization.offload_param'",
        "[DS02] ds.json:8: 'optimizer' is not for this file: the stages bring AdamW of torch, which resumes bit for "
        "bit; fix: remove 'optimizer'",
        "[DS02] ds.json:9: 'zero_force_ds_cpu_optimizer' is true, but the stages bring AdamW of torch; "
        "fix: remove 'zero_force_ds_cpu_optimizer'",
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}, "train_batch_size": "auto"}',
        '{"zero_optimization": {"stage": 0}, "fp16": {"enabled": false}, "gradient_clipping": "auto"}',
        '{"zero_optimization":{"stage":3,"offload_param":{"device":"cpu"}}}',
    ],
)
def test_what_leaves_the_decision_to_us_contradicts_nobody(text: str, workplace: Path):
    assert told(text, workplace) == []
