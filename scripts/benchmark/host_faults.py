"""Faults on two real hosts while a tiny stage trains on both, as the table of docs/multi-node.md. Needs root.

    python -m scripts.benchmark.host_faults [--stage ppo|sft|reward_model] [FAULT ...]       FAULT: as worker-killed

The hosts are namespaces of this machine (tests/multinode/hosts.py), one rank on each, started by DeepSpeed over pdsh.
One run suffers the faults one after the other: each comes once a checkpoint more is sealed, or before a start; then
what was broken is mended and the same command goes on. In the end its hash is compared with that of a run that nobody
disturbed. Seconds are those from the fault, or the start, until all ranks have ended, until `rlhf run` has, and until
no process is left on any host. A promise that was not kept is named and makes the exit code 1.
"""

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from scripts.benchmark.host_trial import STAGES, Fault, Outcome, Trial, two_hosts
from scripts.benchmark.killing import REPOSITORY
from scripts.benchmark.small_disk import PAGE, fill
from tests.multinode.hosts import missing

WORKER = r"^\S+ -m pipeline\.cli stage "
SUPERVISOR = r"^\S+ -u \S+/pipeline/rank\.py "
LAUNCH = r"^\S+ -u -m deepspeed\.launcher\.launch "
RUNNER = r"^\S+ -m deepspeed\.launcher\.runner "
PDSH = r"^\S*pdsh "
RUN = r"^\S+ -m pipeline\.cli run "
KILL, RAISE, TERM, STOP = signal.SIGKILL, signal.SIGUSR1, signal.SIGTERM, signal.SIGSTOP
LOST_HOST = 60.0
HANG = 30
VENV = Path(sys.prefix)
COLUMNS = ("fault", "exit code", "ranks", "`rlhf run`", "all processes", "message", "checkpoint intact")


def sending(host: int, pattern: str, number: int = KILL):
    """A signal to a process of a host."""
    return lambda trial: trial.kill(host, pattern, number)


def power_off(trial: Trial) -> None:
    """Without the link going first, the kernel, which lives on here, would close the connections."""
    trial.hosts.link(1, "down")
    trial.hosts.kill(1)


def power_on(trial: Trial) -> None:
    trial.hosts.start(1)


def reboot(trial: Trial) -> None:
    trial.hosts.kill(1)
    trial.hosts.start(1)


def linking(state: str):
    return lambda trial: trial.hosts.link(1, state)


def hiding(path: Path):
    """Nothing but an empty file or folder at a path of the second host."""
    empty = ("-t", "tmpfs", "empty") if path.is_dir() else ("--bind", "/dev/null")
    return lambda trial: trial.hosts.run(1, "mount", *empty, str(path), check=True)


def showing(path: Path):
    """An end of `hiding`."""
    return lambda trial: trial.hosts.run(1, "umount", str(path), check=True)


def fill_disk(trial: Trial) -> None:
    fill(trial.disk, leave=PAGE)


def empty_disk(trial: Trial) -> None:
    (trial.disk / "ballast").unlink()


FAULTS = {
    "no-sshd": Fault("no sshd, before the start", lambda t: t.hosts.stop_sshd(1), 3, reboot, True, LOST_HOST),
    "no-python": Fault("no Python, before the start", hiding(VENV / "bin"), 3, showing(VENV / "bin"), True, LOST_HOST),
    "other-python": Fault(
        "another Python at that path, before the start",
        hiding(VENV / "pyvenv.cfg"),
        3,
        showing(VENV / "pyvenv.cfg"),
        True,
        LOST_HOST,
    ),
    "worker-killed": Fault("its worker killed", sending(1, WORKER), 137),
    "worker-raises": Fault("its worker raises", sending(1, WORKER, RAISE), 1, tracebacks=1),
    "worker-stopped": Fault(
        f"its worker stopped, `run.hang_timeout_s={HANG}`",
        sending(1, WORKER, STOP),
        6,
        limit=HANG + 10.0,
        settings=(f"run.hang_timeout_s={HANG}",),
    ),
    "supervisor-killed": Fault("its supervisor `rank.py` killed", sending(1, SUPERVISOR), 7),
    "launch-killed": Fault("DeepSpeed's launcher there killed", sending(1, LAUNCH), 7),
    "disk-full": Fault("the disk of the run folder full", fill_disk, 5, empty_disk),
    "host-killed": Fault("host killed, connections closed", lambda t: t.hosts.kill(1), 7, power_on, limit=LOST_HOST),
    "power-off": Fault("host without power, in silence", power_off, 7, power_on, limit=LOST_HOST),
    "link-down": Fault("its link down", linking("down"), 7, linking("up"), limit=LOST_HOST),
    "pdsh-killed": Fault("on the first host: pdsh killed", sending(0, PDSH), 7),
    "runner-killed": Fault("on the first host: `deepspeed` killed", sending(0, RUNNER), 7),
    "run-killed": Fault("on the first host: `rlhf run` killed", sending(0, RUN), 137),
    "run-terminated": Fault("on the first host: SIGTERM to `rlhf run`", sending(0, RUN, TERM), 143),
}


def row(fault: Fault, seen: Outcome, work: Path) -> str:
    """A line of the table."""
    message = seen.message.replace(f"{work}/", "").replace(f"{REPOSITORY}/", "").replace("|", r"\|")
    ends = [f"{seen.seconds[name]:.1f}" if name in seen.seconds else "never" for name in ("ranks", "run", "hosts")]
    if fault.before:
        ends[0] = "none began"
    intact = "yes" if seen.kept >= seen.sealed else "no"
    cells = (fault.told, seen.code, *ends, f"`{message}`", intact)
    return f"| {' | '.join(map(str, cells))} |"


def measure(names: list[str], stage: str, work: Path) -> int:
    """Print the table; the number of promises that were not kept."""
    sizes = {"few": 4 * len(names) + 4, "many": 10 * len(names) + 20}
    settings = tuple(setting.format(**sizes) for setting in STAGES[stage])
    missed = []
    with two_hosts(work) as hosts:
        expected = Trial(hosts, work, "undisturbed", stage, settings).finish()
        if expected is None:
            sys.exit(f"{stage} without disturbance fails, see {work}/undisturbed.txt")
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
        disturbed = Trial(hosts, work, "disturbed", stage, settings)
        for name in names:
            seen = disturbed.play(FAULTS[name])
            print(row(FAULTS[name], seen, work), flush=True)
            missed += [f"{name}: {miss}" for miss in seen.misses(FAULTS[name])]
        same = disturbed.finish() == expected
    print(f"\n{stage}, {len(names)} faults in one run, then its end: {'the same' if same else 'ANOTHER'} final hash")
    print(*missed, sep="\n", file=sys.stderr)
    return len(missed) + (not same)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"{', '.join(FAULTS)}; all when none is given")
    parser.add_argument("--stage", choices=STAGES, default="ppo")
    options = parser.parse_args()
    unknown = set(options.faults) - set(FAULTS)
    if unknown or missing():
        parser.error(f"no fault {', '.join(sorted(unknown))}" if unknown else missing())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what ends this ends the hosts as well
    work = Path(tempfile.mkdtemp(prefix="host-faults-"))
    missed = measure(options.faults or list(FAULTS), options.stage, work)
    if missed:
        print(f"what was left: {work}", file=sys.stderr)
    else:
        shutil.rmtree(work)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
