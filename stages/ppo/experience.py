"""A rollout with all that the PPO epochs need. Axes: B batch, T completion tokens."""

from dataclasses import dataclass

from torch import Tensor

from stages.rollout import Rollout


@dataclass(frozen=True)
class Experience(Rollout):
    """An evaluated rollout; every added field is constant over the PPO epochs."""

    logprobs: Tensor  # float [B, T], by the training forward
    ref_logprobs: Tensor  # float [B, T]
    entropy: Tensor  # float [B, T]
    values: Tensor  # float [B, T], of the state before each token
    scores: Tensor  # float [B], after the missing-EOS rule, clipping and normalisation
    rewards: Tensor  # float [B, T]
    advantages: Tensor  # float [B, T]
    returns: Tensor  # float [B, T]
