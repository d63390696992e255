"""Loads a saved reward model as PPO will load it, and draws what it is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stages.models.config import ModelConfig
from stages.models.heads import ScoreModel
from stages.models.load import source_of, stop_ids
from stages.models.precision import device
from stages.models.roles import Roles
from stages.models.trunk import unwrapped
from stages.render import Rendered
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.pairs import Preferences
from stages.reward_model.reporting import HeldOut, Scores
from stages.reward_model.sft_samples import SAMPLING_SEED, drawn, prompts_with_room
from stages.rollout import Sampler


@dataclass(frozen=True)
class Examiner:
    """What measuring a reward model takes, at the end of its stage and later alike."""

    config: RewardModelConfig
    model: ModelConfig
    roles: Roles
    tokenizer: PreTrainedTokenizerBase
    seed: int
    """Of the run."""

    @property
    def batch_size(self) -> int:
        """Texts per forward pass: as many as a microbatch of pairs has."""
        return self.config.microbatch_size * 2

    def held_out(self, preferences: Preferences, demonstrations: Sequence[Rendered], sft: Path | None) -> HeldOut:
        """With completions of the SFT model on the prompts of the pairs, if there is one."""
        if sft is None:
            return HeldOut(preferences, demonstrations, None)
        lm = self._lender().reference(source_of(sft)).to(device()).eval()
        prompts, new_tokens = prompts_with_room(preferences.pairs, self.config.max_length)
        sampler = Sampler(
            stop_ids=stop_ids(unwrapped(lm), self.tokenizer),
            pad_id=self.tokenizer.pad_token_id,
            max_new_tokens=new_tokens,
            temperature=1.0,
            seed=self.seed + SAMPLING_SEED,
            compute=self.model.compute,
        )
        return HeldOut(preferences, demonstrations, drawn(sampler, lm, prompts, self.batch_size))

    def scores(self, final: Path) -> Scores:
        """The raw scores of the reward model in `final`."""
        loaded = self.roles.reward_model(source_of(final)).to(device())
        model = ScoreModel(loaded, compute=self.model.compute).eval()
        return Scores(model, self.tokenizer.pad_token_id, self.batch_size)

    def _lender(self) -> Roles:
        """Who loads the SFT model: whole weights, which no adapter shares, are not to stay in memory."""
        return self.roles.apart() if self.config.tuning.method == "full" else self.roles
