"""One attempt at a stage as its stage.json tells it: running, then how it ended. Imports no torch."""

import resource
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.hashing import FileHashes, files_of, template_hash, tokenizer_hash
from pipeline.lineage import StageInputs
from pipeline.rundir import StageDir, now, provenance
from stages.base import StageResult

FORMAT = 2
"""2: the identity is readable, field by field."""


class Attempt:
    """Keeps stage.json truthful while a stage runs in this process."""

    def __init__(self, folder: StageDir, stage: str, inputs: StageInputs, allowed: Collection[str] = ()):
        earlier = folder.manifest
        self._folder = folder
        self._clock = time.monotonic()
        self._seconds_before = earlier.get("seconds") or 0.0
        self._content: dict[str, Any] = {
            "format": FORMAT,
            "stage": stage,
            "status": "running",
            "fingerprint": inputs.identity.fingerprint,
            "identity": inputs.identity.plain(),
            "allowed": sorted({*earlier.get("allowed", ()), *allowed}),
            **inputs.record,
            **provenance(sys.argv),
            "started": earlier.get("started", now()),
            "peak_bytes": earlier.get("peak_bytes", 0),
        }
        folder.write_manifest(self._content)

    def finish(self, result: StageResult, hashes: FileHashes) -> None:
        """Record a trained model."""
        self._end(
            "finished",
            adapter=result.adapter,
            tokenizer_hash=tokenizer_hash(result.final),
            template_hash=template_hash(result.final),
            headline=dict(result.headline),
            details=dict(result.details),
            final_hash=hashes.folder(result.final),
            final_files={n: [hashes.file(path), path.stat().st_size] for n, path in files_of(result.final).items()},
        )

    def finish_evaluation(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the held-out results; the headline is that of the last model of the chain."""
        last = list(models.values())[-1] if models else {}
        headline = {metric: estimate["value"] for metric, estimate in last.items()}
        self._end("finished", headline=headline, details={"models": models})

    def interrupt(self, step: int) -> None:
        """Record that the stage ended as asked, to go on after `step`."""
        self._end("interrupted", step=step)

    def fail(self, reason: str) -> None:
        """Record that and why the stage ended before its end."""
        self._end("failed", error=reason)

    def _end(self, status: str, **outcome: Any) -> None:
        peak = max(self._content["peak_bytes"], _peak_bytes())
        seconds = self._seconds_before + time.monotonic() - self._clock
        cost = {"finished": now(), "seconds": round(seconds, 3), "peak_bytes": peak}
        self._folder.write_manifest({**self._content, "status": status, **cost, **outcome})


def fail_from_outside(folder: StageDir, reason: str) -> None:
    """Record why a stage that still runs, or says so, has to be ended."""
    if folder.manifest.get("status") == "running":
        folder.write_manifest({**folder.manifest, "status": "failed", "error": reason})


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
