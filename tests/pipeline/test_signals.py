"""A polite signal ends a process with the code that it announced, however many more follow."""

import subprocess
import sys

import pytest

LISTENER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` silences it
from pipeline.signals import listening
from stages.stopping import StopRequest
stop = StopRequest()
with listening(stop):
    os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.{again})
sys.exit(128 + stop.signal)
"""

RELAY = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` silences it
from pipeline.signals import Relay
with Relay().installed() as relay:
    child = relay.start([sys.executable, "-c", "import signal, sys; sys.stdin.read()"], os.environ, waits=False)
    os.kill(os.getpid(), signal.SIGTERM)
    relay.wait()
os.kill(os.getpid(), signal.{again})
sys.exit(relay.code)
"""


@pytest.mark.parametrize(("program", "code"), [(LISTENER, 130), (RELAY, 143)], ids=["stage", "chain"])
@pytest.mark.parametrize("again", ["SIGINT", "SIGTERM"])
def test_a_signal_to_a_process_that_is_ending_changes_nothing(program, code, again):
    ended = subprocess.run(
        [sys.executable, "-c", program.format(again=again)], stdin=subprocess.PIPE, capture_output=True, timeout=60
    )
    assert ended.returncode == code, ended.stderr.decode()
    assert b"Traceback" not in ended.stderr


def test_without_a_signal_the_earlier_handlers_come_back():
    program = LISTENER.replace("    os.kill(os.getpid(), signal.SIGINT)\n", "    pass\n").format(again="SIGTERM")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert ended.returncode == -15
