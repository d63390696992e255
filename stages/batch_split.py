"""How a batch is split over ranks and forward passes. Imports no torch."""

from dataclasses import dataclass

from stages.base import InputError


@dataclass(frozen=True)
class BatchSplit:
    """batch = ranks x accumulation x microbatch, in rows."""

    microbatch: int
    """Rows of one forward pass on one rank."""
    accumulation: int
    """Forward passes of one rank per optimizer step."""
    ranks: int

    @property
    def batch(self) -> int:
        """Rows of one optimizer step, over all ranks."""
        return self.microbatch * self.accumulation * self.ranks


def split_batch(section: str, batch: int, microbatch: int, ranks: int) -> BatchSplit:
    """Share a batch evenly; a rank whose share is smaller than `microbatch` makes one pass over it.

    Raises InputError BATCH02 with the nearest sizes that divide. `section` is the stage's name in the config.
    """
    share, rest = divmod(batch, ranks)
    if rest or not share:
        unit = ranks * microbatch if batch > ranks * microbatch else ranks
        raise InputError(
            "BATCH02",
            f"{section}.batch_size {batch} cannot be shared evenly by {ranks} ranks",
            fix=f"{section}.batch_size={' or '.join(map(str, _neighbours(batch, unit)))}",
        )
    part = min(microbatch, share)
    if share % part:
        divisor = max(d for d in range(1, part + 1) if share % d == 0)
        sizes = " or ".join(map(str, _neighbours(batch, ranks * part)))
        raise InputError(
            "BATCH02",
            f"{section}.batch_size {batch} over {ranks} ranks is {share} rows each, no multiple of "
            f"{section}.microbatch_size {microbatch}",
            fix=f"{section}.microbatch_size={divisor}, or {section}.batch_size={sizes}",
        )
    return BatchSplit(part, share // part, ranks)


def _neighbours(size: int, unit: int) -> list[int]:
    """The multiples of `unit` next to `size`."""
    below = size // unit * unit
    return [n for n in (below, below + unit) if n]
