"""Who is told that bfloat16 is slow."""

import pytest
import torch

from stages.models.precision import emulates_bfloat16


@pytest.mark.parametrize(
    ("capability", "cuda", "emulates"),
    [("AVX2", False, True), ("AVX512", False, False), ("DEFAULT", False, False), ("AVX2", True, False)],
)
def test_a_processor_with_avx2_alone_emulates_bfloat16(
    capability: str, cuda: bool, emulates: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert emulates_bfloat16() is emulates
