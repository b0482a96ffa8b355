"""A Git repository: source code and prose, one document a file, with the commit in the metadata and not in the address.

Files are read from the object store of a bare, shallow clone: nothing is checked out, so no hook, filter, symbolic link
or submodule of a stranger's repository has any effect here.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlsplit

from corpus.settings import Settings, masked_text
from ingestion.crawlers.files import draft, ignored, too_large, wanted
from ingestion.drafts import Covered, Draft, Failed, Item, Options, reason_of
from ingestion.fetching import FetchFailed, public_addresses

PREFIX = "git+"
HOSTS = frozenset(("github.com", "gitlab.com", "codeberg.org", "bitbucket.org"))
SCP_LIKE = re.compile(r"^[\w.-]+@([\w.-]+):(?!/)(.+)$")
REGULAR_FILES = frozenset(("100644", "100755"))
POLL = 0.1
# Nothing asks at a terminal, no hook or template of this machine, and no transport but the one that a clone is given: a
# repository that lacks objects may name a command that would fetch them.
ENVIRONMENT = {
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "SSH_ASKPASS": "true",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
}


class CloneFailed(Exception):
    """The repository could not be had; the message completes "SOURCE ..."."""


@dataclass(frozen=True, slots=True)
class _Blob:
    path: str
    object: str
    size: int


def accepts(source: str) -> bool:
    """`git+...`, what ends in .git, ssh addresses, and a repository's page on a well-known host."""
    if source.startswith((PREFIX, "ssh://")) or source.rstrip("/").endswith(".git") or SCP_LIKE.match(source):
        return True
    return _is_page(source)


def _is_page(source: str) -> bool:
    """Whether this is the address of a repository's page on a well-known host."""
    try:
        parts = urlsplit(source)
    except ValueError:
        return False
    on_host = parts.scheme in ("http", "https") and (parts.hostname or "").removeprefix("www.") in HOSTS
    names = [part for part in parts.path.split("/") if part]
    return on_host and len(names) == 2 and not names[1].endswith(".git")


def crawl(source: str, options: Options) -> Iterator[Item]:
    """Every document of the repository's newest commit, without what tools made."""
    place = source.removeprefix(PREFIX)
    local = "://" not in place and not SCP_LIKE.match(place)
    if shutil.which("git") is None:
        yield Failed(source, "needs the program git: install it (apt install git)", lost=True)
        return
    with tempfile.TemporaryDirectory(prefix="twin-clone-") as directory:
        clone = Path(directory) / "clone.git"
        try:
            address = Path(place).expanduser().resolve().as_uri() if local else _clonable(place)
            _clone(address, clone, options.settings)
            commit = _git("-C", str(clone), "rev-parse", "HEAD").decode().strip()
            author = _author(Path(place).expanduser() if local else clone)
            home = _home(address)
            with _objects(clone) as objects:
                yield from _documents(source, home, clone, objects, commit, author, options)
        except (CloneFailed, FetchFailed) as error:
            yield Failed(source, str(error), lost=True)
            return
        except OSError as error:
            yield Failed(source, f"cannot be cloned: {reason_of(error)}", lost=True)
            return
        yield Covered(f"{home}/blob/HEAD/")


def _documents(
    source: str,
    home: str,
    clone: Path,
    objects: subprocess.Popen[bytes],
    commit: str,
    author: str | None,
    options: Options,
) -> Iterator[Draft | Failed]:
    platform = "git" if home.startswith("git+file:") else urlsplit(home).hostname or "git"
    for blob in _blobs(clone):
        name = os.fsencode(blob.path).decode("utf-8", "replace")
        # HEAD, so that the address stays over commits and still opens on the well-known hosts.
        url = f"{home}/blob/HEAD/{quote(os.fsencode(blob.path))}"
        told = f"{masked_text(source)}: {name}"
        if blob.size > options.settings.max_document_bytes:
            yield Failed(told, too_large(blob.size, options), url)
            continue
        content = _content(objects, blob)
        found = draft(content, blob.path, told, url, platform, options, {"commit": commit, "repository": home})
        yield replace(found, likely_author=author) if isinstance(found, Draft) else found


def _blobs(clone: Path) -> Iterator[_Blob]:
    """Regular files of the newest commit that are documents; symbolic links and submodules are neither."""
    listing = _git("-C", str(clone), "ls-tree", "-r", "-l", "-z", "--full-tree", "HEAD")
    for entry in filter(None, listing.split(b"\0")):
        about, _, path = entry.partition(b"\t")
        mode, kind, object, size = about.decode("ascii").split()
        name = os.fsdecode(path)
        left_out = any(ignored(part) for part in name.split("/"))
        if kind == "blob" and mode in REGULAR_FILES and not left_out and wanted(name):
            yield _Blob(name, object, int(size))


@contextmanager
def _objects(clone: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One process that hands out the contents of all objects."""
    command = ["git", "-C", str(clone), "cat-file", "--batch"]
    with subprocess.Popen(command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process


def _content(objects: subprocess.Popen[bytes], blob: _Blob) -> bytes:
    if objects.stdin is None or objects.stdout is None:
        raise CloneFailed("cannot be read")
    objects.stdin.write(blob.object.encode() + b"\n")
    objects.stdin.flush()
    objects.stdout.readline()
    # A line feed ends every object.
    return objects.stdout.read(blob.size + 1)[: blob.size]


def _clonable(address: str) -> str:
    """The address that serves a clone: without `.git` some hosts redirect, and a redirect may lead anywhere."""
    return address if not _is_page(address) else address.rstrip("/") + ".git"


def _author(repository: Path) -> str | None:
    """Who made most of the commits that are there: all of a local repository, the newest of a remote one."""
    try:
        lines = _git("-C", str(repository), "shortlog", "-s", "-n", "HEAD").decode("utf-8", "replace").splitlines()
    except CloneFailed:
        return None
    return lines[0].partition("\t")[2].strip() or None if lines else None


def _home(address: str) -> str:
    """The repository's own address: of its page where there is one. A local one is not mixed up with its files."""
    scp = SCP_LIKE.match(address)
    if address.startswith("file:"):
        return PREFIX + address.replace("file://", "file:", 1).rstrip("/")
    parts = urlsplit(f"https://{scp[1]}/{scp[2]}" if scp else address)
    host = (parts.hostname or "") + (f":{parts.port}" if parts.port and parts.scheme.startswith("http") else "")
    scheme = parts.scheme if parts.scheme == "http" else "https"
    return f"{scheme}://{host}/{parts.path.strip('/').removesuffix('.git')}"


def _clone(address: str, clone: Path, settings: Settings) -> None:
    """A bare, shallow clone within the limits on time, size and addresses. Raises CloneFailed, FetchFailed."""
    options = ["-c", "core.hooksPath=/dev/null", "-c", "credential.interactive=never", "-c", "gc.auto=0"]
    remote = not address.startswith("file:")
    if remote:
        host, port = _server(address)
        found = public_addresses(host, port, settings.allow_private_addresses)
        if not settings.allow_private_addresses:
            # To where was checked, and nowhere else.
            shown = ",".join(f"[{one}]" if ":" in one else one for one in found)
            options += ["-c", "http.followRedirects=false", "-c", f"http.curloptResolve={host}:{port}:{shown}"]
    command = [
        "git",
        *options,
        "clone",
        "--bare",
        "--depth=1",
        "--single-branch",
        "--no-tags",
        "--template=",
        "--quiet",
    ]
    with subprocess.Popen(
        [*command, "--", address, str(clone)],
        env=_environment() | {"GIT_ALLOW_PROTOCOL": "https:http:ssh" if remote else "file"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            _watch(process, clone, settings)
        except BaseException:
            # With its own session, so that the transports that it started end too.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        told = process.stderr.read().decode("utf-8", "replace") if process.stderr else ""
    if process.returncode != 0:
        lines = [line for line in told.splitlines() if line.startswith(("fatal:", "ERROR:", "error:"))] or [
            told.strip()
        ]
        raise CloneFailed(f"cannot be cloned: {masked_text(lines[0])[:300]}")


def _server(address: str) -> tuple[str, int]:
    scp = SCP_LIKE.match(address)
    if scp:
        return scp[1], 22
    try:
        parts = urlsplit(address)
        return parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 22)
    except ValueError as error:
        raise CloneFailed("is not a valid address") from error


def _watch(process: subprocess.Popen[bytes], clone: Path, settings: Settings) -> None:
    """Return when the clone has ended. Raises CloneFailed when it takes more time or space than it may."""
    deadline = time.monotonic() + settings.repository_timeout
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL)
        if _size(clone) > settings.max_repository_bytes:
            limit = f"{settings.max_repository_bytes / 1e6:.0f} MB (TWIN_MAX_REPOSITORY_BYTES)"
            raise CloneFailed(f"is too large: more than {limit}")
        if process.returncode is not None:
            return
        if time.monotonic() > deadline:
            raise CloneFailed(f"was not cloned within {settings.repository_timeout:g} s (TWIN_REPOSITORY_TIMEOUT)")


def _size(directory: Path) -> int:
    """Bytes of the files in a directory that another process is writing."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total


def _git(*arguments: str) -> bytes:
    command = ["git", *arguments]
    done = subprocess.run(command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        raise CloneFailed(f"cannot be read: {done.stderr.decode('utf-8', 'replace').strip()[:300]}")
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT}
