"""The walk over PPO iterations: from the newest checkpoint to the end, with its log, evaluations and recovery."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from reward.base import NonFiniteScore, RewardUnavailable
from stages.base import StageContext, StageResult
from stages.divergence import NonFinite, Skips, copied, named_tensors, require_finite_state
from stages.ppo.evidence import dump_batch
from stages.ppo.health import require_answers, require_clean_start
from stages.ppo.health_actions import Health
from stages.ppo.held_out import HeldOut
from stages.ppo.iteration_log import log_iteration, print_samples
from stages.ppo.prompts import PromptBatch, PromptSet
from stages.ppo.state import load_state, save_state
from stages.ppo.trainer import PPOTrainer
from stages.progress import Progress


@dataclass
class PPOLoop:
    """Runs a trainer to the end of its config, from the newest checkpoint if there is one."""

    trainer: PPOTrainer
    prompts: PromptSet
    held_out: HeldOut
    context: StageContext
    compute: str
    skips: Skips = field(init=False)
    health: Health = field(init=False)
    _saved: int | None = None
    """The iteration of the newest checkpoint."""

    def __post_init__(self) -> None:
        self.skips = Skips(self.trainer.config.on_nonfinite, self.trainer.config.max_skipped_batches)
        self.health = Health(self.trainer, self.held_out, self.context)

    def run(self) -> StageResult:
        """All remaining iterations; the result's `final` is the best policy under the budget, else the last.

        With the state on disk it raises Interrupted where it was asked to stop, and RewardUnavailable where a scoring
        server gave no scores.
        """
        self.resume()
        try:
            return self._walk()
        except RewardUnavailable:  # asking has changed nothing: the state is that after the last iteration
            self._stop_if_asked()
            self.checkpoint()
            saved = f"the state after step {self._saved} is saved" if self._saved else "nothing had to be saved"
            print(f"ppo: {saved}", flush=True)
            raise

    def _walk(self) -> StageResult:
        config = self.trainer.config
        self.context.stop.follow(self.trainer.finished)
        progress = Progress("ppo", config.steps, self.trainer.finished)
        self.evaluate_when_due()
        if self.trainer.config.health.rolls_back and self._saved is None:
            self._save()  # so that there is a state to return to
        while self.trainer.finished < config.steps:
            self._stop_if_asked()
            self.iterate(progress)
            self._stop_if_asked()
            self.evaluate_when_due()
            if self._due(config.checkpoint_every):
                self.checkpoint()
        return self.finish()

    def iterate(self, progress: Progress) -> None:
        """The next iteration and its log."""
        number, size = self.trainer.finished, self.trainer.config.rollout_batch_size
        batch = self.prompts.shuffled(self.trainer.seed, number * size, size)
        before = copied(self.trainer.state_dict()) if self.skips.possible else {}
        try:
            step = self.trainer.step(batch)
        except (NonFinite, NonFiniteScore) as error:
            self._skip(error, batch, before)
            self.health.act(self.health.judge({"policy/updates": 0.0}, number), self.checkpoint)
            return
        if number == 0:
            require_clean_start(step.metrics["objective/kl"], step.metrics["policy/ratio_first"], self.compute)
        empty = step.metrics["rollout/empty_fraction"]
        require_answers(empty, self.trainer.config.max_empty_fraction, size, self.trainer.finished)
        alarms = self.health.judge(step.metrics, number)
        step = replace(step, metrics=step.metrics | self.health.monitor.flags())
        log_iteration(self.context, step, batch.episodes, self.trainer.finished, progress)
        if self._due(self.trainer.config.sample_every) or self.trainer.finished == 1:
            print_samples(step, batch.episodes)
        self.health.act(alarms, self.checkpoint)

    def evaluate_when_due(self) -> None:
        """The held-out evaluation, where one is due, and what the rules make of it."""
        metrics = self.held_out.evaluate_when_due()
        self.health.act(self.health.judge(metrics, self.trainer.finished), self.checkpoint)

    def _skip(self, error: NonFinite | NonFiniteScore, batch: PromptBatch, before: dict[str, Any]) -> None:
        """Go back to where the iteration began and leave it out. Raises Diverged when it may not be left out."""
        number = self.trainer.finished + 1
        folder = self.context.folder / "diverged" / f"step-{number:06d}"
        self.skips.skip(number, error, dump_batch(folder, self.trainer, batch, error))
        self.trainer.load_state_dict(before)
        self.trainer.finished = number
        self.context.tracker.log({"ppo/skipped": len(self.skips.steps)}, number)

    def checkpoint(self) -> None:
        """Save the state after the last iteration, once, unless a rollback would have to step over it."""
        if (self._saved or 0) < self.trainer.finished and not self.health.monitor.returning:
            self._save()

    def _save(self) -> None:
        self.context.pulse.enter("saving")
        state = self.trainer.state_dict()  # by all ranks together
        self.context.checkpoints.save(self.trainer.finished, partial(self.save, state))
        self._saved = self.trainer.finished

    def _stop_if_asked(self) -> None:
        if self.context.stop.asked:
            self.checkpoint()
            self.context.stop.follow(self._saved or 0)

    def _due(self, every: int) -> bool:
        return every > 0 and self.trainer.finished % every == 0

    def finish(self) -> StageResult:
        """Publish what the run has found."""
        self.context.pulse.enter("publishing")
        final = self.context.folder / "final"
        self.held_out.publish_final(final)
        headline = {"steps": self.trainer.finished} | self.held_out.headline() | self.health.counts()
        return StageResult(final, (final / "adapter_config.json").is_file(), headline)

    def save(self, state: dict[str, Any], folder: Path) -> None:
        """Everything a resumed run needs to give the same bits. Raises Diverged NUM01 when some of it is not finite."""
        require_finite_state(f"ppo step {self.trainer.finished}", named_tensors(state))
        skipped = {"skipped": self.skips.steps} if self.skips.possible else {}
        health = {"health": self.health.state_dict()}
        save_state(folder, state | skipped | self.held_out.state_dict() | health)
        self.held_out.save_best(folder)

    def resume(self) -> None:
        """Continue from the newest complete checkpoint, if there is one; the best policy so far is the one it holds."""
        found = self.context.checkpoints.latest()
        if found is not None:
            step, folder = found
            print(f"resuming from {folder}", flush=True)
            state = load_state(folder)
            self._saved = step
            self.skips.steps = state.pop("skipped", [])
            self.held_out.load_state_dict(state)
            self.trainer.load_state_dict(state)
            if "health" in state:  # a checkpoint of an earlier version has none
                self.health.load_state_dict(state["health"])
        self.held_out.restore_best(found and found[1])
