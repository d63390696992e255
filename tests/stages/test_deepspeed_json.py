"""What DeepSpeed is given, for our section and for a file of the user's."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from stages.batch_split import BatchSplit
from stages.deepspeed_config import DeepSpeedConfig
from stages.deepspeed_json import deepspeed_json, zero_stage

SPLIT = BatchSplit(microbatch=4, accumulation=3, ranks=2)
OURS = {
    "train_batch_size": 24,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 3,
    "gradient_clipping": 0.5,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


@pytest.mark.parametrize(
    ("config", "zero"),
    [
        (None, {"stage": 0}),
        (DeepSpeedConfig(zero_stage=1, offload_optimizer=True), {"stage": 1, "offload_optimizer": {"device": "cpu"}}),
        (
            DeepSpeedConfig(zero_stage=3, offload_parameters=True),
            {"stage": 3, "offload_param": {"device": "cpu"}},
        ),
    ],
)
def test_a_section_becomes_deepspeeds_words_without_precision_optimizer_or_schedule(config, zero):
    assert deepspeed_json(config, SPLIT, 0.5) == {**OURS, "zero_optimization": zero}
    assert zero_stage(config) == zero["stage"]


def test_a_file_gives_the_rest_and_what_it_leaves_open_is_left_out(tmp_path: Path):
    file = tmp_path / "ds.json"
    zero = {"stage": 3, "reduce_bucket_size": "auto", "offload_param": {"device": "cpu"}}
    file.write_text(
        json.dumps(
            {"zero_optimization": zero, "train_batch_size": "auto", "bf16": {"enabled": False}, "dump_state": True}
        )
    )
    config = DeepSpeedConfig(file=str(file))
    expected = {"stage": 3, "offload_param": {"device": "cpu"}}
    assert deepspeed_json(config, SPLIT, 0.5) == {**OURS, "zero_optimization": expected, "dump_state": True}
    assert zero_stage(config) == 3


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"file": "ds.json", "zero_stage": 2}, "file is given beside zero_stage"),
        ({"offload_optimizer": True}, "offload_optimizer needs zero_stage 1, 2 or 3"),
        ({"zero_stage": 2, "offload_parameters": True}, "offload_parameters needs zero_stage 3"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(keys, told):
    with pytest.raises(ValidationError, match=told):
        DeepSpeedConfig(**keys)
