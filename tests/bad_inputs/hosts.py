"""Mistakes in the hosts of a run."""

from pathlib import Path

from tests.bad_inputs.place import Case

FIX = "fix: write one `<host> slots=<processes>` per line"


def hosts(*lines: str) -> None:
    Path("hosts").write_text("".join(f"{line}\n" for line in lines))


CASES = [
    Case(
        25,
        "hostfile line",
        f"[NODE01] hosts:2 'b lots=4': found 'lots=4', expected slots=<n> with a whole number of at least 1; {FIX}",
        lambda: hosts("a slots=4", "b lots=4"),
        ("launch.hostfile=hosts",),
    ),
    Case(
        25,
        "hostfile missing",
        "[NODE02] hostfile: no file 'host'; fix: did you mean hosts?",
        lambda: hosts("a slots=4"),
        ("launch.hostfile=host",),
    ),
    Case(
        25,
        "nodes without a hostfile",
        "[CONF02] override 'launch.launcher=torchrun': launch: launcher: torchrun needs a hostfile; "
        "set launch.hostfile, or give --nodes; fix: change 'launch'",
        overrides=("launch.launcher=torchrun",),
    ),
]
