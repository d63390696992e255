"""A child's output reaches terminal and log whole, soon, and without secrets wherever it is cut."""

import os
import threading

import pytest

from pipeline.redacted_output import redacted
from stages.redaction import Redactor

PEM = "-----BEGIN PRIVATE KEY-----\nabc\ndef\n-----END PRIVATE KEY-----"
SECRETS = {"SOME_TOKEN": "0123456789-éü", "LINES_SECRET": "first line\nsecond line"}


def through(pieces: list[bytes]) -> str:
    """What comes out of a pipe into which the pieces are written one by one."""
    reading, writing = os.pipe()

    def write() -> None:
        for piece in pieces:
            os.write(writing, piece)
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    with open(reading, "rb", buffering=0) as source:
        shown = "".join(redacted(source, Redactor(SECRETS)))
    writer.join()
    return shown


@pytest.mark.parametrize("secret", [*SECRETS.values(), PEM])
def test_a_secret_goes_wherever_the_output_is_cut(secret: str):
    text = f"before\n{secret}\nafter\n".encode()
    for cut in range(1, len(text)):
        shown = through([text[:cut], text[cut:]])
        assert shown.startswith("before\n[redacted ")
        assert shown.endswith("]\nafter\n")
        assert "line" not in shown and "0123" not in shown and "abc" not in shown


def test_everything_else_comes_through_to_the_last_byte():
    text = "é\r12 %\r100 %\nlast line without end".encode()
    assert through([text[i : i + 1] for i in range(len(text))]) == text.decode()


def test_an_unfinished_line_is_shown_while_its_writer_still_lives():
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as source:
        os.write(writing, b"step 3")
        assert next(redacted(source, Redactor({}))) == "step 3"
    os.close(writing)
