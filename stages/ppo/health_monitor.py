"""Judges the metrics of a PPO run by the rules: an alarm is told when it begins and when it is over, not in between.

Its state is plain data and part of a checkpoint. Imports no torch.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from stages.ppo.health_config import Action, HealthConfig, RuleConfig
from stages.ppo.health_rules import JUDGE_FALL, RULES, Judged, Rule, derived


@dataclass(frozen=True)
class Alarm:
    """What has become of a rule's alarm with one reading."""

    rule: Rule
    change: Literal["begins", "lasts", "over"]
    step: int
    reading: str
    """The value and the threshold, in words."""
    action: Action

    def __str__(self) -> str:
        head = f"[HEALTH01] step {self.step}: {self.rule.name}"
        if self.change == "over":
            return f"{head}: over"
        return f"{head}: {self.reading}; likely cause: {self.rule.cause}; fix: {self.rule.knob}"


@dataclass(frozen=True)
class Watch:
    """What is remembered of one rule's readings."""

    started: int = 0
    """Readings that make up the start, of which `start` is the mean."""
    start: float = 0.0
    beyond: int = 0
    """Readings beyond the threshold in a row, up to the last one."""
    within: int = 0
    """Readings within it in a row, while the alarm is on."""
    on: bool = False
    sound: int = 0
    """Iterations that the last policy within the threshold had had."""

    def begun(self, value: float, policy: int) -> "Watch":
        """With one more reading of the start."""
        n = self.started + 1
        return replace(self, started=n, start=self.start + (value - self.start) / n, sound=policy)

    def after(self, breached: bool, patience: int, policy: int) -> "Watch":
        """With one more judged reading of a policy after so many iterations."""
        beyond = self.beyond + 1 if breached else 0
        within = 0 if breached else self.within + 1
        on = within < patience if self.on else beyond >= patience
        return replace(self, beyond=beyond, within=within if on else 0, on=on, sound=self.sound if breached else policy)


@dataclass
class Monitor:
    """All rules that are on, over one run."""

    config: HealthConfig
    kl_budget: float | None
    updates: int
    """Optimizer steps planned for an iteration."""
    watches: dict[str, Watch] = field(default_factory=dict)
    best: Judged | None = None
    """The held-out evaluation that the judge liked best."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """Every alarm so far: step, rule, reading, action, cause, fix, steps at which it acted, and when it was over."""

    def judge(self, metrics: Mapping[str, float], step: int, policy: int) -> list[Alarm]:
        """The alarms that begin, last or end with these metrics of iteration `step`; rules they do not concern wait.

        `policy` is the number of iterations after which the policy was surely as it is judged here.
        """
        known = {**metrics, **derived(metrics, self.kl_budget, self.updates), **self._judged(metrics)}
        found = []
        for rule in RULES:
            value = known.get(rule.reads)
            settings = self.config.rules.get(rule.name)
            if settings is None or value is None or not math.isfinite(value):
                continue
            reading = self._reading(rule, value, policy)
            change = None if reading is None else self._change(rule, settings, reading, policy)
            if change:
                words = rule.describe(reading, settings.threshold)
                found.append(Alarm(rule, change, step, words, settings.action))
        self._record(found)
        return found

    def flags(self) -> dict[str, float]:
        """`health/<rule>`: 1 while its alarm is on; `health/alarms`: how many are."""
        flags = {f"health/{name}": float(self._watch(name).on) for name in self.config.rules}
        return {"health/alarms": sum(flags.values()), **flags} if flags else {}

    @property
    def returning(self) -> bool:
        """Whether a rule that may roll back is beyond its threshold, so that this state is none to return to."""
        return any(self._watch(n).beyond for n, rule in self.config.acting.items() if rule.action == "rollback")

    def due(self, alarms: list[Alarm]) -> list[Alarm]:
        """Those whose action is to be taken now: they begin, or have lasted since `settle` iterations."""
        return [a for a in alarms if a.change == "begins" or (a.change == "lasts" and self._settled(a))]

    def acted(self, alarms: list[Alarm]) -> None:
        """Remember that these alarms' actions were taken."""
        for alarm in alarms:
            self._open(alarm.rule.name)["acted"].append(alarm.step)

    def restart(self, over: int | None = None) -> None:
        """Judge anew, from the same start; alarms that are on count as over at iteration `over`, if one is given."""
        for name, watch in self.watches.items():
            if watch.on and over is not None:
                self._open(name)["over"] = over
            self.watches[name] = replace(watch, beyond=0, within=0, on=False)

    def sound(self, rule: Rule) -> int:
        """Iterations that the last policy had had which this rule found within its threshold."""
        return self._watch(rule.name).sound

    def counts(self) -> dict[str, int]:
        """How often each rule's alarm began, where it did."""
        return dict(Counter(record["rule"] for record in self.records))

    def state_dict(self) -> dict[str, Any]:
        watches = {name: asdict(watch) for name, watch in self.watches.items()}
        return {"watches": watches, "best": self.best and asdict(self.best), "records": self.records}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.watches = {name: Watch(**watch) for name, watch in state["watches"].items()}
        self.best = Judged(**state["best"]) if state["best"] else None
        self.records = state["records"]

    def _judged(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The judge's fall since its best, which this evaluation may become."""
        now = Judged.of(metrics)
        if now is None:
            return {}
        best = self.best or now
        self.best = now if now.judge >= best.judge else best
        return {JUDGE_FALL: best.fall_to(now)}

    def _reading(self, rule: Rule, value: float, policy: int) -> float | None:
        """The value as the rule compares it, None while its start is still being measured."""
        if rule.since_start is None:
            return value
        watch = self._watch(rule.name)
        if watch.started < self.config.start:
            self.watches[rule.name] = watch.begun(value, policy)
            return None
        if rule.since_start == "rise":
            return value - watch.start
        return value / watch.start if watch.start > 0 else None

    def _change(
        self, rule: Rule, settings: RuleConfig, reading: float, policy: int
    ) -> Literal["begins", "lasts", "over"] | None:
        before = self._watch(rule.name)
        now = before.after(rule.breached(reading, settings.threshold), settings.patience, policy)
        self.watches[rule.name] = now
        if now.on:
            return "lasts" if before.on else "begins"
        return "over" if before.on else None

    def _record(self, alarms: list[Alarm]) -> None:
        for alarm in alarms:
            if alarm.change == "begins":
                rule = {"rule": alarm.rule.name, "cause": alarm.rule.cause, "fix": alarm.rule.knob}
                told = {"step": alarm.step, "reading": alarm.reading, "action": alarm.action}
                self.records.append({**told, **rule, "acted": [], "over": None})
            elif alarm.change == "over":
                self._open(alarm.rule.name)["over"] = alarm.step

    def _settled(self, alarm: Alarm) -> bool:
        record = self._open(alarm.rule.name)
        last = record["acted"][-1] if record["acted"] else record["step"]
        return alarm.step - last >= self.config.settle

    def _open(self, rule: str) -> dict[str, Any]:
        """The record of a rule's running alarm."""
        return next(record for record in reversed(self.records) if record["rule"] == rule)

    def _watch(self, rule: str) -> Watch:
        return self.watches.get(rule, Watch())
