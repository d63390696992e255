"""Whether a stage goes on, starts anew or is refused, from what is on the disk; no process is started."""

import pytest

from pipeline.checkpoints import CheckpointManager
from pipeline.drift import Verdict, decide
from pipeline.identity import Change, Identity
from pipeline.rundir import StageDir
from stages.base import InputError

FIELDS = {
    "stage": "ppo",
    "seed": 0,
    "base/model.safetensors": "a" * 64,
    "base/tokenizer.json": "b" * 64,
    "data.prompts.train": "c" * 64,
    "data.prompts.eval": "d" * 64,
    "parents.sft": "e" * 64,
    "model.dtype": "float32",
    "ppo.tuning.method": "lora",
    "ppo.tuning.r": 16,
    "ppo.learning_rate": 1e-5,
    "ppo.kl_coef": 0.05,
    "ppo.kl_controller": "fixed",
    "ppo.ptx_coef": 0.0,
    "ppo.ema_decay": None,
    "trunk.frozen_layers": 0,
    "reward[0].weight": 1.0,
}
PATHS = {"data.prompts.train": "data/prompts.jsonl", "base/tokenizer.json": "models/base"}


def other(field: str, value: object) -> Identity:
    return Identity(FIELDS | {field: value}, PATHS)


class Stage:
    """A PPO stage that saved steps 1 and 2 and then stopped."""

    def __init__(self, path):
        self.folder = StageDir(path)
        self.began(Identity(FIELDS, PATHS))
        for step in (1, 2):
            self.store(Identity(FIELDS, PATHS)).save(step, lambda folder: (folder / "state").write_text("state"))

    def began(self, identity: Identity, **more: object) -> None:
        self.folder.write_manifest({"status": "failed", "identity": identity.plain(), **more})

    def store(self, identity: Identity) -> CheckpointManager:
        return CheckpointManager(self.folder.checkpoints, 2, identity, tell=lambda _: None)

    def decide(self, identity: Identity, *allow: str, force: bool = False) -> Verdict:
        return decide(self.folder, identity, self.store(identity), force, allow)


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage(tmp_path / "ppo")


def test_an_unchanged_stage_goes_on_and_a_finished_one_is_skipped(stage):
    assert stage.decide(Identity(FIELDS)) == Verdict("resume")
    stage.folder.write_manifest({"status": "finished", "identity": Identity(FIELDS).plain()})
    assert stage.decide(Identity(FIELDS)) == Verdict("skip")


def test_data_that_only_moved_is_unchanged(stage):
    assert stage.decide(Identity(FIELDS, {"data.prompts.train": "elsewhere.jsonl"})) == Verdict("resume")


def test_a_changed_number_is_refused_with_both_values_and_the_two_ways_on(stage):
    with pytest.raises(InputError) as refused:
        stage.decide(other("ppo.learning_rate", 3e-5))
    assert str(refused.value) == (
        f"[CKPT04] {stage.folder.path} changed since step-000002 was saved: ppo.learning_rate: 1e-05 -> 3e-05; fix: "
        "--allow ppo.learning_rate goes on from it with the new value, --force ppo starts anew and drops the checkpoint"
    )


def test_changed_content_is_shown_by_short_digest_and_path(stage):
    with pytest.raises(InputError, match=r"train: cccccccccccc \(data/prompts.jsonl\) -> ffffffffffff \(data/prompts"):
        stage.decide(other("data.prompts.train", "f" * 64))


def test_an_allowed_change_goes_on_and_says_so(stage):
    verdict = stage.decide(other("ppo.learning_rate", 3e-5), "ppo.learning_rate")
    change = Change("ppo.learning_rate", "1e-05", "3e-05")
    assert verdict == Verdict(
        "resume", [change], "changed since step-000002 and allowed", allowed=("ppo.learning_rate",)
    )


def test_each_of_two_changes_has_to_be_allowed(stage):
    both = Identity(FIELDS | {"ppo.learning_rate": 3e-5, "ppo.kl_coef": 0.1})
    with pytest.raises(InputError, match=r"saved: ppo.kl_coef: 0.05 -> 0.1; fix: --allow ppo.kl_coef goes on"):
        stage.decide(both, "ppo.learning_rate")
    assert stage.decide(both, "ppo.learning_rate", "ppo.kl_coef").decision == "resume"


def test_a_change_that_was_allowed_once_needs_no_second_word_but_another_value_does(stage):
    stage.began(other("ppo.learning_rate", 3e-5), allowed=["ppo.learning_rate"])
    assert stage.decide(other("ppo.learning_rate", 3e-5)).decision == "resume"
    with pytest.raises(InputError, match="1e-05 -> 5e-05"):
        stage.decide(other("ppo.learning_rate", 5e-5))
    assert stage.decide(Identity(FIELDS)) == Verdict("resume"), "nothing was trained with the other value"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("base/model.safetensors", "f" * 64),
        ("base/tokenizer.json", "f" * 64),
        ("parents.sft", "f" * 64),
        ("model.dtype", "bfloat16"),
        ("ppo.tuning.r", 8),
        ("ppo.tuning.method", "full"),
        ("trunk.frozen_layers", 2),
        ("reward[0].weight", 2.0),
        ("data.prompts.eval", "f" * 64),
        ("ppo.kl_controller", "adaptive"),
        ("ppo.ema_decay", 0.99),
        ("ppo.ptx_coef", 0.1),
    ],
)
def test_what_a_checkpoint_cannot_take_over_is_refused_even_when_allowed(stage, field, value):
    with pytest.raises(InputError, match=r"\[CKPT04\] .*; fix: that cannot be allowed: put the old value back, or --f"):
        stage.decide(other(field, value), field)


def test_a_changed_stage_without_a_usable_checkpoint_starts_anew_and_says_what_changed(stage):
    for step in (1, 2):
        (stage.folder.checkpoints / f"step-00000{step}" / "state").unlink()
    verdict = stage.decide(other("ppo.kl_coef", 0.1))
    assert (verdict.decision, verdict.note) == ("new", "changed and has no checkpoint; it starts anew")
    assert list(map(str, verdict.changed)) == ["ppo.kl_coef: 0.05 -> 0.1"]


def test_a_forced_stage_starts_anew_whatever_is_there(stage):
    assert stage.decide(other("seed", 1), force=True) == Verdict("new")


def test_a_stage_of_an_earlier_version_starts_anew_and_says_so(stage):
    stage.folder.write_manifest({"status": "finished", "fingerprint": "f" * 64})
    verdict = stage.decide(Identity(FIELDS))
    assert verdict == Verdict("new", note="an earlier version left no record of what it was made from; it starts anew")
