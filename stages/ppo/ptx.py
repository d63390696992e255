"""InstructGPT's PTX term: the language-modelling loss on demonstrations, mixed into PPO (arXiv 2203.02155, eq. 2)."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from stages.models.heads import PolicyModel
from stages.render import Rendered, collate
from stages.world import ALONE, World


class PretrainingMix:
    """Batches of demonstrations in an order given by the seed; the k-th batch is the same after a resume."""

    def __init__(self, rows: Sequence[Rendered], *, batch_size: int, coef: float, seed: int, pad_id: int, compute: str):
        self.coef = coef
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._pad_id = pad_id
        self._compute = compute
        self.drawn = 0

    def loss(self, lm: nn.Module, world: World = ALONE) -> Tensor:
        """This rank's share of the mean cross-entropy per completion token of the next batch, at temperature 1."""
        generator = np.random.Generator(np.random.Philox(key=[self._seed, 2**34 + self.drawn]))
        self.drawn += 1
        chosen = [self._rows[i] for i in generator.choice(len(self._rows), self._batch_size)]
        tokens = sum(len(row.completion_ids) for row in chosen)
        ids, attention_mask, mask = collate(chosen[world.share(len(chosen))], self._pad_id)
        device = next(lm.parameters()).device
        policy = PolicyModel(lm, temperature=1.0, compute=self._compute)
        logprobs = policy(ids.to(device), attention_mask.to(device), mask.to(device), with_entropy=False).logprobs
        return -logprobs.sum() / tokens

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]
