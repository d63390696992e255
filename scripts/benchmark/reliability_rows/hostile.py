"""Files that attack: R33, R34."""

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from scripts.benchmark import hostile_files, tiny_files
from scripts.benchmark import unpickling as unpickling_events
from scripts.benchmark.scoreboard import Figure, Row
from stages.base import InputError, StageContext
from stages.models.trusted import unsafe

LIMIT = 2.0
"""Seconds for a refusal, of processor time: how busy the machine is with something else says nothing."""
STARTS = 3
"""quick: or the processor time of so many `rlhf --help`, on a slow machine; importing torch and more takes longer."""


@dataclass(frozen=True)
class Trial:
    """One attack, and everything that must refuse it."""

    name: str
    code: str
    canary: Path
    commands: list[list[str]]
    """Arguments of `rlhf`."""
    loaders: list[Callable[[], object]] = field(default_factory=list)
    """What opens the files in this process."""


def refusals(work: Path, quick: bool) -> Figure:
    """Every attack through every command, or quick: through the loaders and one command each for a few."""
    good = tiny_files.model(work / "good")
    failures: dict[str, str] = {}
    slowest, attempts, trials = 0.0, 0, list(_trials(work, good))
    limit = max(LIMIT, STARTS * _timed(_started(["--help"]))[1]) if quick else LIMIT
    for number, trial in enumerate(trials):
        few = trial.commands[:1] if number % 12 == 0 or not trial.loaders else []
        for attempt in [*map(_called, trial.loaders), *map(_started, few if quick else trial.commands)]:
            told, seconds = _timed(attempt)
            attempts, slowest = attempts + 1, max(slowest, seconds)
            if f"[{trial.code}]" not in told or "Traceback" in told or seconds > limit:
                failures[trial.name] = f"{seconds:.1f} s: {told[-300:]}"
        if trial.canary.read_text() != "untouched":
            failures[trial.name] = "the canary was touched"
    failures |= _controls(good, work)
    refused = len(trials) - len(failures)
    cost = f"slowest {slowest:.1f} s of processor time"
    found = f"{refused}/{len(trials)} refused in {attempts} attempts, canary untouched, {cost}"
    return Figure(found, not failures and len(trials) >= 20, {"failures": failures, "slowest_seconds": slowest})


def _timed(attempt: Callable[[], str]) -> tuple[str, float]:
    """What was said, and the seconds of processor time until then, here and in children."""
    start = _processor_seconds()
    return attempt(), _processor_seconds() - start


def _processor_seconds() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def _controls(good: Path, work: Path) -> dict[str, str]:
    """What would make the figure worthless: a good model that is refused, a pickle that does nothing when opened."""
    wrong: dict[str, str] = {}
    refused = list(unsafe(good))
    if refused:
        wrong["a good model"] = str(refused[0])
    folder, canary = _place(work, "control")
    hostile_files.hostile_pickle(folder / "x.pkl", canary)
    opening = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", opening, str(folder / "x.pkl")], check=True)
    if canary.read_text() == "untouched":
        wrong["the canary"] = "opening the pickle did not touch it"
    return wrong


def _called(loader: Callable[[], object]) -> Callable[[], str]:
    def attempt() -> str:
        try:
            loader()
        except InputError as error:
            return str(error)
        return "nothing refused it"

    return attempt


def _started(arguments: list[str]) -> Callable[[], str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]

    def attempt() -> str:
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
            told = done.stdout + done.stderr
            return told if done.returncode == 2 else f"exit code {done.returncode}: {told[-300:]}".replace("[", "(")
        return "did not end"

    return attempt


def _trials(work: Path, good: Path) -> Iterator[Trial]:
    yield from _folders(work, good)
    yield from _adapters(work, good)
    yield from _single_files(work, good)
    yield from _names_and_configs(work, good)
    yield from _checkpoints(work)


def _place(work: Path, name: str) -> tuple[Path, Path]:
    folder = work / "".join(c if c.isalnum() else "-" for c in name)
    folder.mkdir(parents=True)
    canary = folder / "canary"
    canary.write_text("untouched")
    return folder, canary


def _everywhere(folder: Path, model: Path) -> list[list[str]]:
    """The five commands on a model."""
    config = tiny_files.config(folder / "config.yaml", model, folder / "runs")
    run = tiny_files.run_folder(config)
    rest = [["stage", "sft", str(run)], ["export", str(model), "--merge", str(folder / "out")], ["chat", str(model)]]
    return [["check", str(config)], ["run", str(config)], *rest]


def _folders(work: Path, good: Path) -> Iterator[Trial]:
    from stages.models.load import ModelSource, load_causal_lm, load_tokenizer
    from stages.models.scalar import load_classifier

    for name, attack in hostile_files.FOLDERS.items():
        folder, canary = _place(work, name)
        model = Path(shutil.copytree(good, folder / "model"))
        attack.make(model, canary)
        loaders = [
            lambda model=model: load_tokenizer(ModelSource(str(model))),
            lambda model=model: load_causal_lm(str(model)),
            lambda model=model: load_classifier(str(model), "float32"),
        ]
        yield Trial(name, attack.code, canary, _everywhere(folder, model), loaders)
    yield _term_without_trust(work, good)


def _term_without_trust(work: Path, good: Path) -> Trial:
    """A reward model elsewhere that ships code, while the base model's code is trusted."""
    name = "auto_map in a reward term, model.trust_remote_code on"
    folder, canary = _place(work, name)
    model = Path(shutil.copytree(good, folder / "model"))
    hostile_files.FOLDERS["auto_map in config.json"].make(model, canary)
    config = tiny_files.config(folder / "config.yaml", good, folder / "runs")
    more = ["model.trust_remote_code=true", f"reward=[{{model: {model}}}]"]
    return Trial(name, "SAFE02", canary, [["check", str(config), *more], ["run", str(config), *more]])


def _adapters(work: Path, good: Path) -> Iterator[Trial]:
    from stages.models.adapters import adapter_config

    for name, attack in hostile_files.ADAPTERS.items():
        folder, canary = _place(work, name)
        adapter = tiny_files.adapter(folder / "adapter", good)
        attack.make(adapter, canary)
        also = ["chat", str(good), "--adapter", f"other={adapter}"]
        loaders = [lambda adapter=adapter: adapter_config(adapter)]
        yield Trial(name, attack.code, canary, [*_everywhere(folder, adapter), also], loaders)


def _single_files(work: Path, good: Path) -> Iterator[Trial]:
    from stages.models.load import source_of

    for name, (content, code) in hostile_files.GGUF_FILES.items():
        folder, canary = _place(work, name)
        model = folder / "model.gguf"
        model.write_bytes(content)
        yield Trial(name, code, canary, _everywhere(folder, model), [lambda model=model: source_of(model)])


def _names_and_configs(work: Path, good: Path) -> Iterator[Trial]:
    tag = "run: !!python/object/apply:os.system ['echo touched > {canary}']\n"
    bomb = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
    for name, text in {"YAML tag": tag, "YAML aliases": bomb}.items():
        folder, canary = _place(work, name)
        (folder / "config.yaml").write_text(text.format(canary=canary) if text is tag else text)
        yield Trial(name, "CONF03", canary, [[command, str(folder / "config.yaml")] for command in ("check", "run")])

    folder, canary = _place(work, "names")
    config = str(tiny_files.config(folder / "config.yaml", good, folder / "runs"))
    bad = "../../x;rm"
    named = [[command, config, f"run.name='{bad}'"] for command in ("check", "run")]
    yield Trial("run name ../../x;rm", "CONF02", canary, named)
    run = tiny_files.run_folder(Path(config))
    yield Trial("stage name ../../x;rm", "RUN03", canary, [["stage", bad, str(run)]])
    yield Trial("adapter name ../../x;rm", "CHAT01", canary, [["chat", str(good), "--adapter", f"{bad}={good}"]])

    run.rename(folder / "elsewhere")
    run.symlink_to(folder / "elsewhere")
    yield Trial("linked run folder", "RUN05", canary, [["run", config], ["stage", "sft", str(run)]])


def _checkpoints(work: Path) -> Iterator[Trial]:
    """Checkpoints that an attacker sealed, as the stages open them."""
    from stages.models.config import ModelConfig
    from stages.ppo.state import load_state
    from stages.sft.config import SFTConfig
    from stages.supervision import Supervision

    def resuming(context: StageContext) -> Callable[[], None]:
        supervision = Supervision(context, "sft", SFTConfig(), ModelConfig(path="random weights"))
        return partial(supervision.train, tiny_files.trainer(context))

    for name, archive in {
        "optimizer.pt": True,
        "scheduler.pt": True,
        "rng_state.pth": True,
        "scaler.pt": False,
    }.items():
        folder, canary = _place(work, f"sealed {name}")
        write = partial(_write_pickle, name, canary, archive)
        context = tiny_files.sealed(folder, write)
        yield Trial(f"sealed {name}", "SAFE06", canary, [], [resuming(context)])
    folder, canary = _place(work, "sealed link")
    outside = folder / "outside"
    outside.write_text("{}")
    tiny_files.sealed(folder, lambda f: (f / "state.json").symlink_to(outside))  # the store itself passes it over
    load = partial(load_state, folder / "checkpoints/step-000001")
    yield Trial("sealed link out of the checkpoint", "SAFE03", canary, [], [load])


def _write_pickle(name: str, canary: Path, archive: bool, folder: Path) -> None:
    hostile_files.hostile_pickle(folder / name, canary, archive)


def unpickling(work: Path, quick: bool) -> Figure:
    """The whole tiny chain with a kill and a resume in each training stage; quick: SFT alone."""
    environment = unpickling_events.watched(work)
    stages = unpickling_events.STAGES[:1] if quick else unpickling_events.STAGES
    run, command = work / "tiny", ["run", "configs/tiny.yaml", f"run.root={work}", *unpickling_events.SMALL]
    if quick:
        config = tiny_files.config(work / "config.yaml", tiny_files.model(work / "good"), work)
        run = tiny_files.run_folder(config, "sft.max_steps=3", "sft.checkpoint_every=1")
        command = ["stage", "sft", str(run)]
    problem = unpickling_events.run_killed(environment, run, stages, *command)
    found, watched = unpickling_events.events(work), unpickling_events.processes(work)
    unpickling_events.control(environment)
    seen = len(unpickling_events.events(work)) - len(found)
    told = (
        f"{len(found)} events in {watched} processes, {len(stages)} stages killed and resumed; the control's 2: {seen}"
    )
    passed = problem is None and not found and seen == 2
    return Figure(told, passed, {"events": found[:20], "problem": problem})


ROWS: dict[str, Row] = {
    "R34": Row(
        "no class or function is unpickled by name, from SFT to the evaluation",
        "0 `pickle.find_class` events outside four classes of DeepSpeed",
        unpickling,
    ),
    "R33": Row(
        "hostile models, adapters, configs, names and checkpoints are refused before a library opens them",
        "20/20 refused, canary untouched, <= 2 s each",
        refusals,
    ),
}
