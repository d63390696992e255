"""Loading a config: what YAML means here, and what each mistake is told as."""

from pathlib import Path

import pytest

from pipeline.config_loading import config_schema, dump_config, load_config
from stages.base import InputError

GOOD = "run: {name: r}\nmodel: {path: m}\n"


def load(text: str, *overrides: str, folder: Path):
    path = folder / "c.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def mistakes(text: str, *overrides: str, folder: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(text, *overrides, folder=folder)
    return str(caught.value).replace(f"{folder}/", "").split("\n")


def test_scientific_notation_is_a_number(tmp_path):
    config = load(GOOD + "ppo: {learning_rate: 1e-6, kl_coef: 5E-2}\n", folder=tmp_path)
    assert (config.ppo.learning_rate, config.ppo.kl_coef) == (1e-6, 0.05)


@pytest.mark.parametrize("name", ["no", "on", "12:30", "010", "0x1F", "2026-11-23"])
def test_words_that_yaml_would_change_stay_as_written(tmp_path, name):
    text = f"run: {{name: r, root: {name}}}\nmodel: {{path: m}}\n"
    assert load(text, folder=tmp_path).run.root == name


def test_booleans_accept_true_and_words_for_it(tmp_path):
    text = GOOD + "sft: {packing: yes, completion_only_loss: no, gradient_checkpointing: true}\n"
    sft = load(text, folder=tmp_path).sft
    assert (sft.packing, sft.completion_only_loss, sft.gradient_checkpointing) == (True, False, True)


def test_a_section_whose_lines_are_all_comments_means_the_defaults(tmp_path):
    assert load(GOOD + "ppo:\n  # steps: 3\n", folder=tmp_path).ppo.steps == 100


def test_overrides_follow_the_same_rules_as_the_file(tmp_path):
    config = load(
        GOOD,
        "ppo.kl_coef=1e-6",
        "data.prompts.train=a=b.jsonl",
        "sft.tuning.method=lora",
        "sft.tuning.targets=[q_proj, v_proj]",
        "sft.max_steps=null",
        "reward=[{model: reward_model, weight: 2}, {function: 'm:f'}]",
        "reward.1.weight=3",
        folder=tmp_path,
    )
    assert config.ppo.kl_coef == 1e-6
    assert config.data.prompts.train == "a=b.jsonl"
    assert config.sft.tuning.targets == ["q_proj", "v_proj"]
    assert config.sft.max_steps is None
    assert [term.weight for term in config.reward] == [2, 3]


def test_an_unknown_key_names_its_line_and_the_nearest_key(tmp_path):
    assert mistakes(GOOD + "ppo:\n  kl_coeff: 0.1\n", folder=tmp_path) == [
        "[CONF01] c.yaml:4: unknown key 'ppo.kl_coeff'; fix: did you mean 'ppo.kl_coef'?"
    ]


def test_a_key_of_another_section_names_that_section(tmp_path):
    assert mistakes(GOOD + "kl_coef: 0.1\n", folder=tmp_path) == [
        "[CONF01] c.yaml:3: unknown key 'kl_coef'; fix: did you mean 'ppo.kl_coef'?"
    ]


def test_an_unknown_override_names_the_override(tmp_path):
    assert mistakes(GOOD, "ppo.stepz=3", folder=tmp_path) == [
        "[CONF01] override 'ppo.stepz=3': unknown key 'ppo.stepz'; fix: did you mean 'ppo.steps'?"
    ]


def test_all_mistakes_come_together_in_the_order_of_the_lines(tmp_path):
    text = """\
run: {name: 7}
seed: no
model:
  pth: m
data:
  prompts: prompts.jsonl
ppo:
  steps: -3
  kl_controller: pid
  tuning: {method: lora, targets: 3}
"""
    assert mistakes(text, folder=tmp_path) == [
        "[CONF02] c.yaml:1: 'run.name' is wrong; found 7, expected text (a number as text is quoted: '1'); "
        "fix: change 'run.name'",
        "[CONF02] c.yaml:2: 'seed' is wrong; found 'no', expected a whole number; fix: change 'seed'",
        "[CONF06] c.yaml:3: key 'model.path' is missing; fix: add 'model.path'; `rlhf schema` describes it",
        "[CONF01] c.yaml:4: unknown key 'model.pth'; fix: did you mean 'model.path'?",
        "[CONF02] c.yaml:6: 'data.prompts' is wrong; found 'prompts.jsonl', expected a section of "
        "`key: value` lines; fix: change 'data.prompts'",
        "[CONF02] c.yaml:8: 'ppo.steps' is wrong; found -3, expected greater than 0; fix: change 'ppo.steps'",
        "[CONF02] c.yaml:9: 'ppo.kl_controller' is wrong; found 'pid', expected 'fixed' or 'adaptive'; "
        "fix: change 'ppo.kl_controller'",
        "[CONF02] c.yaml:10: 'ppo.tuning.targets' is wrong; found 3, expected a list or 'auto' or 'all-linear'; "
        "fix: change 'ppo.tuning.targets'",
    ]


def test_mistakes_in_reward_terms_name_their_line_and_key(tmp_path):
    text = (
        GOOD
        + """\
reward:
  - {metric: bleu, reference: a, normalise: none}
  - metric: length
    arguments: {target: 3, tol: 1}
  - {model: reward_model, normalise: {mean: a, stdd: 2, std: -1}}
  - {model: reward_model, normalise: runing}
  - function: a:b
    standardise: true
"""
    )
    assert mistakes(text, folder=tmp_path) == [
        "[CONF02] c.yaml:6: arguments of metric length: 'tol' is unknown; "
        "fix: its arguments are: target, tolerance, falloff, unit",
        "[CONF02] c.yaml:7: 'reward.2.normalise.mean' is wrong; found 'a', expected a number; "
        "fix: change 'reward.2.normalise.mean'",
        "[CONF01] c.yaml:7: unknown key 'reward.2.normalise.stdd'; fix: did you mean 'reward.2.normalise.std'?",
        "[CONF02] c.yaml:7: 'reward.2.normalise.std' is wrong; found -1, expected greater than 0; "
        "fix: change 'reward.2.normalise.std'",
        "[CONF02] c.yaml:8: 'reward.3.normalise' is wrong; found 'runing', expected 'none', 'running' or "
        "'running_centred' or a section of `key: value` lines; fix: change 'reward.3.normalise'",
        "[CONF02] c.yaml:10: 'standardise' belongs to a term with model, and this one has function; "
        "fix: remove 'standardise'",
    ]


def test_sampling_cuts_are_refused_with_their_reason_and_not_also_as_unknown(tmp_path):
    found = mistakes(GOOD + "ppo:\n  top_k: 50\n  stepz: 1\n", folder=tmp_path)
    assert len(found) == 2
    assert found[0].startswith("[CONF02] c.yaml:3: ppo: top_k makes the sampled distribution differ")
    assert found[1].startswith("[CONF01] c.yaml:5: unknown key 'ppo.stepz'")


def test_a_duplicate_key_names_both_lines(tmp_path):
    assert mistakes(GOOD + "ppo:\n  steps: 1\n  steps: 2\n", folder=tmp_path) == [
        "[CONF04] c.yaml:5: duplicate key 'ppo.steps', first given in line 4; fix: keep one of the two lines"
    ]


def test_aliases_are_refused_before_they_are_expanded(tmp_path):
    bomb = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
    assert mistakes(bomb, folder=tmp_path)[0] == (
        "[CONF03] c.yaml:2: alias '*a' is not supported; fix: write the value out"
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [1\n", "[CONF03] c.yaml:2: not YAML"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "[CONF03] c.yaml:1: tag 'tag:yaml.org,2002:python/object",
        ),
        ("[" * 30 + "]" * 30, "[CONF03] c.yaml:1: nested deeper than 20 levels"),
        ("run:\n\tname: r\n", "[CONF03] c.yaml:2: not YAML (while scanning for the next token found character '\\t'"),
        (GOOD + "---\n" + GOOD, "[CONF03] c.yaml:3: not YAML (expected a single document"),
        (GOOD + "seed: \x07\n", "[CONF03] c.yaml:3: holds the character U+0007, which is no text; fix: remove it"),
        (GOOD + f"seed: {'9' * 5000}\n", f"[CONF03] c.yaml:3: '{'9' * 39} is no int; fix: correct it"),
        ("- a\n- b\n", "[CONF03] c.yaml: holds no `key: value` lines"),
        ("a:\n" + "".join(f"{' ' * n}a:\n" for n in range(1, 40)), "[CONF03] c.yaml:21: nested deeper than 20 levels"),
        (GOOD + "reward: []\n", "[CONF02] c.yaml:3: 'reward' is wrong; found a list (0 entries), expected at least 1"),
        (GOOD + "ppo: {kl_coef: .inf}\n", "[CONF02] c.yaml:3: 'ppo.kl_coef' is wrong; found inf, expected a finite"),
        (GOOD + "seed:\n", "[CONF02] c.yaml:3: 'seed' is wrong; found nothing, expected a whole number"),
        ("just text", "[CONF03] c.yaml: holds no `key: value` lines"),
        ("", "[CONF06] c.yaml: key 'run' is missing"),
    ],
)
def test_what_is_no_plain_yaml_is_told_with_its_line(tmp_path, text, message):
    assert mistakes(text, folder=tmp_path)[0].startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf" + GOOD.encode() + b"sead: 1\n", "[CONF01] c.yaml:3: unknown key 'sead'; fix: did you mean"),
        (GOOD.replace("\n", "\r\n").encode() + b"seed: 1\r\nseed: 2\r\n", "[CONF04] c.yaml:4: duplicate key 'seed'"),
        (GOOD.encode() + b"# caf\xe9\n", "[CONF03] c.yaml: not UTF-8 text (byte 37)"),
        (GOOD.encode("utf-16"), "[CONF03] c.yaml: not UTF-8 text (byte 0)"),
    ],
)
def test_bytes_that_editors_leave_are_read_or_told(tmp_path, content, message):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "c.yaml")
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(message)


def test_a_duplicate_is_told_together_with_other_mistakes(tmp_path):
    assert [m[:8] for m in mistakes(GOOD + "seed: 1\nseed: 2\nsead: 3\n", "ppo.steps", folder=tmp_path)] == [
        "[CONF04]",
        "[CONF05]",
        "[CONF01]",
    ]


def test_a_section_that_only_an_override_writes_to_names_the_override(tmp_path):
    assert mistakes(GOOD, "data.prompts.trian=x", folder=tmp_path)[0] == (
        "[CONF06] override 'data.prompts.trian=x': key 'data.prompts.train' is missing; "
        "fix: add 'data.prompts.train'; `rlhf schema` describes it"
    )


def test_a_secret_in_a_config_is_refused_without_repeating_it(tmp_path):
    found = mistakes(GOOD + "tracking: {api_key: hunter2}\n", folder=tmp_path)
    assert found == [
        "[CONF07] c.yaml:3: 'tracking.api_key' has the name of a secret; run folders keep the config; "
        "fix: remove it and set it in the environment, as WANDB_API_KEY"
    ]


def test_counts_of_tokens_are_no_secrets(tmp_path):
    assert load(GOOD, "ppo.max_new_tokens=5", "sft.sample_tokens=4", folder=tmp_path).sft.sample_tokens == 4


@pytest.mark.parametrize("override", ["ppo.steps", "=3", "ppo..steps=3", "seed.x=3"])
def test_a_malformed_override_is_told(tmp_path, override):
    text = GOOD + "seed: 3\n"
    assert mistakes(text, override, folder=tmp_path)[0].startswith(f"[CONF05] override '{override}'")


def test_a_missing_file_names_the_nearest_one(tmp_path):
    (tmp_path / "tiny.yaml").write_text(GOOD)
    with pytest.raises(InputError, match=r"\[PATH01\].*fix: did you mean .*/tiny.yaml\?"):
        load_config(tmp_path / "tinny.yaml")


def test_the_written_config_reads_back_as_the_same(tmp_path):
    config = load(GOOD, "run.root='1e-5'", "seed=3", "ppo.learning_rate=1e-6", folder=tmp_path)
    assert load(dump_config(config), folder=tmp_path) == config


def test_the_schema_describes_every_key():
    schema = config_schema()
    fields = [f for section in schema["$defs"].values() for f in section["properties"].values()]
    assert len(fields) > 80
    assert [f for f in fields if "description" not in f and "$ref" not in f and "default" not in f] == []
