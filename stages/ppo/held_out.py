"""Held-out evaluations while PPO runs, and the best policy they have found."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from stages.base import StageContext
from stages.durable import delete_folder, replacing, swap_in
from stages.ppo.evaluation import Completions, Evaluator, win_rate
from stages.ppo.judging import SUCCESS, Judge
from stages.ppo.metrics import Metrics
from stages.ppo.prompts import PromptSet
from stages.ppo.reward_scales import write_scales
from stages.ppo.trainer import PPOTrainer
from stages.reward_model.quality import wilson

EVALUATION_SEED = 1_000_003  # apart from the seeds of training, so that evaluation never reuses a rollout's draws


@dataclass
class Best:
    """The best held-out score so far under the KL budget, and its evaluation."""

    step: int = -1
    score: float = float("-inf")
    kl: float = 0.0
    terms: dict[str, list[float]] = field(default_factory=dict)
    """What the reward's sources said of its completions, kept while running scales may still change their sum."""


@dataclass
class HeldOut:
    """Evaluates a trainer's policy (or its average) on held-out prompts and keeps the best one in `folder / "best"`."""

    trainer: PPOTrainer
    prompts: PromptSet | None
    evaluator: Evaluator
    context: StageContext
    publish: Callable[[Path], bool]
    judge: Judge | None = None
    best: Best = field(default_factory=Best)
    evaluated: int = -1
    """The last iteration whose policy was evaluated."""
    _reference: Completions | None = None

    @property
    def folder(self) -> Path:
        """Where the best policy so far is kept."""
        return self.context.folder / "best"

    def evaluate_when_due(self) -> Metrics:
        """Evaluate before the first iteration, after the last and every `eval_every`, once each; what was logged.

        A run that was stopped between an iteration and its evaluation catches up on it here.
        """
        config, finished = self.trainer.config, self.trainer.finished
        due = finished in (0, config.steps) or (config.eval_every > 0 and finished % config.eval_every == 0)
        if not due or self.prompts is None or self.evaluated >= finished:
            return {}
        metrics = self._evaluate(self.prompts)
        self.evaluated = finished
        return metrics

    def _evaluate(self, prompts: PromptSet) -> Metrics:
        """Score the policy, and keep it if it is the best so far."""
        start = perf_counter()
        self.context.pulse.enter("evaluation")
        batch = prompts.first(self.trainer.config.eval_prompts)
        if self._reference is None:
            self._reference = self.evaluator(self.trainer.reference, batch)
        with self.trainer.averaged():
            ours = self.evaluator(self.trainer.policy.module, batch)
            summary = ours.summary()
            self._keep_if_best(ours, summary["score"].value, summary["kl"].value)
        metrics = {f"eval/{name}": estimate.value for name, estimate in summary.items()}
        metrics |= {
            f"eval/{name}": value for name, value in win_rate(ours, self.evaluator.rescored(self._reference)).items()
        }
        metrics |= self._judged(ours)
        self.context.tracker.log(metrics | {"time/eval": perf_counter() - start}, self.trainer.finished)
        score, kl, length = (metrics[f"eval/{name}"] for name in ("score", "kl", "length"))
        print(
            f"held-out at step {self.trainer.finished}: score {score:+.3f}  kl {kl:.2f}  length {length:.1f}  "
            f"wins {metrics['eval/win_rate']:.0%} against the reference"
            + (f"  judge {metrics['eval/judge']:.2f}" if self.judge else ""),
            flush=True,
        )
        return metrics

    def _judged(self, ours: Completions) -> Metrics:
        """The fraction of completions that the judge, asked by rank 0, calls a success, with its interval."""
        if self.judge is None:
            return {}
        said = self.context.world.agreed(self.judge(ours.texts) if self.context.world.main else None)
        said = [value for value in said if value is not None]
        share = wilson(sum(value > SUCCESS for value in said), len(said))
        return {"eval/judge": share.value, "eval/judge_low": share.low, "eval/judge_high": share.high}

    def _keep_if_best(self, ours: Completions, score: float, kl: float) -> None:
        budget = self.trainer.config.kl_budget
        if self.trainer.finished and score > self._to_beat() and (budget is None or kl <= budget):
            learns = self.trainer.reward.learns
            terms = {name: values.tolist() for name, values in ours.terms.items()} if learns else {}
            self.best = Best(self.trainer.finished, score, kl, terms)
            self._publish(self.folder)

    def _to_beat(self) -> float:
        """The score of the best policy so far, under the reward's scales as they are now."""
        if not self.best.terms:
            return self.best.score
        said = {name: torch.tensor(values) for name, values in self.best.terms.items()}
        return float(self.trainer.reward.total(said).mean(dtype=torch.float64))

    def _publish(self, folder: Path) -> None:
        """Write the policy; all ranks hold its weights together meanwhile, and rank 0 writes."""
        with self.trainer.policy.whole():
            if self.context.world.main:
                with replacing(folder) as aside:
                    self.publish(aside)
                    write_scales(aside, self.trainer.reward)
        self.context.world.barrier()

    def publish_final(self, final: Path) -> None:
        """Publish the best policy, or the last one where none was evaluated within the budget."""
        if self.best.step < 0:
            with self.trainer.averaged():
                self._publish(final)
        elif self.context.world.main:
            swap_in(self.folder, final)
        self.context.world.barrier()

    def headline(self) -> dict[str, float]:
        """Step, score and KL of the policy that is published."""
        if self.best.step < 0:
            return {"best_step": self.trainer.finished}
        return {"best_step": self.best.step, "score": self.best.score, "kl": self.best.kl}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to choose as this one does, the best policy's files apart."""
        return {"best": asdict(self.best), "evaluated": self.evaluated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.evaluated = Best(**state["best"]), state["evaluated"]

    def save_best(self, folder: Path) -> None:
        """Copy the best policy so far, if there is one, into a checkpoint."""
        if self.folder.is_dir():
            shutil.copytree(self.folder, folder / "best")

    def restore_best(self, saved: Path | None) -> None:
        """Make the best policy so far the one that a checkpoint's folder holds, or none."""
        if self.context.world.main:
            delete_folder(self.folder)
            if saved and (saved / "best").is_dir():
                with replacing(self.folder) as aside:
                    shutil.copytree(saved / "best", aside, dirs_exist_ok=True)
        self.context.world.barrier()
