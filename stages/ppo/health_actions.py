"""Keeps a PPO run healthy: lets the monitor judge it, tells its alarms, and does what the config wants done then."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.base import Diverged, StageContext
from stages.durable import write_text
from stages.ppo.health_config import HealthConfig
from stages.ppo.health_monitor import Alarm, Monitor
from stages.ppo.held_out import Best, HeldOut
from stages.ppo.state import load_state
from stages.ppo.trainer import PPOTrainer

ALARMS = "alarms.jsonl"


@dataclass
class Health:
    """The rules and their actions over one run. All ranks see the same numbers, so all do the same."""

    trainer: PPOTrainer
    held_out: HeldOut
    context: StageContext
    monitor: Monitor = field(init=False)
    lr_factor: float = 1.0
    """What the learning rates of the schedule are multiplied by."""
    rollbacks: list[int] = field(default_factory=list)
    """Iterations after which the run went back."""

    def __post_init__(self) -> None:
        config = self.trainer.config
        self.monitor = Monitor(config.health, config.kl_budget, config.optimizer_steps // config.steps)

    @property
    def config(self) -> HealthConfig:
        return self.trainer.config.health

    def judge(self, metrics: Mapping[str, float], policy: int) -> list[Alarm]:
        """The alarms that these metrics of the policy after so many iterations begin, keep or end; changes are told."""
        alarms = self.monitor.judge(metrics, self.trainer.finished, policy)
        changed = [alarm for alarm in alarms if alarm.change != "lasts"]
        for alarm in changed:
            print(alarm, flush=True)
        if changed:
            self._write()
        return alarms

    def act(self, alarms: list[Alarm], save: Callable[[], None]) -> None:
        """Take the actions that are due, each once; `save` writes a checkpoint.

        Raises Diverged HEALTH02 when a rule is to stop the stage, or no rollback is left or possible.
        """
        due = [alarm for alarm in self.monitor.due(alarms) if alarm.action != "warn"]
        if not due:
            return
        self.monitor.acted(due)
        by_action = {alarm.action: alarm for alarm in reversed(due)}
        if "stop" in by_action:
            self._stop(by_action["stop"], save)
        if "raise_kl_coef" in by_action:
            self._raise_kl_coef()
        if "rollback" in by_action:
            self._roll_back(by_action["rollback"])
        elif "lower_lr" in by_action:
            self._lower_learning_rates()
        self._write()

    def counts(self) -> dict[str, int]:
        """`alarms/<rule>`: how often each alarm began, for the headline."""
        return {f"alarms/{rule}": count for rule, count in self.monitor.counts().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor.state_dict(), "lr_factor": self.lr_factor, "rollbacks": self.rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, once its trainer was loaded; alarms after it never were."""
        self.monitor.load_state_dict(state["monitor"])
        self.rollbacks = state["rollbacks"]
        self._scale(state["lr_factor"])
        if self.monitor.records or (self.context.folder / ALARMS).exists():
            self._write()

    def _raise_kl_coef(self) -> None:
        factor = self.config.kl_coef_factor
        self.trainer.kl.raise_by(factor)
        print(f"  raise_kl_coef: times {factor:g}, {self.trainer.kl.coef:.4g} from here on", flush=True)

    def _lower_learning_rates(self) -> None:
        self._scale(self.lr_factor * self.config.lr_factor)
        print(f"  lower_lr: learning rates times {self.config.lr_factor:g}, {self._of_schedule()}", flush=True)

    def _of_schedule(self) -> str:
        return f"{self.lr_factor:g} of the schedule's from here on"

    def _scale(self, factor: float) -> None:
        self.lr_factor = factor
        for engine in (self.trainer.policy, self.trainer.value):
            engine.scale(factor)

    def _roll_back(self, alarm: Alarm) -> None:
        """Take up the newest state that the rule found within its threshold; the iterations since are left out.

        Iterations keep their numbers, hence prompts and draws are new ones. The KL coefficient stays what it is now.
        """
        if len(self.rollbacks) >= self.config.max_rollbacks:
            undone = f"{len(self.rollbacks)} rollbacks (ppo.health.max_rollbacks) have not helped"
            raise Diverged(_ended(alarm, f"{undone}; the last checkpoint is intact"))
        now, (step, folder) = self.trainer.finished, self._checkpoint(alarm)
        state = load_state(folder)
        self.trainer.load_state_dict(state | {"kl": self.trainer.kl.state_dict()})
        self.trainer.finished = now
        self.held_out.best = Best(**state["best"])
        self.held_out.restore_best(folder)
        self.rollbacks.append(now)
        self.monitor.restart(over=now)
        self._scale(self.lr_factor * self.config.lr_factor)
        print(
            f"  rollback {len(self.rollbacks)} of at most {self.config.max_rollbacks}: weights and optimizers of step "
            f"{step}, iterations {step + 1} to {now} are left out, learning rates {self._of_schedule()}",
            flush=True,
        )

    def _checkpoint(self, alarm: Alarm) -> tuple[int, Path]:
        """The newest checkpoint of a policy that was sound, else the oldest that is kept."""
        found = self.context.checkpoints.complete()
        if not found:
            raise Diverged(_ended(alarm, "there is no checkpoint to return to"))
        sound = self.monitor.sound(alarm.rule)
        return next((each for each in found if each[0] <= sound), found[-1])

    def _stop(self, alarm: Alarm, save: Callable[[], None]) -> None:
        """End the stage. Who runs it again goes on from here, and the rules judge anew."""
        self.monitor.restart()
        self._write()
        save()
        raise Diverged(_ended(alarm, f"the state after step {alarm.step} is saved"))

    def _write(self) -> None:
        if self.context.world.main:
            rows = (json.dumps(record, ensure_ascii=False) for record in self.monitor.records)
            write_text(self.context.folder / ALARMS, "".join(row + "\n" for row in rows))


def _ended(alarm: Alarm, how: str) -> str:
    key = f"ppo.health.{alarm.rule.name}.action"
    return (
        f"[HEALTH02] step {alarm.step}: {alarm.rule.name}: {alarm.reading}; {key}: {alarm.action} ends the stage; "
        f"{how}; likely cause: {alarm.rule.cause}; fix: {alarm.rule.knob}, or {key}: warn; "
        "run it again with --allow KEY for each changed key, or --force ppo"
    )
