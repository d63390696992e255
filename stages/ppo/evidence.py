"""What is kept of a batch of PPO whose numbers were not finite."""

from pathlib import Path

import torch

from stages.divergence import NonFinite, dump
from stages.ppo.prompts import PromptBatch
from stages.ppo.trainer import PPOTrainer


def dump_batch(folder: Path, trainer: PPOTrainer, batch: PromptBatch, error: Exception) -> Path:
    """Write tensors and texts of the bad iteration.

    A reward function that gave no number knows no tensors; the rollout that it was asked about is sampled once more,
    to the same bits, since nothing has been learned from it.
    """
    if isinstance(error, NonFinite):
        name, tensors = error.tensor, dict(error.tensors)
    else:
        name = "score"
        tensors = vars(trainer.sampler(trainer.policy.module.lm, batch.ids, batch.episodes))
        tensors = {**tensors, "episodes": torch.tensor(batch.episodes)}
    completions = tensors["ids"][:, tensors["prompt_mask"].shape[1] :]
    prompts = dict(zip(batch.episodes, batch.texts, strict=True))
    texts = zip(tensors["episodes"].tolist(), trainer.decode(completions, tensors["mask"]), strict=True)
    rows = [{"episode": e, "prompt": prompts[e], "completion": text} for e, text in texts]
    if trainer.world.main:
        dump(folder, name, tensors, rows)
    return folder
