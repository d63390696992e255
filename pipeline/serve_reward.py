"""`rlhf serve-reward FOLDER`: a trained reward model behind HTTP, for `remote:` terms. Light until it loads it."""

import importlib.util
import os
import re
import socket
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline.hashing import FileHashes
from pipeline.model_files import require_safe_folders
from pipeline.parents import check_reward_path
from pipeline.policies import final_of, is_model
from pipeline.rundir import RunDir
from reward.config import Combine, RewardTerm
from reward.remote_config import TOKEN_NAME, is_loopback
from stages.base import InputError
from stages.models.classifier_facts import is_foreign
from stages.models.config import ModelConfig
from stages.reward_model.members import folders_of

SHORTEST_TOKEN = 32
"""Characters."""


def serve_reward(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR|FINAL", help="A run, or a reward model's final/ folder.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free one, which is printed.")] = 8000,
    token_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the token that callers must send.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Serve https with this certificate and the key in the same file.")
    ] = None,
    combine: Annotated[Combine, typer.Option(help="Of an ensemble; mean_minus_std takes off one of them.")] = "mean",
    max_batch: Annotated[int, typer.Option(min=1, help="Most pairs per request.")] = 1024,
    max_bytes: Annotated[int, typer.Option(min=1024, help="Largest request.")] = 16 << 20,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code shipped with the model.")
    ] = False,
) -> None:
    """Score texts with a trained reward model over HTTP; the protocol is that of `remote:` reward terms."""
    _require_packages()
    token = _token(host, token_env)
    final = final_of(folder) if is_model(folder) else final_of(folder, "reward_model")
    check_reward_path(str(final))
    if is_foreign(final):
        problem = f"{final} has no reward_model.json: no stage here made it"
        raise InputError("STAGE01", problem, fix="name the classifier in a reward term: model, label_index")
    require_safe_folders(folders_of(final), trust_remote_code)
    term = RewardTerm(model=str(final), combine=combine)
    with closing(_bound(host, port)) as listening:  # taken before the model is loaded, open once it is
        _serve(Served(term, final, trust_remote_code), Limits(max_batch, max_bytes), listening, token, certificate)


@dataclass(frozen=True)
class Served:
    """The model to serve."""

    term: RewardTerm
    """As a reward term of PPO names it."""
    final: Path
    trust_remote_code: bool

    @property
    def name(self) -> str:
        """What it is called in answers: a digest of its files, with how an ensemble is combined."""
        digest = FileHashes().folder(self.final)[:16]
        return f"{digest}-{self.term.combine}" if len(folders_of(self.final)) > 1 else digest


@dataclass(frozen=True)
class Limits:
    """Of one request."""

    pairs: int
    bytes: int


def _serve(
    model: Served, limits: Limits, listening: socket.socket, token: str | None, certificate: Path | None
) -> None:
    from pipeline.reward_server import RewardService, web_server
    from stages.scoring import TextScorer

    name = model.name
    scorer = TextScorer.load(model.term, _computed_in_its_run(model.final), model.trust_remote_code)
    service = RewardService(scorer, name, token, limits.pairs, limits.bytes)
    host, port = listening.getsockname()[:2]
    listening.listen()  # before it is told where: whoever asks at once waits, instead of finding nobody
    address = f"{'https' if certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/score"
    print(
        f"serving {model.final}, model {name}, {'with' if token else 'without'} token\nremote: {{url: {address}}}",
        flush=True,
    )
    web_server(service, certificate).run(sockets=[listening])


def _computed_in_its_run(final: Path) -> ModelConfig | None:
    """The model section of the run that the folder is in, whose PPO would use the same precision."""
    run = RunDir(final.resolve().parents[1])
    return run.config().model if run.config_file.is_file() else None


def _require_packages() -> None:
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        problem = f"rlhf serve-reward needs {' and '.join(missing)}, which is not installed"
        raise InputError("DEP02", problem, fix="pip install 'rlhf-pipeline[serve]'")


def _token(host: str, name: str | None) -> str | None:
    """The token that callers must send. Raises InputError SERVE01 without one where other machines could call."""
    if name is None and not is_loopback(host):
        problem = f"--host {host} can be reached from other machines, and no token is required of them"
        raise InputError("SERVE01", problem, fix="--token-env NAME, or leave out --host")
    if name is None:
        return None
    if not re.fullmatch(TOKEN_NAME, name):
        problem = f"--token-env {name}: its value would not be kept out of what is written down"
        raise InputError("SERVE01", problem, fix="a name that ends in TOKEN, KEY, SECRET or PASSWORD")
    token = os.environ.get(name, "")
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        problem = f"{name} has no token of {SHORTEST_TOKEN} printable characters or more, without blanks"
        raise InputError("SERVE01", problem, fix=f"export {name}=$(openssl rand -hex 32)")
    return token


def _bound(host: str, port: int) -> socket.socket:
    """A socket at that address, not open yet. Raises InputError SERVE02 where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        fix = "an address of this machine, and a free --port"
        raise InputError("SERVE02", f"cannot listen at {host}, port {port} ({error.strerror})", fix) from error
    return listening
