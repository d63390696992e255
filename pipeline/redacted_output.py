"""What a child prints, as text without secrets, cut only where a secret is not. Imports no torch."""

import codecs
import os
import select
from collections.abc import Iterator
from typing import BinaryIO

from stages.redaction import Redactor

_LONGEST = 1 << 20
"""Characters of a line that are waited for."""
_PAUSE = 0.2
"""Seconds without output after which an unfinished line, such as a progress bar, is passed on."""


def redacted(source: BinaryIO, redactor: Redactor) -> Iterator[str]:
    """The text of a pipe as it comes, whole lines at a time, or what there is when the writer pauses."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pending = ""
    while True:
        if pending and not select.select([source], [], [], _PAUSE)[0]:
            yield redactor.text(pending)
            pending = ""
        chunk = os.read(source.fileno(), 1 << 16)
        pending += decoder.decode(chunk, final=not chunk)
        end = max(pending.rfind("\n"), pending.rfind("\r")) + 1 if chunk else len(pending)
        end = redactor.unfinished(pending[:end]) if chunk else end
        end = len(pending) if len(pending) > _LONGEST else end
        if end:
            yield redactor.text(pending[:end])
            pending = pending[end:]
        if not chunk:
            return
