"""What transformers' Trainer and TRL lose when they resume, so that a resumed stage logs and shuffles the same."""

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler


class ExactResume(TrainerCallback):
    """Makes every row of a resumed trainer's log and every batch those of one that was never stopped.

    The rest is transformers' own: weights, optimizer, schedule, generators, position in the epoch.
    """

    def __init__(self, trainer: Trainer, seed: int):
        self._trainer, self._seed = trainer, seed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """TRL counts the tokens of this process alone; the count so far is in the log."""
        counted = [row["num_tokens"] for row in state.log_history if "num_tokens" in row]
        if counted:
            self._trainer._total_train_tokens = int(counted[-1])

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader,
        **kwargs: object,
    ) -> None:
        """The order by length is drawn from the global generator, which a resume inside an epoch finds elsewhere."""
        sampler = getattr(train_dataloader.batch_sampler, "sampler", None)
        if isinstance(sampler, LengthGroupedSampler):
            epoch = int(state.epoch or 0)
            sampler.generator = torch.Generator().manual_seed(self._seed + epoch)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Averages since the last row are in no checkpoint, so each checkpoint begins new ones."""
        if control.should_save:
            control.should_log = True
