"""Reward-model training on TRL's RewardTrainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardConfig as TRLArguments
from trl import RewardTrainer

from stages.base import InputError, StageContext, StageResult
from stages.data import read_preferences
from stages.dealing import WEIGHT, weights
from stages.deepspeed_config import DeepSpeedConfig
from stages.durable import replacing
from stages.models.adapters import announce_parameters
from stages.models.config import NO_FROZEN_LAYERS, ModelConfig, TrunkConfig
from stages.models.gathered import spread
from stages.models.heads import ScoreModel
from stages.models.load import load_tokenizer, source_of
from stages.models.precision import device
from stages.models.publish import is_adapter, note_base, publish
from stages.models.roles import Roles
from stages.quiet import quiet_libraries
from stages.ranked_trainer import RankedTrainer
from stages.render import Rendered, Renderer
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.pair_loss import pair_losses
from stages.reward_model.pairs import Pair, render_pair, trainable
from stages.reward_model.quality import mean_and_std, pair_accuracy
from stages.reward_model.statistics import RewardStatistics, raw_scores
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
    train_pairs = _pairs(renderer, train, config)
    eval_pairs = _pairs(renderer, eval, config) if eval else []

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
        eval_dataset=_dataset(eval_pairs) if eval_pairs else None,
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
    shown = [renderer.demonstration(r) for r in demonstrations] or [p.chosen for p in eval_pairs or train_pairs]
    measured: dict[str, float] | None = None
    with context.world.together(InputError):
        if context.world.main:
            saved = Roles(model, trunk.frozen_layers, context.pulse.beat) if spread(classifier) else roles
            with replacing(final) as aside:
                publish(classifier.eval(), tokenizer, aside, roles)
                saved.trust(aside)
                # All that is said of the model is measured on what was saved, loaded as PPO will load it.
                loaded = saved.reward_model(source_of(aside)).to(device())
                scores = Scores(ScoreModel(loaded, compute=model.compute).eval(), tokenizer.pad_token_id, config)
                measured = _measured(scores, shown, eval_pairs, eval_pairs or train_pairs, aside)
        else:
            publish(classifier.eval(), tokenizer, None, roles)
    headline = {"steps": trainer.state.global_step, "pairs": len(train_pairs)} | context.world.agreed(measured)
    context.tracker.log(
        {f"reward_model/eval_{k}": v for k, v in headline.items() if k.startswith("accuracy")},
        trainer.state.global_step,
    )
    _require_accuracy(config, headline)
    return StageResult(final, is_adapter(final), headline, counts)


@dataclass(frozen=True)
class Scores:
    """What a saved reward model says of texts, before centring."""

    model: ScoreModel
    pad_id: int
    config: RewardModelConfig

    def __call__(self, rows: list[Rendered]) -> list[float]:
        return raw_scores(self.model, [r.ids for r in rows], self.pad_id, self.config.microbatch_size * 2)


def _measured(
    score: Scores, shown: list[Rendered], held_out: list[Pair], probed: list[Pair], final: Path
) -> dict[str, float]:
    """Write the centring constants and probes beside the model; those constants and the held-out accuracy."""
    probes = [side for p in probed[: PROBES // 2] for side in (p.chosen, p.rejected)]
    mean, std = mean_and_std(score(shown))
    RewardStatistics(mean, std, [r.ids for r in probes], score(probes)).save(final)
    found = {"demonstration_mean": mean, "demonstration_std": std}
    return found | (_held_out(held_out, score) if held_out else {})


def _held_out(pairs: list[Pair], score: Scores) -> dict[str, float]:
    chosen, rejected = [p.chosen for p in pairs], [p.rejected for p in pairs]
    accuracy = pair_accuracy(score(chosen), score(rejected))
    length = pair_accuracy([len(r.completion_ids) for r in chosen], [len(r.completion_ids) for r in rejected])
    print(
        f"reward model: held-out accuracy {accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}] "
        f"on {accuracy.n} pairs; 'longer is better' {length.value:.3f}",
        flush=True,
    )
    return {
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "n": accuracy.n,
        "length_baseline": length.value,
    }


def _require_accuracy(config: RewardModelConfig, headline: dict[str, float]) -> None:
    wanted = config.minimum_accuracy
    if wanted is not None and headline.get("accuracy", 1.0) < wanted:
        raise InputError(
            "RM06",
            f"held-out accuracy {headline['accuracy']:.3f} is below reward_model.minimum_accuracy {wanted}",
            fix="more or cleaner preferences, more steps, or a lower demand",
        )


def _pairs(renderer: Renderer, path: Path, config: RewardModelConfig) -> list[Pair]:
    """The pairs of a file that are trained on; the others are told."""
    rows = read_preferences(path)
    pairs, told = trainable([render_pair(renderer, row) for row in rows], config, path)
    for line in told:
        print(line, flush=True)
    return pairs


def _dataset(pairs: list[Pair]) -> Dataset:
    return Dataset.from_list(
        [
            {"chosen_ids": p.chosen.ids, "rejected_ids": p.rejected.ids, "length": p.longest}
            | ({} if p.margin is None else {"margin": p.margin})
            for p in pairs
        ]
    )
