"""Models that do not fit a stage are refused with the reason, before anything is loaded."""

from pathlib import Path

import pytest

from pipeline.config_loading import load_config
from pipeline.lineage import inputs_of
from pipeline.rundir import RunDir
from stages.base import InputError
from tests.toy_models import CHAT_TEMPLATE, toy_tokenizer


@pytest.fixture
def run(workplace) -> RunDir:
    return RunDir.create(load_config("config.yaml"), ["rlhf"])


def refusal(run: RunDir, stage: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        inputs_of(run, load_config("config.yaml", overrides), stage)
    return str(caught.value)


def test_an_sft_folder_is_refused_as_reward_model(run, finish):
    finish(run, "sft")
    assert refusal(run, "ppo", "reward=[{model: runs/small/sft/final}]") == (
        "[STAGE01] reward model runs/small/sft/final is a model of kind 'sft'; found no score head, "
        "expected a reward model; fix: set it to `reward_model`, to the final/ folder of that stage, "
        "or to a sequence classifier"
    )


def test_a_foreign_language_model_is_refused_as_reward_model(run, finish):
    finish(run, "sft")
    assert refusal(run, "ppo", "reward=[{model: base}]").startswith("[STAGE01] reward model base is a model of kind")


def test_a_reward_model_is_refused_as_policy(run, finish):
    finish(run, "reward_model")
    assert refusal(run, "sft", "model.path=runs/small/reward_model/final") == (
        "[STAGE02] model.path runs/small/reward_model/final is a reward model (score head, no language-model head); "
        "fix: set model.path to a causal language model"
    )


def test_a_foreign_classifier_is_refused_as_policy(run):
    Path("classifier").mkdir()
    Path("classifier/config.json").write_text('{"architectures": ["GPT2ForSequenceClassification"]}')
    assert refusal(run, "sft", "model.path=./classifier").startswith("[STAGE02] model.path ./classifier is a reward")


def test_a_copied_stage_folder_is_refused(run, finish):
    finish(run, "sft", stage="reward_model")
    assert refusal(run, "ppo").startswith("[STAGE02] runs/small/sft holds a 'reward_model' stage, ppo needs 'sft'")


@pytest.mark.parametrize(
    "code, what, change",
    [
        ("STAGE03", "tokenizer", {"tokenizer_hash": "b" * 64}),
        ("STAGE04", "template", {"template_hash": "b" * 64}),
        ("STAGE05", "base", {"base": {"id": "other", "hash": "b" * 64}}),
    ],
)
def test_a_reward_model_of_another_identity_is_refused(run, finish, code, what, change):
    finish(run, "sft")
    finish(run, "reward_model", **change)
    found = refusal(run, "ppo")
    assert found.startswith(f"[{code}] runs/small/reward_model/final was made with another {what} than ")
    assert "found bbbbbbbbbbbb, expected " in found


def test_the_first_token_in_which_templates_differ_is_told(run, finish):
    finish(run, "sft")
    finish(run, "reward_model", template_hash="b" * 64)
    for stage, template in (
        ("sft", CHAT_TEMPLATE),
        ("reward_model", CHAT_TEMPLATE.replace("_token }}", "_token }} ", 1)),
    ):
        toy_tokenizer(chat_template=template).save_pretrained(run.stage(stage).final)
    assert refusal(run, "ppo").partition("; fix")[0].endswith("; first difference at token 2: ' ', expected 'u'")


def test_a_changed_base_is_refused_for_finished_stages(run, finish):
    finish(run, "sft")
    Path("base/config.json").write_text("{}")
    assert refusal(run, "reward_model").startswith(
        "[STAGE05] runs/small/sft/final was made with another base than base"
    )


def test_a_missing_model_names_a_similar_path(run):
    assert (
        refusal(run, "sft", "model.path=./bse")
        == "[PATH01] model.path: no file or folder './bse'; fix: did you mean base?"
    )
