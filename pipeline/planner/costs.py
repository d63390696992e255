"""Seconds from multiplications and from memory traffic, for a stated device. Imports no torch.

A token costs 2 multiplications-and-additions per weight that it meets forward and 4 backward (arXiv 2001.08361, section
2.1: C = 6 N D), 2 backward where the weights themselves do not learn, and attention over S tokens 4 L A d S more
(arXiv 2204.02311, appendix B). A decoded token waits for every weight to be read once for the whole batch, and for the
batch's keys and values (arXiv 2211.05102, section 2.1): the longer of that and of its arithmetic counts.
"""

from dataclasses import dataclass

from pipeline.planner.architecture import Architecture

MFU = 0.4
"""Assumed share of a device's peak that training reaches; arXiv 2204.02311 lists 0.2 to 0.46 for large models."""
MBU = 0.6
"""Assumed share of the memory's bandwidth that decoding reaches."""


@dataclass(frozen=True)
class Device:
    """One accelerator, from its maker's data sheet."""

    name: str
    memory: float
    """Bytes."""
    bfloat16: float
    """Dense operations per second, peak."""
    float32: float
    bandwidth: float
    """Bytes per second between memory and processor."""

    def arithmetic(self, operations: float, compute: str) -> float:
        """Seconds of that many operations in `compute`; accelerators are as fast in float16 as in bfloat16."""
        return operations / (MFU * (self.float32 if compute == "float32" else self.bfloat16))

    def reading(self, read: float) -> float:
        """Seconds in which so many bytes are read."""
        return read / (MBU * self.bandwidth)


DEVICES = {
    "a100": Device("A100 80 GB", 80e9, 312e12, 19.5e12, 2039e9),
    "h100": Device("H100 80 GB", 80e9, 989e12, 67e12, 3350e9),
}
"""SXM modules; NVIDIA's data sheets of 2021 and 2023."""


def forward_operations(a: Architecture, tokens: float, length: int, layers: int | None = None) -> float:
    """Operations of a forward pass of `tokens` in sequences of `length` through the layers (all, or the last few)."""
    share = 1.0 if layers is None else layers / a.layers
    return share * tokens * (2 * a.matrix_parameters + 4 * a.layers * a.query_size * length)


def output_operations(a: Architecture, tokens: float) -> float:
    """Operations of the output layer: 2 V H per token."""
    return 2 * tokens * a.vocabulary * a.hidden
