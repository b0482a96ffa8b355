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
    verify_interval: Annotated[float, msgspec.Meta(gt=0)] = 3600.0
    tombstone_retention: Annotated[float, msgspec.Meta(ge=0)] = 7 * 86_400.0
    generation_retention: Annotated[float, msgspec.Meta(ge=0)] = 7 * 86_400.0
    # What 95 % of changes are to stay below, from the source's commit to searchable.
    freshness_objective: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    # Where training runs and models are told of: an MLflow server, or (None) a database in the home.
    mlflow_uri: str | None = None
    # What a model must reach to be approved: a file of rules, or (None) those that come with the program.
    release_rules: Path | None = None
    # Where a trace of each change is sent: a collector that speaks OTLP over HTTP.
    otlp_url: str | None = None

    @property
    def log_directory(self) -> Path:
        return self.home / "logs"

    @property
    def datasets_directory(self) -> Path:
        return self.home / "datasets"

    @property
    def feature_documents_topic(self) -> str:
        return f"{self.topic_prefix}.features.documents"

    @property
    def dead_letters_topic(self) -> str:
        return f"{self.topic_prefix}.dead-letters"


SECRETS = frozenset({"qdrant_api_key", "llm_api_key", "api_keys"})
URLS = dict.fromkeys(("connect_url", "qdrant_url", "app_url", "llm_url", "mlflow_uri", "otlp_url"), ("http", "https"))
# By setting: the schemes that its address may have; "" is an address without one.
SCHEMES = {**URLS, "mongodb_uri": ("mongodb", "mongodb+srv"), "kafka_bootstrap_servers": ("", "plaintext")}
HOST = r"(?:[\w.%-]+|\[[\da-f:.%]+\])"
ADDRESS = re.compile(
    rf"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?P<user>.*@)?(?P<hosts>{HOST}(?::\d+)?(?:,{HOST}(?::\d+)?)*)(?P<rest>[/?#].*)?",
    re.IGNORECASE | re.DOTALL,
)
SENSITIVE = r"\b[\w.-]{0,100}(?:passw(?:or)?d|pwd|token|secret|key|signature|credential|\bsig|\bauth)"
# Addresses take secrets as options too: the password of a key file, the token of a session.
SECRET_OPTION = re.compile(rf"({SENSITIVE}[=:])[^&,]+", re.IGNORECASE)
# The same within a sentence, where a colon is one as a rule, and a secret ends where its address does.
TOLD_OPTION = re.compile(rf"({SENSITIVE}(?:=|(?<=token):))[^\s&,;'\"<>()\[\]{{}}]+", re.IGNORECASE)
# Not every @ ends a password: https://medium.com/@author, http://127.0.0.1:8000/@author, me@example.org.
TOLD_USER = re.compile(
    r"(?<=://)(?:[^\s/@:]*|[^\s/@:]*:(?!\d+(?:[/?#\s]|$)).{0,4000})@|\b[^\s/@:'\"]{1,100}:[^\s/@]{1,500}@(?=\w)"
)


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
        elif name in SCHEMES and value:
            shown[name] = without_password(value)
        elif isinstance(value, str):
            shown[name] = masked_text(value)
    return dict(shown)


def without_password(address: str) -> str:
    """A setting's address without user, password and secret options; what is no address is a secret for all we know."""
    found = ADDRESS.fullmatch(address)
    if found is None or (not found["scheme"] and (found["user"] or not _has_ports(found["hosts"]))):
        scheme, separator, _ = address.partition("://")
        return f"{scheme}://***" if separator and scheme.isalnum() else "***"
    shown = f"{found['scheme']}://" if found["scheme"] else ""
    shown += ("***@" if found["user"] else "") + found["hosts"]
    return shown + SECRET_OPTION.sub(r"\1***", found["rest"] or "")


def credentials(url: str) -> tuple[str, dict[str, str]]:
    """An http address without its user and password, and the header that tells the server who they are.

    Source: RFC 7617, "Basic" HTTP authentication.
    """
    from base64 import b64encode
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(url)
    user, found, host = parts.netloc.rpartition("@")
    told = {"Authorization": f"Basic {b64encode(unquote(user).encode()).decode()}"} if found else {}
    return parts._replace(netloc=host).geturl(), told


def key_for(settings: Settings, url: str) -> str | None:
    """The key that the language model at this address is to see: that of the settings belongs to their own address."""
    from urllib.parse import urlsplit

    if settings.llm_url is not None and urlsplit(settings.llm_url)[:2] != urlsplit(url)[:2]:
        return None
    return settings.llm_api_key


def masked_text(text: str) -> str:
    """A sentence, an error's text or a source's name without the passwords and tokens of addresses within it."""
    return TOLD_OPTION.sub(r"\1***", TOLD_USER.sub("***@", text))


def _has_ports(hosts: str) -> bool:
    return all(re.search(r":\d+$", host) for host in hosts.split(","))


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
        settings = msgspec.convert(values, Settings, strict=False, dec_hook=lambda kind, value: kind(value))
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        name = PREFIX + path.strip("`").upper() if path else "settings"
        for kind, words in (("int", "a whole number"), ("float", "a number"), ("bool", "true or false")):
            reason = reason.replace(f"`{kind} | null`", words).replace(f"`{kind}`", words)
        raise InvalidSettings(f"{name}: {reason[:1].lower() + reason[1:].removesuffix(', got `str`')}") from error
    for name, schemes in SCHEMES.items():
        _check_address(name, getattr(settings, name), schemes)
    return settings


def _check_address(name: str, address: str | None, schemes: tuple[str, ...]) -> None:
    """Raise InvalidSettings for what is no address; its text is not repeated, a password may stand anywhere in it."""
    found = ADDRESS.fullmatch(address) if address else None
    scheme = (found["scheme"] or "").lower() if found else ""
    if address and (found is None or scheme not in schemes or (found["user"] and not scheme)):
        like = f"{schemes[0]}://host:port" if schemes[0] else "host:port,host:port"
        raise InvalidSettings(f"{PREFIX}{name.upper()}: expected an address like {like} (what is set is not shown)")
