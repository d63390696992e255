"""TRL's RewardTrainer, with every pair of a step counted once over all ranks."""

from typing import Any

import torch
from torch import Tensor
from trl import RewardTrainer

from stages.dealing import WEIGHT, weights
from stages.ranked_trainer import RankedTrainer
from stages.reward_model.pair_loss import pair_losses


class PairTrainer(RankedTrainer, RewardTrainer):
    """The pairwise loss as the ranks share it; also in a last pass that has fewer pairs."""

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
