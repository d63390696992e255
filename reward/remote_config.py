"""A scoring server in the config. Imports no torch."""

import ipaddress
import re
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from reward.settings import Settings

TOKEN_NAME = r"^(?:[A-Z_][A-Z0-9_]*_)?(?:TOKEN|KEY|SECRET|PASSWORD)$"
"""Names under which nothing is written down: the filter of secrets knows them (stages/redaction.py)."""
WITHOUT_EFFECT = frozenset(
    {"timeout_s", "retries", "backoff_s", "max_wait_s", "token_env", "max_response_bytes", "ca_file"}
    | {"allow_http", "use_proxy"}
)
"""Keys that decide how the server is reached and not what it says; they may change while a run is interrupted."""


class RemoteConfig(Settings):
    url: str
    """Address that batches are posted to: https, or http on this machine."""
    model: str | None = None
    """What the server must call its model (header `X-Reward-Model`); null = whatever it says first, until the end."""
    columns: list[str] = []
    """Columns of the prompt data that are sent along."""
    batch_size: int = Field(default=64, gt=0)
    """Completions per request."""
    timeout_s: float = Field(default=60.0, gt=0, le=86400)
    """Seconds for one request, from connecting to the last byte of the answer."""
    retries: int = Field(default=8, ge=0, le=1000)
    """Further tries of a request that got no answer, or 408, 429 or 5xx."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Seconds before the first of them; each further wait is twice as long."""
    max_wait_s: float = Field(default=60.0, ge=0)
    """Longest wait before a try, whatever the server asks for in Retry-After (s)."""
    token_env: str | None = None
    """Name of the environment variable that holds the bearer token; ends in TOKEN, KEY, SECRET or PASSWORD."""
    max_response_bytes: int = Field(default=1 << 20, ge=64)
    """Size above which an answer is refused (bytes)."""
    ca_file: str | None = None
    """PEM file of the only authorities or certificate to trust; null = those of the system."""
    allow_http: bool = False
    """Send texts, and the token, unencrypted to another machine."""
    use_proxy: bool = False
    """Whether HTTPS_PROXY and the like in the environment hold."""

    @field_validator("url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises ValueError for what is no port
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected https://host/path")
        if parts.username is not None or parts.password is not None:
            raise ValueError("an address without user and password; the token comes from token_env")
        if parts.query or parts.fragment or not url.isprintable() or " " in url:
            raise ValueError("an address without query, fragment and blanks; the token comes from token_env")
        return url

    @field_validator("token_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        """What is wrong is not shown: it may be the token itself."""
        if name is not None and not re.fullmatch(TOKEN_NAME, name):
            names = "in capitals, that ends in TOKEN, KEY, SECRET or PASSWORD"
            raise ValueError(f"expected the name of an environment variable, {names}; that variable holds the token")
        return name

    @model_validator(mode="after")
    def _encrypted(self) -> "RemoteConfig":
        parts = urlsplit(self.url)
        if parts.scheme == "http" and not self.allow_http and not is_loopback(parts.hostname or ""):
            raise ValueError("http:// would send texts and token unencrypted; use https://, or set allow_http: true")
        return self

    def pause_before(self, retry: int, asked: float | None = None) -> float:
        """Seconds before a retry, 1 = the first: `backoff_s 2^(retry - 1)`, or what the server `asked` for if longer.

        >>> [RemoteConfig(url="https://a/score").pause_before(n) for n in (1, 2, 3, 9)]
        [1.0, 2.0, 4.0, 60.0]
        """
        return min(self.max_wait_s, max(self.backoff_s * 2.0 ** min(retry - 1, 64), asked or 0.0))

    @property
    def longest_wait_s(self) -> float:
        """Seconds after which one batch has been answered or given up."""
        pauses = sum(self.pause_before(n, self.max_wait_s) for n in range(1, self.retries + 1))
        return (self.retries + 1) * self.timeout_s + pauses


def is_loopback(host: str) -> bool:
    """Whether an address can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
