"""Which language model gives the next answer: the deployment of this home, followed while another process replaces it.

`$TWIN_HOME/deployment.json` is what the release side tells the app:

    {"champion": {"version", "url", "model"} | null, "canary": {"version", "url", "model", "share"} | null}

It is replaced as a whole at any time; what else stands in it is for others. Without it, or without a champion in it,
the model of the settings is the champion.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from random import Random
from typing import Annotated

import msgspec

from corpus.settings import ADDRESS, URLS, Settings
from serving.language_model import ServedModel
from serving.parts import LanguageModel

log = logging.getLogger(__name__)
FILE = "deployment.json"


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """A version of the model and where it is served; `model`: what its server calls it."""

    version: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    url: str
    model: Annotated[str, msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        if _origin(self.url) is None:
            # Its text is not repeated: a password may stand anywhere in it.
            raise ValueError("url is no address like http://host:port")


class Canary(Deployed, frozen=True, kw_only=True):
    """A version that gives this share of the answers, from 0 to 1, to be compared with the champion."""

    share: Annotated[float, msgspec.Meta(ge=0, le=1)]


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """What is deployed: `champion` answers, but for the canary's share."""

    champion: Deployed | None
    canary: Canary | None = None


NOTHING = Deployment(champion=None)


class Deployments:
    """The models of this home as they are at each moment.

    `random` decides whether the canary gives an answer outside of any conversation that is known; `make` gives the
    model of these settings, under the name of a version or (None) its own. Belongs to one event loop.
    """

    def __init__(
        self, settings: Settings, random: Random, make: Callable[[Settings, str | None], LanguageModel] = ServedModel
    ) -> None:
        self._settings, self._random, self._make = settings, random, make
        self._path = settings.home / FILE
        self._own = make(settings, None) if settings.llm_url else None
        self._made: dict[tuple[str, str, str], LanguageModel] = {}
        self._deployment = NOTHING
        self._seen: tuple[int, int, int] | None = None
        self._complaint: str | None = None

    def choose(self, conversation: str | None, tried: Sequence[LanguageModel]) -> LanguageModel | None:
        """The model that answers next (see `serving.parts.Choose`): the canary for its share of the answers, else the
        champion; a conversation that is known stays with one of them."""
        deployment = self._followed()
        canary = deployment.canary
        if canary is not None and not tried and self._drawn(conversation, canary.version) < canary.share:
            return self._model(canary)
        champion = self._own if deployment.champion is None else self._model(deployment.champion)
        return None if any(champion is each for each in tried) else champion

    def _drawn(self, conversation: str | None, version: str) -> float:
        """A number from 0 to below 1: by chance, or the same for all of a conversation while this canary is there."""
        if not conversation:
            return self._random.random()
        digest = hashlib.sha256(f"{version}\n{conversation}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    def _model(self, deployed: Deployed) -> LanguageModel:
        """One object for as long as the version stands there, so that it is known whether it was tried."""
        key = deployed.version, deployed.url, deployed.model
        if key not in self._made:
            own = self._settings
            # The key of the settings belongs to their address: no other server is to see it.
            theirs = own.llm_url is not None and _origin(own.llm_url) != _origin(deployed.url)
            settings = msgspec.structs.replace(
                own,
                llm_url=deployed.url,
                llm_model=deployed.model,
                llm_api_key=None if theirs else own.llm_api_key,
            )
            self._made[key] = self._make(settings, deployed.version)
        return self._made[key]

    def _followed(self) -> Deployment:
        """The deployment as it is now; of a file that cannot be read, the last that could be."""
        try:
            # A look at a local file takes microseconds, less than handing it to a thread would.
            state = self._path.stat()
            seen = state.st_ino, state.st_ctime_ns, state.st_size
            if seen != self._seen:
                content = self._path.read_bytes()
                self._seen = seen
                self._deployment = msgspec.json.decode(content, type=Deployment)
                log.info("deployed now: %s", _told(self._deployment))
                self._complaint = None
        except (FileNotFoundError, NotADirectoryError):
            self._deployment, self._seen, self._complaint = NOTHING, None, None
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror or "" if isinstance(error, OSError) else str(error)
            if reason != self._complaint:
                told = _told(self._deployment)
                log.warning("%s cannot be used (%s), %s stays: deploy a model anew", self._path, reason, told)
                self._complaint = reason
        return self._deployment


def _origin(url: str) -> tuple[str, str] | None:
    """Scheme and host of an http address; None for what is none."""
    found = ADDRESS.fullmatch(url)
    scheme = (found["scheme"] or "").lower() if found else ""
    return (scheme, found["hosts"].lower()) if found and scheme in URLS["llm_url"] else None


def _told(deployment: Deployment) -> str:
    champion = deployment.champion.version if deployment.champion else "the model of the settings"
    canary = deployment.canary
    return champion if canary is None else f"{champion}, and {canary.version} for {canary.share:.0%} of the answers"
