"""Git repositories through `twin ingest`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingestion.crawlers import crawler_of

IDENTITY = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def git(repository: Path, *arguments: str, author: str = "Ada") -> str:
    names = {f"GIT_{role}_NAME": author for role in ("AUTHOR", "COMMITTER")}
    people = {**names, **{name.replace("NAME", "EMAIL"): "a@example.com" for name in names}}
    command = ["git", "-C", str(repository), "-c", "protocol.file.allow=always", *arguments]
    done = subprocess.run(command, env={**os.environ, **IDENTITY, **people}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(repository: Path, author: str = "Ada", **files: str) -> str:
    for name, text in files.items():
        path = repository / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "a commit", author=author)
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture
def repository() -> Path:
    path = Path("grove").absolute()
    path.mkdir()
    git(path, "init", "-q")
    commit(path, README_md="# Grove\n\nTrees.\n", src__tree_py="def grow():\n    return 1\n", author="Grace")
    commit(path, src__soil_rs="fn soil() {}\n")
    commit(path, src__rain_go="package rain\n")
    return path


def test_a_repository_is_one_document_a_file(twin: Any, repository: Path) -> None:
    assert twin.ingest(f"git+{repository}")["inserted"] == 4
    readme, rain, soil, tree = twin.documents()
    home = f"git+file:{repository}"
    assert (readme.title, readme.category, readme.text) == ("Grove", "article", "# Grove\n\nTrees.\n")
    assert (tree.title, tree.category, tree.language) == ("src/tree.py", "code", "python")
    assert tree.url == f"{home}/blob/HEAD/src/tree.py"
    assert tree.metadata["commit"] == git(repository, "rev-parse", "HEAD")
    assert tree.metadata["path"] == "src/tree.py"
    assert (soil.language, rain.language) == ("rust", "go")


def test_the_author_is_who_made_most_commits_unless_given(twin: Any, repository: Path) -> None:
    twin.ingest(f"git+{repository}")
    assert {document.author_name for document in twin.documents()} == {"Ada"}
    twin.ingest(f"git+{repository}", "--author", "The Foresters")
    assert {document.author_name for document in twin.documents()} == {"The Foresters"}


def test_documents_keep_their_author_when_others_commit_more(twin: Any, repository: Path) -> None:
    twin.ingest(f"git+{repository}")
    for number in range(4):
        commit(repository, **{f"notes__n{number}_md": f"# Note {number}\n\nText.\n"}, author="Linus")

    result = twin.ingest(f"git+{repository}")

    assert (result["inserted"], result["updated"], result["unchanged"]) == (4, 0, 4)
    authors = {document.title: document.author_name for document in twin.documents()}
    assert (authors["Grove"], authors["Note 1"]) == ("Ada", "Linus")


def test_addresses_stay_over_commits(twin: Any, repository: Path) -> None:
    twin.ingest(f"git+{repository}")
    newest = commit(repository, src__tree_py="def grow():\n    return 2\n")
    result = twin.ingest(f"git+{repository}")
    assert (result["inserted"], result["updated"], result["unchanged"]) == (0, 1, 3)
    assert twin.documents()[-1].metadata["commit"] == newest


def test_prune_deletes_what_the_newest_commit_no_longer_has(twin: Any, repository: Path) -> None:
    twin.ingest(f"git+{repository}")
    git(repository, "rm", "-q", "src/soil.rs")
    commit(repository)
    assert twin.ingest(f"git+{repository}", "--prune")["deleted"] == 1
    assert [document.metadata["path"] for document in twin.documents()] == ["README.md", "src/rain.go", "src/tree.py"]


def test_a_folder_and_its_repository_do_not_prune_each_other(twin: Any, repository: Path) -> None:
    twin.ingest(f"git+{repository}")
    assert twin.ingest(str(repository), "--prune")["deleted"] == 0
    assert twin.ingest(f"git+{repository}", "--prune")["deleted"] == 0
    assert len(twin.documents()) == 8


def test_what_is_not_committed_does_not_count(twin: Any, repository: Path) -> None:
    (repository / "draft.md").write_text("Not yet.")
    assert twin.ingest(f"git+{repository}")["seen"] == 4


def test_a_bare_repository_is_taken_by_its_name(twin: Any, repository: Path) -> None:
    git(repository, "clone", "-q", "--bare", ".", "../grove.git")
    assert twin.ingest(str(repository.parent / "grove.git"))["inserted"] == 4


def test_links_submodules_and_what_tools_made_are_left_out(twin: Any, repository: Path) -> None:
    secret = repository.parent / "secret.md"
    secret.write_text("Nobody shall read this.")
    (repository / "link.md").symlink_to(secret)
    (repository / "node_modules").mkdir()
    (repository / "node_modules" / "a.js").write_text("made()")
    (repository / "package-lock.json").write_text("{}")
    (repository / "photo.png").write_bytes(b"\x89PNG\0")
    inner = repository.parent / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    commit(inner, inside_md="Inside.")
    git(repository, "submodule", "add", "-q", str(inner), "inner")
    commit(repository)
    result = twin.ingest(f"git+{repository}")
    assert (result["seen"], result["failed"]) == (4, [])


def test_no_hook_of_the_repository_runs(twin: Any, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = repository / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    ran = repository.parent / "ran"
    for name in ("post-checkout", "reference-transaction", "pre-receive", "post-upload-pack"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (hooks / name).chmod(0o755)
    assert twin.ingest(f"git+{repository}")["inserted"] == 4
    assert not ran.exists()


def test_no_command_that_the_repository_names_for_missing_objects_runs(
    twin: Any, repository: Path, tmp_path: Path
) -> None:
    commit(repository, **{"second.md": "# Second\n\nAnother note."})
    first = git(repository, "rev-parse", "HEAD~1").strip()
    (repository / ".git" / "objects" / first[:2] / first[2:]).unlink()
    ran = tmp_path / "ran"
    for name, value in {
        "core.repositoryformatversion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.url": repository.as_uri(),
        "remote.origin.promisor": "true",
        "remote.origin.uploadpack": f"touch {ran}; git-upload-pack",
    }.items():
        git(repository, "config", name, value)

    twin.ingest(f"git+{repository}")

    assert not ran.exists()


def test_a_bad_file_is_listed_and_the_rest_goes_in(twin: Any, repository: Path) -> None:
    (repository / "bytes.md").write_bytes(b"\xff\xfe\xfa")
    (repository / "bytes.py").write_bytes(b"# \xe9t\xe9\n")
    (repository / "empty.md").write_text("")
    (repository / "huge.txt").write_text("word " * 2_000_000)
    commit(repository)
    result = twin.ingest(f"git+{repository}")
    assert result["inserted"] == 4
    assert [failure["reason"] for failure in result["failed"]] == [
        "is not valid UTF-16: byte 0xfa at offset 2",
        "is not valid UTF-8: byte 0xe9 at offset 2",
        "is empty",
        "is too large: 10.0 MB, the limit is 8.0 MB (TWIN_MAX_DOCUMENT_BYTES)",
    ]
    assert result["failed"][0]["source"] == f"git+{repository}: bytes.md"


def test_a_repository_beyond_the_size_cap_is_refused(
    twin: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWIN_MAX_REPOSITORY_BYTES", "1000000")
    (repository / "noise.bin").write_bytes(os.urandom(3_000_000))
    commit(repository)
    result = twin.ingest(f"git+{repository}", code=1)
    assert result["failed"][0]["reason"] == "is too large: more than 1 MB (TWIN_MAX_REPOSITORY_BYTES)"
    assert twin.documents() == []


@pytest.mark.parametrize("source", ["git+no-such-folder", "no-such.git"])
def test_what_is_no_repository_fails(twin: Any, source: str) -> None:
    result = twin.ingest(source, code=1)
    assert result["failed"][0]["reason"].startswith("cannot be cloned: fatal:")


def test_an_empty_repository_fails(twin: Any) -> None:
    git(Path(), "init", "-q", "empty")
    assert twin.ingest("git+empty", code=1)["failed"][0]["reason"].startswith("cannot be read")


def test_without_git_the_reason_says_what_to_install(
    twin: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert twin.ingest(f"git+{repository}", code=1)["failed"][0]["reason"] == (
        "needs the program git: install it (apt install git)"
    )


def test_a_private_address_is_refused(twin: Any) -> None:
    result = twin.ingest("http://ada:secret@127.0.0.1/grove.git", code=1)
    assert "is at a private address (127.0.0.1)" in result["failed"][0]["reason"]
    assert "secret" not in str(result)


@pytest.mark.parametrize(
    "source", ["git+ext::sh -c 'touch ran'", "git+file-transport://x/y", "ssh://-oProxyCommand=touch/x"]
)
def test_no_other_transport_is_spoken(twin: Any, source: str) -> None:
    assert twin.ingest(source, "--allow-private-addresses", code=1)["inserted"] == 0
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("source", "crawler"),
    [
        ("https://github.com/ada/grove", "repository"),
        ("https://github.com/ada/grove/", "repository"),
        ("https://github.com/ada/grove/blob/main/README.md", "article"),
        ("https://gitlab.com/ada/grove.git", "repository"),
        ("https://example.com/ada/grove.git", "repository"),
        ("git@github.com:ada/grove.git", "repository"),
        ("ssh://git@example.com/grove", "repository"),
        ("https://example.com/ada/grove", "article"),
        ("HTTP://example.com", "article"),
        ("notes", "files"),
        ("notes/grove", "files"),
        ("articles.json", "export"),
        ("https://example.com/articles.json", "article"),
    ],
)
def test_each_source_finds_its_crawler(source: str, crawler: str) -> None:
    assert crawler_of(source).name == crawler
