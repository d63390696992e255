"""A scoring server as the source of a term."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reward.mixture import Read, Source, Texts
from reward.remote import RemoteScorer


@dataclass(frozen=True)
class RemoteScores(Source):
    """What a server says of the decoded texts."""

    scorer: RemoteScorer

    def __call__(self, texts: Texts, read: Read) -> Tensor:
        """Scores float32 [B]. Raises as RemoteScorer does."""
        return torch.tensor(self.scorer(texts.prompts, texts.completions, texts.columns), dtype=torch.float32)
