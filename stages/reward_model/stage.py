"""Reward-model training on TRL's RewardTrainer."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig as TRLArguments

from stages.base import InputError, StageContext, StageResult
from stages.deepspeed_config import DeepSpeedConfig
from stages.durable import replacing
from stages.models.adapters import announce_parameters
from stages.models.config import NO_FROZEN_LAYERS, ModelConfig, TrunkConfig
from stages.models.gathered import spread
from stages.models.load import ModelSource, load_tokenizer, source_of
from stages.models.publish import is_adapter, note_base, publish
from stages.models.roles import Roles
from stages.quiet import quiet_libraries
from stages.render import Rendered, Renderer
from stages.reward_model import members
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.examiner import Examiner
from stages.reward_model.measuring import Saved, described
from stages.reward_model.pairs import Pair, Preferences, read_trainable
from stages.reward_model.reporting import write_report
from stages.reward_model.trainer import PairTrainer
from stages.supervision import Supervision
from stages.world import World

NAMES = {
    "loss": "reward_model/loss",
    "grad_norm": "reward_model/grad_norm",
    "learning_rate": "reward_model/learning_rate",
    "accuracy": "reward_model/accuracy",
    "margin": "reward_model/margin",
    "eval_loss": "reward_model/eval_loss",
    "eval_accuracy": "reward_model/eval_accuracy",
    "eval_margin": "reward_model/eval_margin",
}
SHOWN = ("reward_model/loss", "reward_model/accuracy", "reward_model/margin", "reward_model/eval_accuracy")


def run_reward_model(
    config: RewardModelConfig,
    model: ModelConfig,
    train: Path,
    eval: Path | None,
    sft: Path | None,
    context: StageContext,
    demonstrations: list[dict[str, Any]],
    trunk: TrunkConfig = NO_FROZEN_LAYERS,
    deepspeed: DeepSpeedConfig | None = None,
) -> StageResult:
    """Fit a scalar model to preferences, or several, and write it to `context.folder / "final"`.

    It starts from `config.path` if that is set, else from the SFT model, else from the base model.

    `demonstrations` centre the scores: their mean is stored with the model and subtracted wherever it is used.
    """
    quiet_libraries()
    source = source_of(config.path or sft or model.path)
    tokenizer = load_tokenizer(source, model.trust_remote_code and config.path in (None, model.path))
    renderer = Renderer(tokenizer)
    train_pairs = read_trainable(renderer, train, config).pairs
    held_out = read_trainable(renderer, eval, config) if eval else None
    shown = [renderer.demonstration(row) for row in demonstrations]
    start = _Start(config, model, source, sft, tokenizer, train_pairs, held_out, shown, trunk, deepspeed)
    done = _one(start, context) if config.members == 1 else _several(start, context)
    headline = {"steps": done["steps"], "pairs": len(train_pairs)} | done["found"]
    prefix = "reward_model/" if config.members == 1 else "reward_model/ensemble/"
    accuracies = {k: v for k, v in headline.items() if k in ("accuracy", "accuracy_low", "accuracy_high")}
    context.tracker.log({f"{prefix}eval_{k}": v for k, v in accuracies.items()}, done["steps"])
    final = context.folder / "final"
    return StageResult(final, is_adapter(final), headline, done["parameters"])


@dataclass(frozen=True)
class _Start:
    """What every reward model of a stage is trained from and measured on."""

    config: RewardModelConfig
    model: ModelConfig
    source: ModelSource
    sft: Path | None
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Pair]
    held_out: Preferences | None
    demonstrations: Sequence[Rendered]
    trunk: TrunkConfig
    deepspeed: DeepSpeedConfig | None

    def roles(self, context: StageContext) -> Roles:
        roles = Roles(self.model, self.trunk.frozen_layers, context.pulse.beat)
        roles.trust(self.sft)
        return roles

    def fit(self, context: StageContext) -> "_Fitted":
        """Train one, from the newest of its checkpoints if there is one."""
        torch.manual_seed(context.seed)
        roles = self.roles(context)
        classifier = roles.scorer_to_train(self.source, self.config.tuning, self.tokenizer.pad_token_id)
        counts = announce_parameters("reward_model", classifier)
        note_base(classifier, roles)
        supervision = Supervision(context, "reward_model", self.config, self.model, self.deepspeed)
        trainer = PairTrainer(
            model=classifier,
            processing_class=self.tokenizer,
            train_dataset=_dataset(self.train),
            eval_dataset=_dataset(self.held_out.pairs) if self.held_out else None,
            args=TRLArguments(
                **supervision.arguments(),
                max_length=None,
                center_rewards_coefficient=self.config.centering_coef or None,
            ),
            callbacks=supervision.callbacks(NAMES, SHOWN),
        )
        supervision.take(trainer)
        supervision.train(trainer)
        return _Fitted(classifier, roles, self.tokenizer, trainer.state.global_step, counts)

    def described(self, finals: Sequence[Path], roles: Roles, context: StageContext) -> dict[str, float]:
        """All that is said of a model is measured on what was saved, loaded as PPO will load it."""
        roles.trust(*finals)
        examiner = Examiner(self.config, self.model, roles, self.tokenizer, context.seed)
        # The SFT model first: where its weights are its own, they have left memory when the reward model comes.
        tested = examiner.held_out(self.held_out, self.demonstrations, self.sft) if self.held_out else None
        saved = [Saved(final, examiner.scores(final)) for final in finals]
        found, report = described(saved, self.demonstrations, self.held_out.pairs if tested else self.train, tested)
        if report:
            write_report(context.folder, report)
        return found


@dataclass(frozen=True)
class _Fitted:
    """A reward model that has been trained."""

    classifier: nn.Module
    roles: Roles
    tokenizer: PreTrainedTokenizerBase
    steps: int
    parameters: dict[str, int]

    def save(self, final: Path, world: World, say: Callable[[Path], Any] = lambda aside: None) -> Any:
        """Write it on rank 0, all ranks giving their parts; what is said of the folder before it takes its place."""
        said = None
        with world.together(InputError):
            if world.main:
                with replacing(final) as aside:
                    publish(self.classifier.eval(), self.tokenizer, aside, self.roles)
                    said = say(aside)
            else:
                publish(self.classifier.eval(), self.tokenizer, None, self.roles)
        return world.agreed(said)


def _one(start: _Start, context: StageContext) -> dict[str, Any]:
    fitted = start.fit(context)
    context.pulse.enter("publishing")
    reader = start.roles(context) if spread(fitted.classifier) else fitted.roles
    found = fitted.save(
        context.folder / "final", context.world, lambda aside: start.described([aside], reader, context)
    )
    return {"steps": fitted.steps, "parameters": fitted.parameters, "found": found}


def _several(start: _Start, context: StageContext) -> dict[str, Any]:
    """Members that an earlier attempt finished are taken as they are, the others trained."""
    earlier = members.concluded(context)
    if earlier:
        return earlier
    trained: list[members.Member] = []
    steps = 0
    for number in range(1, start.config.members + 1):
        member = members.Member(number, steps, context)
        finished = member.finished() or _fit_member(start, member)
        trained.append(member)
        steps += finished.steps
    context.pulse.enter("publishing")
    found = None
    with context.world.together(InputError):
        if context.world.main:
            with replacing(context.folder / "final") as aside:
                found = start.described(members.gather(trained, aside), start.roles(context), context)
    outcome = {"steps": steps, "parameters": finished.parameters, "found": context.world.agreed(found)}
    members.conclude(context, steps, outcome)
    return outcome


def _fit_member(start: _Start, member: members.Member) -> members.Finished:
    context = member.context
    print(f"reward_model: member {member.number} of {start.config.members}, seed {context.seed}", flush=True)
    with member.stopping():
        fitted = start.fit(context)
    context.pulse.enter("publishing")
    fitted.save(member.final, context.world)
    finished = member.finish(fitted.steps, fitted.parameters)
    del fitted
    gc.collect()  # trainers and their callbacks hold each other
    return finished


def _dataset(pairs: Sequence[Pair]) -> Dataset:
    return Dataset.from_list(
        [
            {"chosen_ids": p.chosen.ids, "rejected_ids": p.rejected.ids, "length": p.longest}
            | ({} if p.margin is None else {"margin": p.margin})
            for p in pairs
        ]
    )
