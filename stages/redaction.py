"""Secrets are not written down: one filter before all that a run prints, keeps or sends. Imports no torch."""

import contextlib
import html
import json
import netrc
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

_SHORTEST = 8
"""Characters below which a value in the environment is not taken for a secret: "true" is none."""
_NAME = re.compile(
    r"(?:^|[_.-])(?:(?:api|access|secret|private|signing|encryption|wandb|hf|auth|ssh|aws)[_-]?key(?:[_-]?id)?"
    r"|token|secret|password|passwd|passphrase|pwd|credentials?|authorization|bearer)$",
    re.IGNORECASE,
)
_ENVIRONMENT = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PWD|CREDENTIALS?)(?:_ID)?$", re.IGNORECASE)
_NOT_SECRET = {"PWD", "OLDPWD"}
_SPECIAL = re.compile(r"(?:^|[_.-])(?:eos|bos|pad|unk|sep|cls|mask|start|end|stop|special)_?token$", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
SHAPES: Mapping[str, re.Pattern[str]] = {
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "W&B key": re.compile(r"\bwandb_v\d+_[A-Za-z0-9_]{20,}"),
    "API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "AWS key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})"),
    "GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"),
    "Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "Google key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}"),
    "web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    "bearer token": re.compile(r"(?i:\bbearer\s+)(?P<secret>[A-Za-z0-9._~+/-]{16,}=*)"),
    "URL password": re.compile(
        r"\b[A-Za-z][A-Za-z0-9+.-]{0,20}://(?P<secret>[^\s/@:\"']*:[^\s/@\"']+|[^\s/@:\"']{16,})@"
    ),
    "private key": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
    ),
}
"""What published kinds of secrets look like. A group `secret` is the part that is one."""
_PEM_LIMIT = 20_000
_HEXADECIMAL_KEY = re.compile(r"[0-9a-f]{40}")
_ASSIGNED = re.compile(
    r"(?i:(?P<name>api_?key|access_?key|secret_?key|wandb_?key|hf_?token|api_?token|access_?token|auth_?token"
    r"|secret|password|passwd))[\"']?\s?[=:]\s?[\"']?(?P<secret>[^\s\"',;}]{8,})"
)


def is_secret_name(name: str) -> bool:
    """Whether a key of a config or an option is one under which people keep secrets."""
    spaced = _CAMEL.sub("_", name)
    return bool(_NAME.search(spaced)) and not _SPECIAL.search(spaced)


class Redactor:
    """Replaces secrets by `[redacted NAME]`: exact values from the environment, and what is shaped like one."""

    def __init__(self, secrets: Mapping[str, str]):
        by_spelling = {spelling: name for name, value in secrets.items() for spelling in _spellings(value)}
        self._names = by_spelling
        longest_first = sorted(by_spelling, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._long = [spelling for spelling in by_spelling if "\n" in spelling]

    def values(self, text: str) -> str:
        """Without the exact values; what a model wrote stays as it is otherwise."""
        return self._values.sub(lambda found: f"[redacted {self._names[found[0]]}]", text) if self._values else text

    def text(self, text: str) -> str:
        """Without exact values, known shapes and what is assigned to a name of a secret."""
        text = self.values(text)
        for kind, shape in SHAPES.items():
            text = shape.sub(lambda found, kind=kind: _replaced(found, kind), text)
        return _ASSIGNED.sub(lambda found: _replaced(found, found["name"]), text)

    def tree(self, value: Any, name: str = "") -> Any:
        """The same of plain data; a value under a name of a secret goes whole."""
        if isinstance(value, str):
            return f"[redacted {name}]" if name and value and is_secret_name(name) else self.text(value)
        if isinstance(value, Mapping):
            return {key: self.tree(item, str(key)) for key, item in value.items()}
        return [self.tree(item) for item in value] if isinstance(value, list | tuple) else value

    def command(self, arguments: Iterable[str]) -> list[str]:
        """A command line: also what follows `--token`, and what is in `key=value` after a name of a secret."""
        shown: list[str] = []
        follows = ""
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if follows:
                shown.append(f"[redacted {follows}]")
            elif equals and value and is_secret_name(name):
                shown.append(f"{name}=[redacted {name.lstrip('-')}]")
            else:
                shown.append(self.text(argument))
            follows = name.lstrip("-") if argument.startswith("-") and not equals and is_secret_name(name) else ""
        return shown

    def unfinished(self, text: str) -> int:
        """Where a secret of several lines may have begun that ends beyond the text; the text's length if nowhere."""
        begun = text.rfind("-----BEGIN ")
        starts = [begun] if begun >= 0 and "-----END" not in text[begun:] and len(text) - begun < _PEM_LIMIT else []
        for secret in self._long:
            tails = (size for size in range(min(len(secret) - 1, len(text)), 0, -1) if text.endswith(secret[:size]))
            starts += [len(text) - size for size in tails][:1]
        return min(starts, default=len(text))

    def kind_of(self, value: str) -> str | None:
        """What a value of a config looks like if it holds a secret, or None."""
        if self._values and (found := self._values.search(value)):
            return f"the value of {self._names[found[0]]}"
        if _HEXADECIMAL_KEY.fullmatch(value):
            return "W&B key"
        return next((kind for kind, shape in SHAPES.items() if shape.search(value)), None)


def _replaced(found: re.Match[str], kind: str) -> str:
    if "secret" not in found.re.groupindex:
        return f"[redacted {kind}]"
    if found["secret"].startswith("[redacted"):
        return found[0]
    start, end = (position - found.start() for position in found.span("secret"))
    return f"{found[0][:start]}[redacted {kind}]{found[0][end:]}"


def _spellings(value: str) -> set[str]:
    """A value as it stands in text, JSON, Python, HTML and URLs."""
    quoted = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    return {value, *quoted, html.escape(value), quote(value), quote(value, safe="")}


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Secrets by name: of the environment, of the URLs in it, and of the files where libraries keep their keys."""
    found = {
        name: value for name, value in environment.items() if _ENVIRONMENT.search(name) and name not in _NOT_SECRET
    }
    found |= {name: password for name, value in environment.items() if (password := _url_password(value))}
    found = {**_kept_in_files(environment), **found}
    return {name: value for name, value in found.items() if len(value) >= _SHORTEST}


def _url_password(value: str) -> str | None:
    if "://" not in value or "@" not in value:
        return None
    try:
        password = urlsplit(value).password
    except ValueError:
        return None
    return unquote(password) if password else None


def _kept_in_files(environment: Mapping[str, str]) -> dict[str, str]:
    """The hub's token file and the password of W&B's host."""
    home = Path(environment.get("HOME", "/"))
    hub = Path(environment.get("HF_HOME") or home / ".cache" / "huggingface")
    kept: dict[str, str] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        kept["HF_TOKEN"] = Path(environment.get("HF_TOKEN_PATH") or hub / "token").read_text(encoding="utf-8").strip()
    with contextlib.suppress(OSError, ValueError, netrc.NetrcParseError):
        host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        entry = netrc.netrc(environment.get("NETRC") or home / ".netrc").authenticators(host)
        kept |= {"WANDB_API_KEY": entry[2]} if entry and entry[2] else {}
    return kept


@lru_cache(maxsize=1)
def redactor() -> Redactor:
    """That of this process, from the environment that it was started with."""
    return Redactor(secrets_of(os.environ))
