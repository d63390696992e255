"""Hosts for a module's tests, and the hostfile that names them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode.hosts import Hosts, missing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Hosts]:
    """As many hosts as the module's HOSTS says."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with Hosts(tmp_path_factory.mktemp("hosts"), request.module.HOSTS) as started:
        yield started


@pytest.fixture
def folder(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, shared by all hosts, with `hosts`, a hostfile that gives each host one rank."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    Path("hosts").write_text("".join(f"node{i} slots=1\n" for i in range(hosts.count)))
    return tmp_path
