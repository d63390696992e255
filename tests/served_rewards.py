"""`rlhf serve-reward` as a process of its own."""

import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

TOKEN = "5e4d7c1b" * 8
ENVIRONMENT = {**os.environ, "SCORER_TOKEN": TOKEN, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass
class Server:
    """A running `rlhf serve-reward`."""

    process: subprocess.Popen
    output: Path
    """What it printed so far; a pipe that nobody reads would stop it."""
    url: str = ""
    model: str = ""
    certificate: str | None = None

    @property
    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certificate)

    @property
    def port(self) -> str:
        return re.search(r":(\d+)/", self.url)[1]

    def post(self, content: object, **headers: str) -> httpx2.Response:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        given = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        return self.request("POST", self.url, content=body, headers=given | headers)

    def request(self, method: str, url: str, **rest: object) -> httpx2.Response:
        return httpx2.request(method, url, verify=self.trusted, timeout=30, trust_env=False, **rest)

    def wait_for_address(self) -> None:
        """Until it tells where it can be asked, and which model that is."""
        said = r"model (\w+), with(?:out)? token\nremote: \{url: (\S+)}\n"
        while not (told := re.search(said, self.output.read_text())):
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.05)
        self.model, self.url = told[1], told[2]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]


@contextmanager
def served(final: Path, *options: object) -> Iterator[Server]:
    """The server of a reward model, killed at the end."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as output:
        process = subprocess.Popen(
            command("serve-reward", final, *options), env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            server = Server(process, Path(output.name))
            server.wait_for_address()
            yield server
        finally:
            process.kill()
            process.wait()
