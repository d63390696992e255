"""How well a policy classifies: the label whose completion it finds likeliest, against the row's own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.base import InputError, StageContext
from stages.classification import completions
from stages.models.config import ModelConfig
from stages.models.heads import PolicyModel
from stages.render import Rendered, Renderer, collate
from stages.reward_model.quality import wilson
from stages.sft.config import SFTConfig


def quality(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy with Wilson's 95 % interval, macro-F1 over all `labels`, and what the commonest label alone would get.

    F1 is 0 for a label that is neither predicted nor there: a class that was lost counts as lost.
    """
    from sklearn.metrics import f1_score

    correct = wilson(sum(t == p for t, p in zip(truth, predicted, strict=True)), len(truth))
    return {
        "accuracy": correct.value,
        "accuracy_low": correct.low,
        "accuracy_high": correct.high,
        "macro_f1": float(f1_score(truth, predicted, labels=list(labels), average="macro", zero_division=0)),
        "majority_baseline": Counter(truth).most_common(1)[0][1] / len(truth),
        "n": correct.n,
    }


@torch.no_grad()
def total_logprobs(policy: PolicyModel, pairs: Sequence[Rendered], pad_id: int, batch_size: int) -> list[float]:
    """Log-probability of each whole completion, its EOS included, given its prompt; batches are of similar lengths."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].ids))
    totals: dict[int, float] = {}
    device = next(policy.parameters()).device
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [tensor.to(device) for tensor in collate([pairs[i] for i in chosen], pad_id)]
        scores = policy(*batch, with_entropy=False).logprobs.sum(1)
        totals |= dict(zip(chosen, scores.tolist(), strict=True))
    return [totals[i] for i in range(len(pairs))]


class HeldOutLabels:
    """The held-out rows of a classification, each with every label it could have.

    Rows that do not fit into `sft.max_length` with each label are left out, aloud.
    Raises InputError DATA04 when none fits.
    """

    def __init__(
        self,
        config: SFTConfig,
        model: ModelConfig,
        renderer: Renderer,
        rows: Sequence[Mapping[str, Any]],
        path: Path,
        context: StageContext,
    ):
        assert config.classification is not None
        self._config, self._compute, self._context = config, model.compute, context
        self._answers = completions(config.classification)
        self._words = config.classification.labels
        self._pad_id: int = renderer.tokenizer.pad_token_id
        pairs = [[renderer.pair(row["prompt"], answer) for answer in self._answers.values()] for row in rows]
        kept = [i for i, options in enumerate(pairs) if max(len(o.ids) for o in options) <= config.max_length]
        if len(kept) < len(rows):
            told = f"{path}: {len(rows) - len(kept)} of {len(rows)} rows exceed {config.max_length} tokens with a label"
            if not kept:
                raise InputError("DATA04", told, fix="raise sft.max_length")
            print(f"{told}; accuracy leaves them out", flush=True)
        self._rows, self._pairs = [rows[i] for i in kept], [pairs[i] for i in kept]

    def measure(self, policy: nn.Module, when: str, step: int) -> dict[str, float]:
        """Classify every row, log and print how well that went, and keep a few predictions for eyes."""
        was_training = policy.training
        predicted = self._predictions(PolicyModel(policy.eval(), compute=self._compute))
        policy.train(was_training)
        truth = [row["label"] for row in self._rows]
        found = quality(truth, predicted, list(self._answers))
        metrics = {"sft/eval_accuracy": found["accuracy"], "sft/eval_macro_f1": found["macro_f1"]}
        self._context.tracker.log(metrics, step)
        self._show(found, Counter(truth).most_common(1)[0][0], when)
        samples = [
            {
                "when": when,
                "prompt": row["prompt"],
                "completion": self._answers[label],
                "reference": row["completion"],
            }
            for row, label in list(zip(self._rows, predicted, strict=True))[: self._config.samples]
        ]
        self._context.tracker.samples(samples, step)
        return found

    def _predictions(self, policy: PolicyModel) -> list[str]:
        labels = list(self._answers)
        flat = [option for options in self._pairs for option in options]
        scores = total_logprobs(policy, flat, self._pad_id, 2 * self._config.microbatch_size)
        rows = (scores[i : i + len(labels)] for i in range(0, len(scores), len(labels)))
        return [labels[row.index(max(row))] for row in rows]

    def _show(self, found: Mapping[str, float], commonest: str, when: str) -> None:
        print(
            f"sft: held-out accuracy {when} training {found['accuracy']:.3f} "
            f"[{found['accuracy_low']:.3f}, {found['accuracy_high']:.3f}], macro-F1 {found['macro_f1']:.3f} "
            f"on {found['n']} rows; always '{self._words[commonest]}' {found['majority_baseline']:.3f}",
            flush=True,
        )
