"""The tables of docs/scaling.md are those that the planner's formulas give, and say what the text below them says."""

from pathlib import Path

import pytest

from pipeline.planner.reading import from_config
from scripts.benchmark.scaling_table import DOCUMENT, GPUS, POLICIES, choose, config_of, updated


def test_the_document_is_in_step_with_the_planner():
    document = DOCUMENT.read_text(encoding="utf-8")
    assert updated(document) == document


@pytest.mark.parametrize("policy, parameters", [("1B", 1_235_814_400), ("8B", 8_030_261_248), ("70B", 70_553_706_496)])
def test_the_policies_have_the_published_sizes(policy, parameters):
    assert from_config(POLICIES[policy], policy).parameters == parameters


def test_lora_at_8b_needs_no_zero_and_full_fine_tuning_does(tmp_path: Path):
    lora, full = config_of("8B", "LoRA", tmp_path), config_of("8B", "full", tmp_path)
    assert {choose(lora, gpus).setting.split.zero for gpus in GPUS} == {0}
    assert {choose(full, gpus).setting.split.zero for gpus in GPUS} == {3}


def test_a_document_without_a_place_for_a_table_is_refused():
    with pytest.raises(SystemExit, match="no place for the table 'placement'"):
        updated("# Scaling\n")
