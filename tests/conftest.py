import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bits must not depend on how many cores the machine has, and toy models are fastest on one."""
    torch.set_num_threads(1)
