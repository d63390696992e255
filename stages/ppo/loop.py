"""The walk over PPO iterations: logging, samples, held-out evaluation, the best policy, checkpoints."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from reward.base import NonFiniteScore
from stages.base import StageContext, StageResult
from stages.divergence import NonFinite, Skips, copied, named_tensors, require_finite_state
from stages.durable import delete_folder, replacing, swap_in
from stages.ppo.evaluation import Completions, Evaluator, win_rate
from stages.ppo.evidence import dump_batch
from stages.ppo.health import require_answers, require_clean_start
from stages.ppo.prompts import PromptBatch, PromptSet
from stages.ppo.state import load_state, save_state
from stages.ppo.trainer import PPOTrainer, Step
from stages.progress import Progress

SHOWN = {
    "score": "objective/score",
    "kl": "objective/kl",
    "len": "rollout/length",
    "stopped": "rollout/stopped_fraction",
    "rollout_s": "time/rollout",
    "scoring_s": "time/scoring",
    "update_s": "time/update",
}
EVALUATION_SEED = 1_000_003  # apart from the seeds of training, so that evaluation never reuses a rollout's draws


@dataclass
class Best:
    """The best held-out score so far under the KL budget, and its evaluation."""

    step: int = -1
    score: float = float("-inf")
    kl: float = 0.0


@dataclass
class PPOLoop:
    """Runs a trainer to the end of its config, from the newest checkpoint if there is one."""

    trainer: PPOTrainer
    prompts: PromptSet
    held_out: PromptSet | None
    context: StageContext
    publish: Callable[[Path], bool]
    compute: str
    evaluator: Evaluator
    best: Best = field(default_factory=Best)
    skips: Skips = field(init=False)
    evaluated: int = -1
    """The last iteration whose policy was evaluated."""
    _saved: int = 0
    _reference: Completions | None = None

    def __post_init__(self) -> None:
        self.skips = Skips(self.trainer.config.on_nonfinite, self.trainer.config.max_skipped_batches)

    def run(self) -> StageResult:
        """All remaining iterations; the result's `final` is the best policy under the budget, else the last.

        Raises Interrupted where it was asked to stop, with the state on disk.
        """
        config = self.trainer.config
        self.resume()
        self.context.stop.follow(self.trainer.finished)
        progress = Progress("ppo", config.steps, self.trainer.finished)
        self.evaluate_when_due()
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
            return
        if number == 0:
            require_clean_start(step.metrics["objective/kl"], step.metrics["policy/ratio_first"], self.compute)
        empty = step.metrics["rollout/empty_fraction"]
        require_answers(empty, self.trainer.config.max_empty_fraction, size, self.trainer.finished)
        self.log(step, batch.episodes, progress)

    def _skip(self, error: NonFinite | NonFiniteScore, batch: PromptBatch, before: dict[str, Any]) -> None:
        """Go back to where the iteration began and leave it out. Raises Diverged when it may not be left out."""
        number = self.trainer.finished + 1
        folder = self.context.folder / "diverged" / f"step-{number:06d}"
        self.skips.skip(number, error, dump_batch(folder, self.trainer, batch, error))
        self.trainer.load_state_dict(before)
        self.trainer.finished = number
        self.context.tracker.log({"ppo/skipped": len(self.skips.steps)}, number)

    def checkpoint(self) -> None:
        """Save the state after the last iteration, once."""
        if self._saved < self.trainer.finished:
            self.context.pulse.enter("saving")
            state = self.trainer.state_dict()  # by all ranks together
            self.context.checkpoints.save(self.trainer.finished, partial(self.save, state))
            self._saved = self.trainer.finished

    def _stop_if_asked(self) -> None:
        if self.context.stop.asked:
            self.checkpoint()
            self.context.stop.follow(self.trainer.finished)

    def _due(self, every: int) -> bool:
        return every > 0 and self.trainer.finished % every == 0

    def log(self, step: Step, episodes: Sequence[int], progress: Progress) -> None:
        """One row of metrics, all samples of the iteration, and now and then three of them for eyes."""
        number = self.trainer.finished
        terms = {f"objective/term/{name}": float(scores.mean()) for name, scores in step.parts.items()}
        self.context.tracker.log(step.metrics | terms, number)
        progress.show(number, {name: step.metrics[path] for name, path in SHOWN.items()})
        e = step.experience
        kl = (e.logprobs - e.ref_logprobs).sum(1)
        texts = (step.texts.prompts, step.texts.completions)
        columns = zip(episodes, *texts, e.scores, kl, e.mask.sum(1), e.stopped, strict=True)
        rows = [
            {
                "episode": int(i),
                "prompt": p,
                "completion": c,
                "score": float(s),
                "kl": float(k),
                "length": int(n),
                "stopped": bool(stop),
            }
            for i, p, c, s, k, n, stop in columns
        ]
        self.context.tracker.samples(rows, number)
        if self._due(self.trainer.config.sample_every) or number == 1:
            for row in rows[:3]:
                print(
                    f"  score {row['score']:+.2f}  kl {row['kl']:5.1f}  {row['prompt']}|{row['completion']!r:.150}",
                    flush=True,
                )

    def evaluate_when_due(self) -> None:
        """Evaluate before the first iteration, after the last and every `eval_every`, once each.

        A run that was stopped between an iteration and its evaluation catches up on it here.
        """
        config, finished = self.trainer.config, self.trainer.finished
        due = finished in (0, config.steps) or self._due(config.eval_every)
        if due and self.held_out is not None and self.evaluated < finished:
            self.evaluate(self.held_out)
            self.evaluated = finished

    def evaluate(self, held_out: PromptSet) -> None:
        """Score the policy (or its average) on held-out prompts, and keep it if it is the best so far."""
        start = perf_counter()
        self.context.pulse.enter("evaluation")
        batch = held_out.first(self.trainer.config.eval_prompts)
        if self._reference is None:
            self._reference = self.evaluator(self.trainer.reference, batch)
        with self.trainer.averaged():
            ours = self.evaluator(self.trainer.policy.module, batch)
            summary = ours.summary()
            score, kl = summary["score"].value, summary["kl"].value
            budget = self.trainer.config.kl_budget
            if self.trainer.finished and score > self.best.score and (budget is None or kl <= budget):
                self.best = Best(self.trainer.finished, score, kl)
                self._publish(self.context.folder / "best")
        metrics = {f"eval/{name}": estimate.value for name, estimate in summary.items()}
        metrics |= {f"eval/{name}": value for name, value in win_rate(ours, self._reference).items()}
        self.context.tracker.log(metrics | {"time/eval": perf_counter() - start}, self.trainer.finished)
        print(
            f"held-out at step {self.trainer.finished}: score {score:+.3f}  kl {kl:.2f}  "
            f"length {summary['length'].value:.1f}  wins {metrics['eval/win_rate']:.0%} against the reference",
            flush=True,
        )

    def _publish(self, folder: Path) -> None:
        """Write the policy; all ranks hold its weights together meanwhile, and rank 0 writes."""
        with self.trainer.policy.whole():
            if self.context.world.main:
                with replacing(folder) as aside:
                    self.publish(aside)
        self.context.world.barrier()

    def finish(self) -> StageResult:
        """Publish the best policy as `final`, or the last one where none was evaluated within the budget."""
        self.context.pulse.enter("publishing")
        final = self.context.folder / "final"
        best = self.context.folder / "best"
        if self.best.step < 0:
            with self.trainer.averaged():
                self._publish(final)
        elif self.context.world.main:
            swap_in(best, final)
        self.context.world.barrier()
        headline = {
            "steps": self.trainer.finished,
            "best_step": self.best.step if self.best.step >= 0 else self.trainer.finished,
        }
        if self.best.step >= 0:
            headline |= {"score": self.best.score, "kl": self.best.kl}
        return StageResult(final, (final / "adapter_config.json").is_file(), headline)

    def save(self, state: dict[str, Any], folder: Path) -> None:
        """Everything a resumed run needs to give the same bits. Raises Diverged NUM01 when some of it is not finite."""
        require_finite_state(f"ppo step {self.trainer.finished}", named_tensors(state))
        skipped = {"skipped": self.skips.steps} if self.skips.possible else {}
        save_state(folder, state | skipped | {"best": asdict(self.best), "evaluated": self.evaluated})
        if (self.context.folder / "best").is_dir():
            shutil.copytree(self.context.folder / "best", folder / "best")

    def resume(self) -> None:
        """Continue from the newest complete checkpoint, if there is one; the best policy so far is the one it holds."""
        found = self.context.checkpoints.latest()
        if found is not None:
            step, folder = found
            print(f"resuming from {folder}", flush=True)
            state = load_state(folder)
            self.best, self.evaluated, self._saved = Best(**state.pop("best")), state.pop("evaluated"), step
            self.skips.steps = state.pop("skipped", [])
            self.trainer.load_state_dict(state)
        if self.context.world.main:
            _restore_best(self.context.folder / "best", found and found[1] / "best")
        self.context.world.barrier()


def _restore_best(best: Path, saved: Path | None) -> None:
    """Make the best policy so far the one that a checkpoint holds, or none."""
    delete_folder(best)
    if saved and saved.is_dir():
        with replacing(best) as aside:
            shutil.copytree(saved, aside, dirs_exist_ok=True)
