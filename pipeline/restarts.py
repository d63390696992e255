"""Starting a stage again that lost a rank: when, after how long, on which hosts. Imports no torch."""

import itertools
import time
from collections.abc import Callable, Sequence

from pipeline.config import PipelineConfig
from pipeline.hostfile import Host
from pipeline.launchers import World, world_of
from pipeline.problems import EXIT_DIVERGED, EXIT_ENVIRONMENT, EXIT_INPUT, EXIT_STORAGE, exit_code
from pipeline.ranked_stage import ALONE, uses_ssh
from pipeline.same_software import unfit
from pipeline.signals import Relay
from pipeline.ssh import without
from stages.base import InputError

_FOR_A_PERSON = (EXIT_INPUT, EXIT_DIVERGED, EXIT_STORAGE)
"""What would happen again, however often it is tried."""
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 300.0


def pause_before(restart: int) -> float:
    """Seconds to wait before a restart, 1 = the first.

    >>> [pause_before(n) for n in (1, 2, 3, 7)]
    [10.0, 20.0, 40.0, 300.0]
    """
    return min(_FIRST_PAUSE * 2 ** (restart - 1), _LONGEST_PAUSE)


def with_restarts(
    config: PipelineConfig,
    step: str,
    attempt: Callable[[bool, Sequence[str]], int],
    tell: Callable[[str], None],
    relay: Relay,
) -> int:
    """The exit code of the last `attempt(again, hosts left out)`, of at most 1 + `launch.restarts`.

    Raises:
        InputError: NODE03 no host is left; and what the last attempt raises.
    """
    gone: Sequence[str] = ()
    for restart in itertools.count(1):
        last = restart > config.launch.restarts
        try:
            code = attempt(restart > 1, gone)
        except InputError as error:
            if last or exit_code(error) != EXIT_ENVIRONMENT:
                raise
            tell(str(error))
            code = EXIT_ENVIRONMENT
        if code in (0, *_FOR_A_PERSON) or last or relay.code:
            return code
        pause = pause_before(restart)
        tell(f"[{step}] restart {restart} of {config.launch.restarts} in {pause:g} s, from its last checkpoint")
        time.sleep(pause)
        gone = _left_out(config, step, tell)
    raise AssertionError


def _left_out(config: PipelineConfig, step: str, tell: Callable[[str], None]) -> Sequence[str]:
    """Hosts of the hostfile as it is now that cannot take part; the others go on without them."""
    if not uses_ssh(config.launch) or step in ALONE:
        return ()
    hosts = world_of(config.launch).hosts
    gone = unfit(hosts)
    left: tuple[Host, ...] = without(hosts, gone)
    for error in gone.values():
        tell(str(error))
    if not left:
        raise next(iter(gone.values()))
    if gone:
        tell(f"going on without {', '.join(gone)}: {World(left)}")
    return list(gone)
