"""Supervised fine-tuning on TRL's SFTTrainer."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig as TRLArguments
from trl import SFTTrainer

from stages.base import InputError, StageContext, StageResult
from stages.classification import absent_labels, read_sft_rows
from stages.hf_trainer import (
    SealedCheckpoints,
    TrackerCallback,
    checkpoint_to_resume,
    silence,
    training_arguments,
)
from stages.models.adapters import announce_parameters
from stages.models.config import NO_FROZEN_LAYERS, ModelConfig, TrunkConfig
from stages.models.load import load_tokenizer, neutral_generation_config, source_of, stop_ids
from stages.models.publish import is_adapter, publish
from stages.models.roles import Roles
from stages.quiet import quiet_libraries
from stages.render import Rendered, Renderer, without_target
from stages.rollout import Sampler
from stages.sft.classification import HeldOutLabels
from stages.sft.config import SFTConfig

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
    train_set = _dataset([renderer.demonstration(r) for r in rows], config, train)
    held_out = read_sft_rows(eval, config) if eval else []
    eval_set = _dataset([renderer.demonstration(r) for r in held_out], config, eval) if held_out else None

    _tell_absent_labels(rows, config, train)
    labels = HeldOutLabels(config, model, renderer, held_out, eval, context) if config.classification and eval else None

    torch.manual_seed(context.seed)
    roles = Roles(model, trunk.frozen_layers)
    policy = roles.policy(source, config.tuning)
    counts = announce_parameters("sft", policy)
    stops = stop_ids(policy, tokenizer)
    policy.generation_config = neutral_generation_config(stops, tokenizer)
    trainer = SFTTrainer(
        model=policy,
        processing_class=tokenizer,
        train_dataset=train_set,
        eval_dataset=eval_set,
        args=TRLArguments(
            **training_arguments(config, model, context),
            max_length=config.max_length,
            packing=config.packing,
            eval_packing=False,
        ),
        callbacks=[TrackerCallback(context, "sft", NAMES, SHOWN), SealedCheckpoints(context)],
    )
    silence(trainer)
    samples = _Samples(config, model, renderer, [] if labels else held_out, stops, context)
    before = trainer.evaluate()["eval_loss"] if eval_set else None
    samples.take(policy, "before", 0)
    labelled_before = labels.measure(policy, "before", 0) if labels else {}
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(context))
    after = trainer.evaluate()["eval_loss"] if eval_set else None
    samples.take(policy, "after", trainer.state.global_step)
    labelled = labels.measure(policy, "after", trainer.state.global_step) if labels else {}
    final = context.folder / "final"
    publish(policy, tokenizer, final, roles)
    policy.generation_config.save_pretrained(final)
    headline = {
        "eval_loss_before": before,
        "eval_loss": after,
        "steps": trainer.state.global_step,
        "rows": len(train_set),
        "accuracy_before": labelled_before.get("accuracy"),
        **labelled,
    }
    return StageResult(final, is_adapter(final), {k: v for k, v in headline.items() if v is not None}, counts)


def _tell_absent_labels(rows: list[dict[str, Any]], config: SFTConfig, path: Path) -> None:
    absent = absent_labels(rows, config.classification) if config.classification else []
    if absent:
        print(f"{path}: no row has the label {' or '.join(map(repr, absent))}, so it will not be learned", flush=True)


def _dataset(rows: list[Rendered], config: SFTConfig, path: Path) -> Dataset:
    """Rows as TRL's prepared columns; labels are -100 where there is no loss, by construction."""
    empty = set(without_target(rows, config.max_length))
    if len(empty) > 0.05 * len(rows):
        raise InputError(
            "DATA04",
            f"{path}: {len(empty)} of {len(rows)} rows have no target token, "
            f"their prompts are {config.max_length} tokens or longer "
            f"(rows {[i + 1 for i in sorted(empty)[:3]]})",
            fix="raise sft.max_length",
        )
    if empty:
        print(f"{path}: {len(empty)} rows without target tokens dropped", flush=True)
    return Dataset.from_list([_columns(r, config) for i, r in enumerate(rows) if i not in empty])


def _columns(row: Rendered, config: SFTConfig) -> dict[str, list[int]]:
    ids = row.ids
    labels = [-100] * len(row.prompt_ids) + list(row.completion_ids) if config.completion_only_loss else list(ids)
    if config.packing:
        return {"input_ids": ids, "labels": labels}
    cut = slice(config.max_length)
    return {"input_ids": ids[cut], "labels": labels[cut], "length": len(ids[cut])}


class _Samples:
    """The same held-out prompts completed before and after training, for eyes."""

    def __init__(
        self,
        config: SFTConfig,
        model: ModelConfig,
        renderer: Renderer,
        rows: list[dict[str, Any]],
        stops: tuple[int, ...],
        context: StageContext,
    ):
        self._rows = [r for r in rows if "text" not in r][: config.samples]
        self._renderer, self._context, self._compute = renderer, context, model.compute
        tokenizer: PreTrainedTokenizerBase = renderer.tokenizer
        self._sampler = Sampler(
            stop_ids=stops,
            pad_id=tokenizer.pad_token_id,
            max_new_tokens=config.sample_tokens,
            temperature=1.0,
            seed=context.seed,
            compute=model.compute,
        )

    @torch.no_grad()
    def take(self, policy: torch.nn.Module, when: str, step: int) -> None:
        if not self._rows:
            return
        policy.eval()
        rendered = [self._renderer.demonstration(r) for r in self._rows]
        rollout = self._sampler(policy, [r.prompt_ids for r in rendered], range(len(rendered)))
        texts = self._renderer.decode(rollout.completions, rollout.mask)
        rows = []
        for row, rendered_row, text in zip(self._rows, rendered, texts, strict=True):
            prompt = row.get("prompt", row.get("messages"))
            reference = self._renderer.tokenizer.decode(rendered_row.completion_ids, skip_special_tokens=True)
            rows.append({"when": when, "prompt": prompt, "completion": text, "reference": reference})
            print(f"  {when}: {prompt!s:.60} | {text!r:.140}", flush=True)
        self._context.tracker.samples(rows, step)
