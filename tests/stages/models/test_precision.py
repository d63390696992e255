"""Who is told that a type is slow."""

import pytest
import torch

from stages.models.precision import emulates


@pytest.mark.parametrize(
    ("capability", "cuda", "slow"),
    [
        ("AVX2", False, {"bfloat16", "float16"}),
        ("AVX512", False, {"float16"}),
        ("DEFAULT", False, {"float16"}),
        ("AVX2", True, set()),
    ],
)
def test_processors_emulate_float16_and_with_avx2_alone_bfloat16(
    capability: str, cuda: bool, slow: set[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert {compute for compute in ("float32", "bfloat16", "float16") if emulates(compute)} == slow
