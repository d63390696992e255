"""Reward-model training on TRL's RewardTrainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardConfig as TRLArguments
from trl import RewardTrainer

from stages.base import InputError, StageContext, StageResult
from stages.dealing import WEIGHT, weights
from stages.deepspeed_config import DeepSpeedConfig
from stages.durable import replacing
from stages.models.adapters import announce_parameters
from stages.models.config import NO_FROZEN_LAYERS, ModelConfig, TrunkConfig
from stages.models.gathered import spread
from stages.models.load import load_tokenizer, source_of
from stages.models.publish import is_adapter, note_base, publish
from stages.models.roles import Roles
from stages.quiet import quiet_libraries
from stages.ranked_trainer import RankedTrainer
from stages.render import Rendered, Renderer
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.examiner import Examiner
from stages.reward_model.pair_loss import pair_losses
from stages.reward_model.pairs import Pair, read_trainable
from stages.reward_model.quality import mean_and_std
from stages.reward_model.reporting import HeldOut, Scores, headline_of, measured, write_report
from stages.reward_model.statistics import RewardStatistics
from stages.supervision import Supervision

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
PROBES = 8


class _Trainer(RankedTrainer, RewardTrainer):
    def collate_weighted(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [{name: value for name, value in row.items() if name != WEIGHT} for row in examples]
        return self.data_collator(rows) | {WEIGHT: weights(examples)}

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], Any]:
        batches, count = super().get_batch_samples(*args)
        self._rows_of_step = sum(len(batch["input_ids"]) for batch in batches)
        return batches, count

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, with pairs that weigh what the dealing says; on one rank each as much as any other."""
        weight = inputs.pop(WEIGHT, None)
        if weight is None:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if not self.model.training or args and args[0] or kwargs.get("return_outputs"):
                return loss
            share = len(inputs["input_ids"]) * self.current_gradient_accumulation_steps / self._rows_of_step
            return loss if share == 1 else loss * share  # Trainer averages passes, the last of which may be smaller
        margin = inputs.pop("margin", 0.0)
        chosen, rejected = model(**inputs, use_cache=False).logits.squeeze(-1).chunk(2)
        self._note(chosen.detach(), rejected.detach(), weight > 0)
        losses = pair_losses(chosen, rejected, margin, self.args.center_rewards_coefficient or 0.0)
        return (losses * weight).sum()

    def _note(self, chosen: Tensor, rejected: Tensor, counts: Tensor) -> None:
        """The two metrics that are read, over the pairs of all ranks."""
        margin = chosen.float() - rejected.float()
        of_each = torch.stack([margin > 0, margin, torch.ones_like(margin)])
        wins, margins, pairs = self.ranked.world.sum((of_each * counts).sum(1)).tolist()
        noted = self._metrics["train" if self.model.training else "eval"]
        noted["accuracy"].append(wins / pairs)
        noted["margin"].append(margins / pairs)


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
    """Fit a scalar model to preferences and write it to `context.folder / "final"`.

    It starts from `config.path` if that is set, else from the SFT model, else from the base model.

    `demonstrations` centre the scores: their mean is stored with the model and subtracted wherever it is used.
    """
    quiet_libraries()
    source = source_of(config.path or sft or model.path)
    tokenizer = load_tokenizer(source, model.trust_remote_code and config.path in (None, model.path))
    renderer = Renderer(tokenizer)
    train_pairs = read_trainable(renderer, train, config).pairs
    held_out = read_trainable(renderer, eval, config) if eval else None

    torch.manual_seed(context.seed)
    roles = Roles(model, trunk.frozen_layers, context.pulse.beat)
    roles.trust(sft)
    classifier = roles.scorer_to_train(source, config.tuning, tokenizer.pad_token_id)
    counts = announce_parameters("reward_model", classifier)
    note_base(classifier, roles)
    supervision = Supervision(context, "reward_model", config, deepspeed)
    trainer = _Trainer(
        model=classifier,
        processing_class=tokenizer,
        train_dataset=_dataset(train_pairs),
        eval_dataset=_dataset(held_out.pairs) if held_out else None,
        args=TRLArguments(
            **supervision.arguments(model),
            max_length=None,
            center_rewards_coefficient=config.centering_coef or None,
        ),
        callbacks=supervision.callbacks(NAMES, SHOWN),
    )
    supervision.take(trainer, model.compute)
    supervision.train(trainer)
    final = context.folder / "final"
    context.pulse.enter("publishing")
    shown = [renderer.demonstration(row) for row in demonstrations]
    known = held_out.pairs if held_out else train_pairs
    found: dict[str, float] | None = None
    with context.world.together(InputError):
        if context.world.main:
            saved = Roles(model, trunk.frozen_layers, context.pulse.beat) if spread(classifier) else roles
            examiner = Examiner(config, model, saved, tokenizer, context.seed)
            with replacing(final) as aside:
                publish(classifier.eval(), tokenizer, aside, roles)
                saved.trust(aside, sft)
                # All that is said of the model is measured on what was saved, loaded as PPO will load it.
                tested = examiner.held_out(held_out, shown, sft) if held_out else None
                found, report = _measured(examiner.scores(aside), shown, known, tested, aside)
            if report:
                write_report(context.folder, report)
        else:
            publish(classifier.eval(), tokenizer, None, roles)
    headline = {"steps": trainer.state.global_step, "pairs": len(train_pairs)} | context.world.agreed(found)
    context.tracker.log(
        {f"reward_model/eval_{k}": v for k, v in headline.items() if k.startswith("accuracy")},
        trainer.state.global_step,
    )
    _require_accuracy(config, headline)
    return StageResult(final, is_adapter(final), headline, counts)


def _measured(
    score: Scores, demonstrations: Sequence[Rendered], known: Sequence[Pair], tested: HeldOut | None, final: Path
) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Write the centring constants and probes beside the model; the headline, and the report where pairs are held out.

    Without demonstrations the chosen sides of `known` pairs centre the scores.
    """
    probes = [side for p in known[: PROBES // 2] for side in (p.chosen, p.rejected)]
    centring = score(demonstrations or [p.chosen for p in known])
    mean, std = mean_and_std(centring)
    RewardStatistics(mean, std, [r.ids for r in probes], score(probes)).save(final)
    found = {"demonstration_mean": mean, "demonstration_std": std}
    if tested is None:
        return found, None
    report = measured(score, mean, tested, centring)
    return found | headline_of(report), report


def _require_accuracy(config: RewardModelConfig, headline: dict[str, float]) -> None:
    wanted = config.minimum_accuracy
    if wanted is not None and headline.get("accuracy", 1.0) < wanted:
        raise InputError(
            "RM06",
            f"held-out accuracy {headline['accuracy']:.3f} is below reward_model.minimum_accuracy {wanted}",
            fix="more or cleaner preferences, more steps, or a lower demand",
        )


def _dataset(pairs: Sequence[Pair]) -> Dataset:
    return Dataset.from_list(
        [
            {"chosen_ids": p.chosen.ids, "rejected_ids": p.rejected.ids, "length": p.longest}
            | ({} if p.margin is None else {"margin": p.margin})
            for p in pairs
        ]
    )
