"""What is measured and shown of the policy on held-out rows, before training and after."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from stages.base import StageContext
from stages.classification import read_sft_rows
from stages.models.config import ModelConfig
from stages.render import Renderer
from stages.rollout import Sampler
from stages.sft.classification import HeldOutLabels
from stages.sft.config import SFTConfig
from stages.sft.rows import dataset


class HeldOut:
    """The held-out file of SFT, or none: its loss, its labels in a classification, else a few completions."""

    def __init__(
        self, config: SFTConfig, model: ModelConfig, renderer: Renderer, path: Path | None, context: StageContext
    ):
        rows = read_sft_rows(path, config) if path else []
        self.dataset = dataset([renderer.demonstration(r) for r in rows], config, path) if path else None
        classified = config.classification and path
        self._labels = HeldOutLabels(config, model, renderer, rows, path, context) if classified else None
        self._context = context
        self._samples = Samples(config, model, renderer, [] if classified else rows, context)

    def measure(self, trainer: Trainer, policy: nn.Module, stops: tuple[int, ...], when: str) -> dict[str, float]:
        """Loss, and accuracy and F1 in a classification; logged and printed too."""
        self._context.pulse.enter("evaluation")
        found = {"eval_loss": trainer.evaluate()["eval_loss"]} if self.dataset else {}
        step = trainer.state.global_step
        self._samples.take(policy, stops, when, step)
        return found | (self._labels.measure(policy, when, step) if self._labels else {})


class Samples:
    """The same held-out prompts completed before and after training, for eyes."""

    def __init__(
        self,
        config: SFTConfig,
        model: ModelConfig,
        renderer: Renderer,
        rows: list[dict[str, Any]],
        context: StageContext,
    ):
        self._rows = [r for r in rows if "text" not in r][: config.samples]
        self._renderer, self._context = renderer, context
        self._sampling = {
            "pad_id": renderer.tokenizer.pad_token_id,
            "max_new_tokens": config.sample_tokens,
            "temperature": 1.0,
            "seed": context.seed,
            "compute": model.compute,
        }

    @torch.no_grad()
    def take(self, policy: nn.Module, stops: tuple[int, ...], when: str, step: int) -> None:
        """Complete, log and print them."""
        if not self._rows:
            return
        policy.eval()
        rendered = [self._renderer.demonstration(r) for r in self._rows]
        rollout = Sampler(stop_ids=stops, **self._sampling)(
            policy, [r.prompt_ids for r in rendered], range(len(rendered))
        )
        texts = self._renderer.decode(rollout.completions, rollout.mask)
        rows = []
        for row, rendered_row, text in zip(self._rows, rendered, texts, strict=True):
            prompt = row.get("prompt", row.get("messages"))
            reference = self._renderer.tokenizer.decode(rendered_row.completion_ids, skip_special_tokens=True)
            rows.append({"when": when, "prompt": prompt, "completion": text, "reference": reference})
            print(f"  {when}: {prompt!s:.60} | {text!r:.140}", flush=True)
        self._context.tracker.samples(rows, step)
