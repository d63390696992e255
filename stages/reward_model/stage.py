"""Reward-model training on TRL's RewardTrainer."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import RewardConfig as TRLArguments
from trl import RewardTrainer

from stages.base import InputError, StageContext, StageResult
from stages.data import read_preferences
from stages.durable import replacing
from stages.hf_trainer import Supervision, silence, training_arguments
from stages.models.adapters import announce_parameters
from stages.models.config import NO_FROZEN_LAYERS, ModelConfig, TrunkConfig
from stages.models.heads import ScoreModel
from stages.models.load import load_tokenizer, source_of
from stages.models.precision import device
from stages.models.publish import is_adapter, publish
from stages.models.roles import Roles
from stages.quiet import quiet_libraries
from stages.render import Rendered, Renderer
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.pairs import Pair, render_pair, trainable
from stages.reward_model.quality import mean_and_std, pair_accuracy
from stages.reward_model.statistics import RewardStatistics, raw_scores

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


def run_reward_model(
    config: RewardModelConfig,
    model: ModelConfig,
    train: Path,
    eval: Path | None,
    sft: Path | None,
    context: StageContext,
    demonstrations: list[dict[str, Any]],
    trunk: TrunkConfig = NO_FROZEN_LAYERS,
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
    supervision = Supervision(context, "reward_model", config)
    trainer = RewardTrainer(
        model=classifier,
        processing_class=tokenizer,
        train_dataset=_dataset(train_pairs),
        eval_dataset=_dataset(eval_pairs) if eval_pairs else None,
        args=TRLArguments(
            **training_arguments(config, model, context),
            max_length=None,
            center_rewards_coefficient=config.centering_coef or None,
        ),
        callbacks=supervision.callbacks(NAMES, SHOWN),
    )
    silence(trainer)
    supervision.train(trainer)
    final = context.folder / "final"
    context.pulse.enter("publishing")
    shown = [renderer.demonstration(r) for r in demonstrations] or [p.chosen for p in eval_pairs or train_pairs]
    probes = [side for p in (eval_pairs or train_pairs)[: PROBES // 2] for side in (p.chosen, p.rejected)]
    with replacing(final) as aside:
        publish(classifier.eval(), tokenizer, aside, roles)
        roles.trust(aside)
        # All that is said of the model is measured on what was saved, loaded as PPO will load it.
        scorer = ScoreModel(roles.reward_model(source_of(aside)).to(device()), compute=model.compute).eval()

        def score(rows: list[Rendered]) -> list[float]:
            return raw_scores(scorer, [r.ids for r in rows], tokenizer.pad_token_id, config.microbatch_size * 2)

        mean, std = mean_and_std(score(shown))
        RewardStatistics(mean, std, [r.ids for r in probes], score(probes)).save(aside)
    headline = {
        "steps": trainer.state.global_step,
        "pairs": len(train_pairs),
        "demonstration_mean": mean,
        "demonstration_std": std,
    }
    headline |= _held_out(eval_pairs, score) if eval_pairs else {}
    context.tracker.log(
        {f"reward_model/eval_{k}": v for k, v in headline.items() if k.startswith("accuracy")},
        trainer.state.global_step,
    )
    _require_accuracy(config, headline)
    return StageResult(final, is_adapter(final), headline, counts)


def _held_out(pairs: list[Pair], score: Any) -> dict[str, float]:
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
