"""The one settings object: environment over `.env` over the addresses of the running home over the defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

ADDRESSES = "addresses.json"
PREFIX = "TWIN_"


class InvalidSettings(ValueError):
    """A setting that cannot be used; the message names the variable and says what it may be."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting, read from `TWIN_<NAME>`. An address that is None means: the part that `twin up` starts.

    Sizes are bytes, times seconds.
    """

    home: Path = Path(".twin")
    # Addresses of parts of one's own; each is used and checked, never started or stopped.
    mongodb_uri: str | None = None
    kafka_bootstrap_servers: str | None = None
    connect_url: str | None = None
    qdrant_url: str | None = None
    qdrant_api_key: str | None = None
    app_url: str | None = None
    # Which life of the home's own log this is; its supervisor writes it down, a log given by address has none.
    log_epoch: str = ""
    # The language model: TGI or any OpenAI-compatible server.
    llm_url: str | None = None
    llm_model: str | None = None
    llm_api_key: str | None = None
    llm_timeout: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    llm_max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 512
    # The app.
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    api_keys: tuple[str, ...] = ()
    rate_limit: Annotated[int, msgspec.Meta(ge=1)] = 6_000
    max_question_characters: Annotated[int, msgspec.Meta(ge=1)] = 4_000
    # Bringing documents in.
    max_document_bytes: Annotated[int, msgspec.Meta(ge=1, le=12_000_000)] = 8_000_000
    allow_private_addresses: bool = False
    crawl_timeout: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    # A page or mail address that sites see in the user agent, so that they can reach whoever runs this.
    crawl_contact: str | None = None
    max_repository_bytes: Annotated[int, msgspec.Meta(ge=1)] = 500_000_000
    repository_timeout: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    # Log and capture.
    database: str = "twin"
    topic_prefix: str = "twin"
    partitions: Annotated[int, msgspec.Meta(ge=1)] = 4
    replication_factor: Annotated[int, msgspec.Meta(ge=1)] = 1
    capture_poll_ms: Annotated[int, msgspec.Meta(ge=1)] = 20
    # Features.
    embedding_model: str = "minilm-l6-int8"
    embedding_threads: Annotated[int, msgspec.Meta(ge=1)] = 2
    reconcile_interval: Annotated[float, msgspec.Meta(gt=0)] = 30.0

    @property
    def log_directory(self) -> Path:
        return self.home / "logs"


# MongoDB takes secrets as options of its address too: a key file's password, a session token.
SECRET_OPTION = re.compile(r"((?:password|token|secret|key)[=:])[^&,]*", re.IGNORECASE)
SECRETS = frozenset({"qdrant_api_key", "llm_api_key", "api_keys"})


def load(environment: Mapping[str, str] | None = None, directory: Path | None = None, **overrides: Any) -> Settings:
    """Settings from `environment` (default: the process'), a `.env` in `directory` and the running home's addresses.

    `overrides` (from the command line) win over all; None among them means not given. Raises InvalidSettings.
    """
    environment = os.environ if environment is None else environment
    directory = directory or Path.cwd()
    given = {name: value for name, value in overrides.items() if value is not None}
    values = {**_named(_dotenv(directory / ".env")), **_named(environment), **given}
    home = Path(values.get("home") or ".twin")
    values["home"] = str((directory / home).absolute())
    return _convert({**running_addresses(Path(values["home"])), **values})


def running_addresses(home: Path) -> dict[str, str]:
    """Addresses of the parts that run in `home` (written by its supervisor, removed when it stops); {} if none.

    Raises InvalidSettings if they may not be read.
    """
    try:
        return msgspec.json.decode((home / ADDRESSES).read_bytes(), type=dict[str, str])
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        # A supervisor replaces the file as a whole; one that a power failure left is of none that runs.
        return {}
    except OSError as error:
        raise InvalidSettings(f"{home / ADDRESSES} cannot be read ({error.strerror}): mend its permissions") from error


def masked(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, secrets and the passwords within addresses replaced by asterisks."""
    shown = msgspec.to_builtins(settings, enc_hook=str)
    for name, value in shown.items():
        if name in SECRETS and value:
            shown[name] = "***"
        elif isinstance(value, str) and "://" in value:
            shown[name] = without_password(value)
    return dict(shown)


def without_password(address: str) -> str:
    """The address with its user and password replaced, fit for logs and error texts."""
    scheme, _, rest = address.partition("://")
    # Up to the last @: a password that should have been escaped may hold a slash.
    _, found, shown = rest.rpartition("@")
    safe = f"{scheme}://***@{shown}" if found else address
    return SECRET_OPTION.sub(r"\1***", safe)


def _named(variables: Mapping[str, str | None]) -> dict[str, Any]:
    known = Settings.__struct_fields__
    return {
        name: value
        for variable, value in variables.items()
        # An empty variable is one that is not set: that is how compose files and shells unset them.
        if value and variable.startswith(PREFIX) and (name := variable.removeprefix(PREFIX).lower()) in known
    }


def _dotenv(path: Path) -> dict[str, str | None]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    return dotenv_values(path)


def _convert(values: dict[str, Any]) -> Settings:
    if isinstance(values.get("api_keys"), str):
        values["api_keys"] = [key.strip() for key in values["api_keys"].split(",") if key.strip()]
    try:
        return msgspec.convert(values, Settings, strict=False, dec_hook=lambda kind, value: kind(value))
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        name = PREFIX + path.strip("`").upper() if path else "settings"
        for kind, words in (("int", "a whole number"), ("float", "a number"), ("bool", "true or false")):
            reason = reason.replace(f"`{kind} | null`", words).replace(f"`{kind}`", words)
        raise InvalidSettings(f"{name}: {reason[:1].lower() + reason[1:].removesuffix(', got `str`')}") from error
