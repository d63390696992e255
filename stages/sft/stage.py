"""Supervised fine-tuning on TRL's SFTTrainer."""

from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig as TRLArguments
from trl import SFTTrainer

from stages.base import StageContext, StageResult
from stages.classification import absent_labels, read_sft_rows
from stages.durable import replacing
from stages.hf_trainer import Supervision, silence, training_arguments
from stages.models.adapters import announce_parameters
from stages.models.config import NO_FROZEN_LAYERS, ModelConfig, TrunkConfig
from stages.models.load import load_tokenizer, neutral_generation_config, source_of, stop_ids
from stages.models.publish import is_adapter, publish
from stages.models.roles import Roles
from stages.quiet import quiet_libraries
from stages.render import Renderer, rendered
from stages.sft.config import SFTConfig
from stages.sft.held_out import HeldOut
from stages.sft.rows import dataset

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


def run_sft(
    config: SFTConfig,
    model: ModelConfig,
    train: Path,
    eval: Path | None,
    context: StageContext,
    trunk: TrunkConfig = NO_FROZEN_LAYERS,
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
    stops = stop_ids(policy, tokenizer)
    policy.generation_config = neutral_generation_config(stops, tokenizer)
    supervision = Supervision(context, "sft", config)
    trainer = SFTTrainer(
        model=policy,
        processing_class=tokenizer,
        train_dataset=train_set,
        eval_dataset=held_out.dataset,
        args=TRLArguments(
            **training_arguments(config, model, context),
            max_length=config.max_length,
            packing=config.packing,
            eval_packing=False,
        ),
        callbacks=supervision.callbacks(NAMES, SHOWN),
    )
    silence(trainer)
    before = held_out.measure(trainer, policy, stops, "before")
    supervision.train(trainer)
    after = held_out.measure(trainer, policy, stops, "after")
    final = context.folder / "final"
    context.pulse.enter("publishing")
    with replacing(final) as aside:
        publish(policy, tokenizer, aside, roles)
        policy.generation_config.save_pretrained(aside)
    started = {f"{name}_before": before[name] for name in ("eval_loss", "accuracy") if name in before}
    headline = started | after | {"steps": trainer.state.global_step, "rows": len(train_set)}
    return StageResult(final, is_adapter(final), headline, counts)


def _tell_absent_labels(rows: list[dict[str, Any]], config: SFTConfig, path: Path) -> None:
    absent = absent_labels(rows, config.classification) if config.classification else []
    if absent:
        print(f"{path}: no row has the label {' or '.join(map(repr, absent))}, so it will not be learned", flush=True)
