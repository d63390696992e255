"""Supervised fine-tuning on TRL's SFTTrainer."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig as TRLArguments
from trl import SFTTrainer

from stages.base import InputError, StageContext, StageResult
from stages.classification import absent_labels, read_sft_rows
from stages.dealing import WEIGHT, weights
from stages.deepspeed_config import DeepSpeedConfig
from stages.durable import replacing
from stages.models.adapters import announce_parameters
from stages.models.config import NO_FROZEN_LAYERS, ModelConfig, TrunkConfig
from stages.models.load import load_tokenizer, neutral_generation_config, source_of, stop_ids
from stages.models.publish import is_adapter, note_base, publish
from stages.models.roles import Roles
from stages.quiet import quiet_libraries
from stages.ranked_trainer import RankedTrainer
from stages.render import Renderer, rendered
from stages.sft.config import SFTConfig
from stages.sft.held_out import HeldOut
from stages.sft.rows import dataset, without_weight
from stages.supervision import Supervision

NAMES = {
    "loss": "sft/loss",
    "grad_norm": "sft/grad_norm",
    "learning_rate": "sft/learning_rate",
    "num_tokens": "sft/tokens",
    "mean_token_accuracy": "sft/token_accuracy",
    "eval_loss": "sft/eval_loss",
    "eval_mean_token_accuracy": "sft/eval_token_accuracy",
}
SHOWN = ("sft/loss", "sft/token_accuracy", "sft/eval_loss", "sft/learning_rate")


class _Trainer(RankedTrainer, SFTTrainer):
    def collate_weighted(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return self.data_collator([without_weight(row) for row in examples]) | {WEIGHT: weights(examples)}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop(WEIGHT, None)  # a filler has no targets, so that it does not count
        return super().compute_loss(model, inputs, *args, **kwargs)


def run_sft(
    config: SFTConfig,
    model: ModelConfig,
    train: Path,
    eval: Path | None,
    context: StageContext,
    trunk: TrunkConfig = NO_FROZEN_LAYERS,
    deepspeed: DeepSpeedConfig | None = None,
) -> StageResult:
    """Fine-tune the base model on demonstrations and write it to `context.folder / "final"`.

    Raises InputError DATA04 when more than 5 % of the rows would have nothing to train on.
    """
    quiet_libraries()
    source = source_of(model.path)
    tokenizer = load_tokenizer(source, model.trust_remote_code)
    renderer = Renderer(tokenizer)
    rows = read_sft_rows(train, config)
    train_set = dataset(rendered(enumerate(rows, 1), renderer.demonstration, train), config, train)
    _tell_absent_labels(rows, config, train)
    held_out = HeldOut(config, model, renderer, eval, context)

    torch.manual_seed(context.seed)
    roles = Roles(model, trunk.frozen_layers, context.pulse.beat)
    policy = roles.policy(source, config.tuning)
    counts = announce_parameters("sft", policy)
    note_base(policy, roles)
    stops = stop_ids(policy, tokenizer)
    policy.generation_config = neutral_generation_config(stops, tokenizer)
    supervision = Supervision(context, "sft", config, model, deepspeed)
    trainer = _Trainer(
        model=policy,
        processing_class=tokenizer,
        train_dataset=train_set,
        eval_dataset=held_out.dataset,
        args=TRLArguments(
            **supervision.arguments(),
            max_length=config.max_length,
            packing=config.packing,
            eval_packing=False,
        ),
        callbacks=supervision.callbacks(NAMES, SHOWN),
    )
    supervision.take(trainer)
    before = held_out.measure(trainer, policy, stops, "before")
    supervision.train(trainer)
    after = held_out.measure(trainer, policy, stops, "after")
    final = _published(policy, tokenizer, roles, context)
    started = {f"{name}_before": before[name] for name in ("eval_loss", "accuracy") if name in before}
    headline = started | after | {"steps": trainer.state.global_step, "rows": len(train_set)}
    return StageResult(final, is_adapter(final), headline, counts)


def _published(
    policy: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, roles: Roles, context: StageContext
) -> Path:
    """Where rank 0 has written the policy; all ranks have taken part."""
    final = context.folder / "final"
    context.pulse.enter("publishing")
    with context.world.together(InputError):
        if context.world.main:
            with replacing(final) as aside:
                publish(policy, tokenizer, aside, roles)
                policy.generation_config.save_pretrained(aside)
        else:
            publish(policy, tokenizer, None, roles)
    return final


def _tell_absent_labels(rows: list[dict[str, Any]], config: SFTConfig, path: Path) -> None:
    absent = absent_labels(rows, config.classification) if config.classification else []
    if absent:
        print(f"{path}: no row has the label {' or '.join(map(repr, absent))}, so it will not be learned", flush=True)
