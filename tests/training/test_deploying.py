"""Deploying: a canary first, compared by its answers; and back, while questions are being answered."""

from __future__ import annotations

import argparse
import http.server
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from corpus.settings import load
from tests.training.model_runs import Shelf, evaluated, make_model, make_run
from training.release import deploying, servers
from training.release.deploying import (
    AppUnavailable,
    CannotDeploy,
    Counts,
    Deployment,
    Target,
    app_status,
    compare,
    compared,
    deploy,
    follow,
    note_baseline,
    promote,
    read,
    since,
    take_back,
)
from training.release.gate import CanaryRules, load_rules
from training.release.registry import ModelVersion, NotReleased, Registry
from training.release.servers import ServerFailed
from training.shares import difference_of_shares, wilson

NOW = datetime(2026, 6, 20, tzinfo=UTC)
RULES = load_rules()
# A server that speaks as much of the protocol as is asked of it; the model's name must be the one it serves.
SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
model, port = sys.argv[1], int(sys.argv[2])
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        found = asked["model"] == model
        body = json.dumps({"choices": [{"message": {"content": model}}]} if found else {"detail": "another model"})
        self.send_response(200 if found else 400)
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *_): pass
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def tiny_server(model: Path, port: int) -> tuple[str, ...]:
    return sys.executable, "-c", SERVER, str(model), str(port)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploying, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(servers, "LOOK_SECONDS", 0.02)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    servers.stop_servers(tmp_path, seconds=1.0)


class Releases:
    """A registry with versions that were approved one after another."""

    def __init__(self, home: Path) -> None:
        shelf = Shelf()
        shelf.add_dataset("d1", "doc-1")
        self._home, self._base = home, make_model(home / "base", "base")
        self._hours = itertools.count(1)
        self.registry = Registry(home, shelf, told=lambda versions: None, live=lambda: "g1", now=self._now)

    def _now(self) -> datetime:
        return NOW.replace(hour=next(self._hours) % 24)

    def candidate(self, name: str) -> ModelVersion:
        champion = self.registry.champion()
        run = make_run(self._home / "runs" / name, self._base, weights=name)
        return self.registry.register(run, evaluated(run, Path(champion.folder) if champion else self._base))

    def champion(self, name: str) -> ModelVersion:
        return self.registry.approve(self.candidate(name).id, by="Ada", rules=RULES)


@pytest.fixture
def releases(home: Path) -> Releases:
    return Releases(home)


def put(home: Path, version: ModelVersion, share: float = 0.1, url: str = "http://127.0.0.1:9") -> Deployment:
    return deploy(home, lambda: version, url=url, model=version.folder, share=share, now=NOW)


# What is deployed


def test_the_first_approved_version_gives_all_answers_at_once(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))

    told = json.loads((home / "deployment.json").read_bytes())
    assert told["champion"]["version"] == "twin-1"
    assert told["champion"]["since"] == "2026-06-20T00:00:00Z"
    assert told["canary"] is None
    assert told["former"] is None


def test_a_candidate_is_a_canary_beside_the_champion(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))

    put(home, releases.candidate("second"), share=0.25)

    deployment = read(home)
    assert deployment.canary is not None
    assert deployment.champion is not None
    assert (deployment.champion.version, deployment.canary.version, deployment.canary.share) == (
        *("twin-1", "twin-2"),
        0.25,
    )


def test_what_is_not_approved_never_gives_all_answers(home: Path, releases: Releases) -> None:
    with pytest.raises(CannotDeploy, match="no champion answers yet"):
        put(home, releases.candidate("first"))
    releases.registry.approve("twin-1", by="Ada", rules=RULES)
    put(home, releases.registry.version("twin-1"))
    second = releases.candidate("second")

    with pytest.raises(CannotDeploy, match="with share 1"):
        put(home, second, share=1.0)
    put(home, second)
    with pytest.raises(CannotDeploy, match="twin model approve twin-2"):
        promote(home, lambda: second, now=NOW)
    assert read(home).canary is not None


def test_a_rejected_version_and_a_second_canary_are_refused(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))
    second, third = releases.candidate("second"), releases.candidate("third")
    put(home, second)

    with pytest.raises(CannotDeploy, match="twin-2 is the canary now"):
        put(home, third)
    with pytest.raises(CannotDeploy, match="was rejected"):
        put(home, releases.registry.reject(second.id, by="Ada", reason="x"))


def test_the_champion_deployed_again_has_another_address_and_nothing_else_changes(
    home: Path, releases: Releases
) -> None:
    first = releases.champion("first")
    put(home, first)
    before = put(home, releases.candidate("second"))

    after = put(home, first, url="http://127.0.0.1:10")

    assert before.champion is not None
    assert after == msgspec.structs.replace(
        before, champion=msgspec.structs.replace(before.champion, url="http://127.0.0.1:10")
    )


def test_a_canary_that_is_promoted_makes_the_champion_the_former(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))
    second = releases.champion("second")
    put(home, second)

    promote(home, lambda: second, now=NOW)

    deployment = read(home)
    assert deployment.canary is None
    assert deployment.champion is not None
    assert deployment.former is not None
    assert (deployment.champion.version, deployment.former.version) == ("twin-2", "twin-1")


def test_a_canary_is_taken_back_and_then_there_is_none(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))
    put(home, releases.candidate("second"))

    assert take_back(home).version == "twin-2"

    assert read(home).canary is None
    for refused in (partial(take_back, home), partial(compared, home, {}, CanaryRules())):
        with pytest.raises(CannotDeploy, match="there is no canary"):
            refused()


def test_what_is_withdrawn_gives_no_answers_and_its_server_ends(home: Path, releases: Releases) -> None:
    first = releases.champion("first")
    server = deploying.serve(home, first, wait=20, command=tiny_server)
    put(home, first, url=server.url)
    put(home, releases.candidate("second"))

    assert deploying.withdraw(home) == ["twin-1", "twin-2"]

    assert (read(home), servers.runs(server)) == (Deployment(), False)
    assert deploying.withdraw(home) == []
    assert releases.registry.version("twin-1").state == "champion"


def test_two_who_deploy_a_version_at_once_share_one_server(home: Path, releases: Releases) -> None:
    first = releases.champion("first")
    with ThreadPoolExecutor(2) as both:
        served = list(both.map(lambda _: deploying.serve(home, first, wait=20, command=tiny_server), range(2)))

    assert served[0] == served[1]
    assert servers.stop_servers(home, seconds=5) == ["twin-1"]
    assert not servers.runs(served[0])


def test_a_deployment_that_cannot_be_read_is_not_written_over(home: Path, releases: Releases) -> None:
    (home / "deployment.json").write_text('{"champion": 7}')

    with pytest.raises(CannotDeploy, match=r"deployment\.json cannot be read"):
        put(home, releases.champion("first"))
    assert (home / "deployment.json").read_text() == '{"champion": 7}'


def test_what_is_decided_while_a_server_loads_holds(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))
    second = releases.candidate("second")
    current = partial(releases.registry.deployable, second.id)
    releases.registry.reject(second.id, by="Ada", reason="it swears")

    with pytest.raises(CannotDeploy, match="was rejected"):
        deploy(home, current, url="http://127.0.0.1:9", model="m", share=0.5, now=NOW)

    assert read(home).canary is None


def test_another_canary_than_the_one_that_was_followed_is_not_taken_back(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))
    put(home, releases.candidate("second"))

    with pytest.raises(CannotDeploy, match="twin-2 is the canary by now, not twin-9"):
        take_back(home, of="twin-9")
    with pytest.raises(CannotDeploy, match="twin-2 is the canary by now"):
        compared(home, {}, CanaryRules(), of="twin-9")

    assert read(home).canary is not None


def test_who_answers_is_not_rejected_before_it_is_taken_back(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))
    second = releases.candidate("second")
    put(home, second)

    with pytest.raises(CannotDeploy, match="deploy --rollback"):
        deploying.reject(home, releases.registry, "2", by="Ada", reason="it swears")
    assert releases.registry.version("2").state == "candidate"

    take_back(home)
    assert deploying.reject(home, releases.registry, "2", by="Ada", reason="it swears").state == "rejected"


def test_a_former_champion_that_still_gives_the_answers_is_not_rejected(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))
    releases.champion("second")

    with pytest.raises(CannotDeploy, match="gives the answers: deploy another"):
        deploying.reject(home, releases.registry, "1", by="Ada", reason="it is old")
    assert releases.registry.version("1").state == "former"


def test_the_first_champion_is_rejected_once_nobody_is_answered_by_it(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))

    with pytest.raises(CannotDeploy, match="deploy --withdraw"):
        deploying.reject(home, releases.registry, "1", by="Ada", reason="it swears")
    assert releases.registry.version("1").state == "champion"

    deploying.withdraw(home)
    assert deploying.reject(home, releases.registry, "1", by="Ada", reason="it swears").state == "rejected"
    assert releases.registry.champion() is None


def test_nobody_else_reads_what_is_deployed_and_a_home_made_here_is_the_owner_s(
    tmp_path: Path, releases: Releases
) -> None:
    first, home = releases.champion("first"), tmp_path / "new"

    put(home, first)

    assert (home / "deployment.json").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in home.iterdir()} == {"deployment.json", "deployment.lock"}


def test_a_change_that_never_ends_holds_nobody_up_for_ever(
    home: Path, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = releases.champion("first")
    monkeypatch.setattr(deploying, "CHANGE_SECONDS", 0.05)

    with deploying._changing(home), pytest.raises(CannotDeploy, match="another command has been changing"):
        put(home, first)


# Comparing


def test_intervals_of_shares_are_those_of_the_papers() -> None:
    # Newcombe 1998, table II, example (a): 56/70 and 48/80, method 10.
    assert difference_of_shares((56, 70), (48, 80)) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    # Newcombe 1998 (single proportions), table I, method 3: 81/263, and 0/20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def timed(answers: int, failed: int = 0, pace: float = 1.0) -> Counts:
    """Its finished answers took from half to one and a half times `pace` seconds, evenly."""
    finished = answers - failed
    seconds = tuple(pace * (0.5 + (at * 7 % finished) / finished) for at in range(finished))
    return Counts(answers=answers, failed=failed, seconds=seconds)


GOOD = timed(200, failed=2)


@pytest.mark.parametrize(
    ("canary", "what", "told"),
    [
        (timed(80), "promote", "0 of 80"),
        (timed(40, failed=25), "take back", "25 of 40"),
        (timed(80, failed=16), "wait", "16 of 80"),
        (timed(80, pace=1.9), "take back", "1.89 times as long"),
        (timed(25, pace=4.0), "take back", "3.91 times as long"),
        (timed(80, pace=1.5), "wait", "1.49 times as long"),
        (timed(59), "wait", "finished 59 of the 60 answers"),
        (timed(3, failed=3), "wait", "3 of 20 answers"),
        (timed(40, failed=40), "take back", "40 of 40"),
    ],
)
def test_a_canary_is_judged_by_the_intervals_of_its_failures_and_of_its_slowest_answers(
    canary: Counts, what: str, told: str
) -> None:
    verdict = compare(canary, GOOD, CanaryRules())

    assert verdict.what == what
    assert told in " ".join(verdict.reasons)


def test_a_champion_that_is_hardly_asked_is_no_measure() -> None:
    verdict = compare(GOOD, timed(5), CanaryRules())

    assert (verdict.what, verdict.reasons) == ("wait", ("the champion gave 5 of 20 answers",))


def told_by_app(**counts: tuple[int, int]) -> dict[str, Any]:
    models = {
        name.replace("_", "-"): {"answers": asked, "failed": failed, "latest": [1.0] * (asked - failed)}
        for name, (asked, failed) in counts.items()
    }
    return {"models": models}


def test_what_either_answered_before_the_canary_began_is_not_compared(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))
    put(home, releases.candidate("second"))
    note_baseline(home, {"models": {"twin-1": {"answers": 400, "failed": 0, "latest": [9.0] * 400}}})

    def told(champion: list[float], canary: list[float]) -> dict[str, Any]:
        latest = {"twin-1": ([9.0] * 400 + champion)[-500:], "twin-2": canary}
        answers = {"twin-1": 400 + len(champion), "twin-2": len(canary)}
        return {"models": {id: {"answers": answers[id], "failed": 0, "latest": each} for id, each in latest.items()}}

    # By the answers of before, the champion would be as slow as the canary.
    assert compared(home, told([1.0] * 80, [9.0] * 80), CanaryRules()).what == "take back"
    assert compared(home, told([9.0] * 80, [9.0] * 80), CanaryRules()).what == "promote"


def test_where_the_app_was_away_as_the_canary_began_its_time_begins_when_it_is_back(
    home: Path, releases: Releases
) -> None:
    put(home, releases.champion("first"))
    put(home, releases.candidate("second"))
    note_baseline(home, told_by_app(twin_1=(10, 0)))
    take_back(home)
    second = releases.registry.version("twin-2")
    deploy(home, lambda: second, url="http://127.0.0.1:9", model="m", share=0.1, now=NOW.replace(hour=7))

    first = compared(home, told_by_app(twin_1=(500, 0), twin_2=(90, 90)), CanaryRules())
    later = compared(home, told_by_app(twin_1=(600, 0), twin_2=(170, 90)), CanaryRules())

    assert (first.what, "from now on" in first.reasons[0]) == ("wait", True)
    assert (later.what, "0 of 80" in later.reasons[0]) == ("promote", True)


def test_failures_of_a_former_time_as_canary_are_not_held_against_it(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"))
    put(home, releases.candidate("second"))
    note_baseline(home, told_by_app(twin_1=(500, 0), twin_2=(30, 30)))

    verdict = compared(home, told_by_app(twin_1=(600, 0), twin_2=(110, 30)), CanaryRules())

    assert verdict.what == "promote"
    assert "0 of 80" in verdict.reasons[0]


def test_an_app_that_was_started_anew_counts_from_nothing() -> None:
    assert since(Counts(answers=7, failed=1), Counts(answers=90, failed=0)) == Counts(answers=7, failed=1)


def test_a_canary_is_followed_until_there_is_a_verdict_or_the_time_is_over() -> None:
    clock = itertools.count(0.0, 10.0)
    answers = iter([1, 10, 80])
    said: list[str] = []

    def ask() -> deploying.Verdict:
        return compare(timed(next(answers)), GOOD, CanaryRules())

    verdict = follow(ask, wait=100, say=said.append, sleep=lambda seconds: None, clock=lambda: next(clock))
    assert verdict.what == "promote"
    assert said[:2] == ["the canary gave 1 of 20 answers", "the canary gave 10 of 20 answers"]

    answers = iter([1, 2, 3, 4])
    late = follow(ask, wait=15, say=said.append, sleep=lambda seconds: None, clock=lambda: next(clock))
    assert late.what == "wait"


def test_an_app_that_is_away_for_a_moment_is_asked_again(home: Path) -> None:
    clock, said = itertools.count(0.0, 10.0), list[str]()
    answers: Iterator[deploying.Verdict | None] = iter([None, deploying.Verdict(what="promote", reasons=("good",))])

    def ask() -> deploying.Verdict:
        found = next(answers, None)
        if found is None:
            raise AppUnavailable("the app does not tell")
        return found

    patient = partial(follow, ask, say=said.append, sleep=lambda seconds: None, clock=lambda: next(clock))

    assert patient(wait=100).what == "promote"
    assert said == ["the app does not tell", "good"]
    assert patient(wait=15) == deploying.Verdict(what="wait", reasons=("the app does not tell",))


def test_an_app_that_is_away_or_tells_nonsense_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(AppUnavailable, match="twin up"):
        app_status(load({"TWIN_HOME": str(tmp_path)}))
    with pytest.raises(AppUnavailable, match="does not tell"):
        app_status(load({"TWIN_HOME": str(tmp_path), "TWIN_APP_URL": f"http://127.0.0.1:{servers.free_port()}"}))


# Servers


def test_a_server_is_ready_when_the_model_says_a_token_and_stays_until_it_is_stopped(
    home: Path, releases: Releases
) -> None:
    version = releases.champion("first")

    server = deploying.serve(home, version, wait=20, command=tiny_server)

    assert deploying.serve(home, version, wait=20, command=tiny_server) == server, "it is not started twice"
    assert servers.runs(server)
    assert servers.stop_servers(home, seconds=5.0) == ["twin-1"]
    assert not servers.runs(server)
    assert servers.stop_servers(home) == []


def test_a_server_that_ends_is_told_of_with_its_last_words(home: Path, releases: Releases) -> None:
    version = releases.champion("first")

    def failing(model: Path, port: int) -> tuple[str, ...]:
        return sys.executable, "-c", "raise SystemExit('no room for the model')"

    with pytest.raises(ServerFailed, match="no room for the model"):
        deploying.serve(home, version, wait=20, command=failing)


def test_a_server_that_is_never_ready_is_ended(home: Path, releases: Releases) -> None:
    version = releases.champion("first")

    def silent(model: Path, port: int) -> tuple[str, ...]:
        return sys.executable, "-c", "import time; time.sleep(60)"

    with pytest.raises(ServerFailed, match=r"not ready after 0\.2 s"):
        deploying.serve(home, version, wait=0.2, command=silent)
    assert servers.stop_servers(home) == []


def test_a_program_that_is_not_there_is_told_of(home: Path, releases: Releases) -> None:
    with pytest.raises(ServerFailed, match="cannot be started"):
        deploying.serve(home, releases.champion("first"), wait=1, command=lambda model, port: ("/no/such/program",))


PARENT = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(" ".join(name for name in os.environ if name.startswith("TWIN_")))
"""


def test_what_a_server_started_ends_with_it_also_when_its_first_process_has_died(home: Path) -> None:
    told = home / "told"
    server = servers.start(home, "twin-1", (sys.executable, "-c", PARENT, str(told)), model="m", port=1)
    until(lambda: told.exists() and not servers.runs(server))
    assert servers._processes(server), "its child is still there"

    assert servers.stop_servers(home, seconds=5.0) == ["twin-1"]

    assert servers._processes(server) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from training.release import servers
spawn = os.posix_spawnp
def spawned(*given, **more):
    print(spawn(*given, **more), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
os.posix_spawnp = spawned
servers.start(Path(sys.argv[1]), "twin-1", (sys.executable, "-c", "import time; time.sleep(60)"), model="m", port=1)
"""


def test_a_server_whose_starter_was_killed_before_it_noted_the_process_is_found_and_ended(home: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(home)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=False)
    pid = int(killed.stdout)
    assert servers._started(pid) is not None
    # Until then it is still a copy of what started it.
    until(lambda: b"time.sleep" in Path(f"/proc/{pid}/cmdline").read_bytes())

    assert servers.stop_servers(home, seconds=5.0) == ["twin-1"]

    until(lambda: servers._started(pid) is None)


def test_a_server_that_never_answered_is_not_started_again(home: Path, releases: Releases) -> None:
    version = releases.champion("first")
    server = idle_server(home, version.id)
    servers.stop(server, seconds=5.0)
    put(home, version, url=server.url)

    assert deploying.resume(home, wait=0.1, say=pytest.fail) == []

    assert servers.served(home, version.id) == server


def test_a_server_that_answered_once_stays_one_that_is_started_again(home: Path, releases: Releases) -> None:
    version = releases.champion("first")
    server = deploying.serve(home, version, wait=20, command=tiny_server)
    assert server.state == "ready"
    servers.stop(server, seconds=5.0)

    again = servers.again(home, server)

    assert (again.state, again.url, again.pid == server.pid) == ("ready", server.url, False)


def test_a_program_that_is_gone_takes_no_record_with_it(home: Path) -> None:
    server = idle_server(home, "twin-1")
    servers.stop(server, seconds=5.0)

    for version in ("twin-1", "twin-2"):
        with pytest.raises(ServerFailed, match="cannot be started"):
            servers.start(home, version, ("/no/such/program",), model="m", port=1)

    assert (servers.served(home, "twin-1"), servers.served(home, "twin-2")) == (server, None)


def test_a_server_sees_none_of_the_program_s_own_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWIN_LLM_API_KEY", "zqsecretzq")
    seen = home / "seen"
    shows = "import os, sys; open(sys.argv[1], 'w').write(str(dict(os.environ)) + 'end')"

    servers.start(home, "twin-1", (sys.executable, "-c", shows, str(seen)), model="m", port=1)

    until(lambda: seen.exists() and seen.read_text().endswith("end"))
    assert "zqsecretzq" not in seen.read_text()
    assert "HF_HUB_OFFLINE" in seen.read_text()


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for_beyond_the_limit() -> None:
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            # A read takes a fraction of the limit, all of them together would take a hundred times as long.
            for _ in range(600):
                if over.wait(0.05):
                    break
                try:
                    self.wfile.write(b" ")
                except OSError:
                    break

        def log_message(self, *_: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(ServerFailed, match="does not answer within"):
            servers.answer_one_token(f"http://127.0.0.1:{server.server_port}", "m", seconds=0.3)
        over.set()
        thread.join()


SUPERVISOR = """
import fcntl, os, signal, sys, time
from pathlib import Path
from training.release import servers
home = Path(sys.argv[1])
lock = (home / "supervisor.lock").open("a+")
fcntl.flock(lock, fcntl.LOCK_EX)
def ends(*_):
    servers.start(home, "twin-1", (sys.executable, "-c", "import time; time.sleep(60)"), model="m", port=1)
    os._exit(0)
signal.signal(signal.SIGTERM, ends)
lock.write(str(os.getpid()))
lock.flush()
time.sleep(60)
"""


def test_a_server_that_is_started_again_while_everything_is_stopped_is_stopped_too(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from embedded import commands
    from embedded.home import supervisor

    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    namespace = parser.parse_args(["down"])
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(home)], cwd=Path(__file__).parents[2]):
        until(lambda: (home / "supervisor.lock").exists() and (home / "supervisor.lock").read_text() != "")
        assert supervisor(home)

        assert namespace.handler(namespace, load({"TWIN_HOME": str(home)})) == 0

    server = servers.served(home, "twin-1")
    assert server is not None
    assert not servers.runs(server)
    assert capsys.readouterr().out == "stopped\n"


def test_another_process_with_the_same_id_is_not_stopped(home: Path) -> None:
    here = servers.Served(
        version="twin-1", pid=os.getpid(), started="a boot of yore 17", url="", port=1, model="", command=(), log=""
    )

    assert not servers.runs(here)
    assert not servers.stop(here)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, b'{"choices": []}', "without a choice"),
        (200, b"<html>", "does not speak"),
        (200, b'{"choices": [{"message": "hi"}]}', "does not speak"),
        (500, b"out of memory", "out of memory"),
    ],
)
def test_an_open_port_is_not_enough(status: int, body: bytes, told: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(ServerFailed, match=told):
            servers.answer_one_token(f"http://127.0.0.1:{server.server_port}", "m")
        thread.join()


def test_a_password_in_an_address_is_never_told() -> None:
    with pytest.raises(ServerFailed) as failed:
        servers.answer_one_token(f"http://ada:hunter2@127.0.0.1:{servers.free_port()}", "m")

    assert "hunter2" not in str(failed.value)


def test_a_key_goes_to_the_address_that_it_belongs_to_alone(tmp_path: Path) -> None:
    given = {"TWIN_HOME": str(tmp_path), "TWIN_LLM_API_KEY": "k", "TWIN_LLM_URL": "http://models.example:8000/v1"}

    assert servers.key_for(load(given), "http://models.example:8000") == "k"
    assert servers.key_for(load(given), "http://127.0.0.1:8000") is None


@pytest.mark.parametrize("kind", servers.SERVERS)
def test_every_kind_of_server_names_the_model_and_the_port(kind: str, tmp_path: Path) -> None:
    command = " ".join(servers.SERVERS[kind].command(tmp_path / "model", 8123))

    assert str(tmp_path / "model") in command
    assert "8123" in command
    assert "0.0.0.0" not in command


# Going back


class Reader(threading.Thread):
    """Asks whoever is champion at each moment, as the app does, until it is told to stop."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._home, self._over = home, threading.Event()
        self.answered: list[str] = []
        self.failed: list[str] = []

    def run(self) -> None:
        with httpx2.Client(timeout=5.0, trust_env=False) as client:
            while not self._over.is_set():
                champion = read(self._home).champion
                assert champion is not None
                body = {"model": champion.model, "messages": []}
                try:
                    client.post(f"{champion.url}/v1/chat/completions", json=body).raise_for_status()
                    self.answered.append(champion.version)
                except httpx2.HTTPError as error:
                    self.failed.append(f"{champion.version}: {error}")

    def stop(self) -> None:
        self._over.set()
        self.join()


def serving(home: Path, version: ModelVersion, share: float = 1.0) -> servers.Served:
    server = deploying.serve(home, version, wait=20, command=tiny_server)
    put(home, version, share=share, url=server.url)
    return server


def roll_back(home: Path, releases: Releases) -> tuple[ModelVersion, ModelVersion | None]:
    return deploying.rollback(home, releases.registry, by="Ada", reason="complaints", now=NOW, wait=20.0, seconds=5.0)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


@contextmanager
def listening() -> Iterator[str]:
    """A server within this process, started by somebody else as far as the home knows."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"choices": [{"message": {}}]}')

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_question_is_answered_while_the_former_champion_comes_back(home: Path, releases: Releases) -> None:
    with listening() as first, listening() as second:
        put(home, releases.champion("first"), share=1.0, url=first)
        put(home, releases.champion("second"), share=1.0, url=second)
        reader = Reader(home)
        reader.start()
        until(lambda: "twin-2" in reader.answered)

        restored, withdrawn = roll_back(home, releases)

        until(lambda: "twin-1" in reader.answered)
        reader.stop()
    assert reader.failed == []
    assert (restored.id, withdrawn and withdrawn.id) == ("twin-1", "twin-2")
    assert releases.registry.version("champion").id == "twin-1"


@pytest.mark.integration
@pytest.mark.parametrize("former_runs", [True, False])
def test_the_former_s_server_answers_before_the_other_s_is_stopped(
    home: Path, releases: Releases, former_runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As it is: this reader may be slow to ask whom it has just looked up.
    monkeypatch.setattr(deploying, "GRACE_SECONDS", 1.0)
    first = serving(home, releases.champion("first"))
    second = serving(home, releases.champion("second"))
    if not former_runs:
        servers.stop(first, seconds=5.0)
    reader = Reader(home)
    reader.start()
    until(lambda: "twin-2" in reader.answered)

    restored, withdrawn = roll_back(home, releases)

    until(lambda: "twin-1" in reader.answered)
    reader.stop()
    assert reader.failed == []
    assert (restored.id, withdrawn and withdrawn.id) == ("twin-1", "twin-2")
    assert not servers.runs(second)
    assert releases.registry.version("champion").id == "twin-1"


@pytest.mark.integration
def test_a_rollback_takes_an_approved_canary_back_too(home: Path, releases: Releases) -> None:
    serving(home, releases.champion("first"))
    canary = serving(home, releases.champion("second"), share=0.5)

    roll_back(home, releases)

    deployment = read(home)
    assert deployment.champion is not None
    assert (deployment.champion.version, deployment.canary) == ("twin-1", None)
    assert not servers.runs(canary)


def test_a_rollback_restores_whom_it_chose_or_nobody(home: Path, releases: Releases) -> None:
    with listening() as first, listening() as second:
        put(home, releases.champion("first"), share=1.0, url=first)
        put(home, releases.champion("second"), share=1.0, url=second)
        deployed = (home / "deployment.json").read_bytes()

        def decide(url: str) -> None:
            # While the former's server is asked, somebody approves a third.
            releases.champion("third")

        with pytest.raises(NotReleased, match="twin-1 was to be restored, and meanwhile"):
            deploying.rollback(
                home, releases.registry, by="Ada", reason="complaints", now=NOW, wait=20.0, key=decide, seconds=5.0
            )

    assert (home / "deployment.json").read_bytes() == deployed
    assert releases.registry.version("champion").id == "twin-3"


def test_a_rollback_that_finds_another_deployment_in_the_end_changes_nothing(home: Path, releases: Releases) -> None:
    with listening() as first, listening() as second:
        put(home, releases.champion("first"), share=1.0, url=first)
        put(home, releases.champion("second"), share=1.0, url=second)
        third = releases.candidate("third")

        def begin(url: str) -> None:
            put(home, third, share=0.5, url=second)

        with pytest.raises(CannotDeploy, match="somebody changed what is deployed"):
            deploying.rollback(
                home, releases.registry, by="Ada", reason="complaints", now=NOW, wait=20.0, key=begin, seconds=5.0
            )

    assert releases.registry.version("champion").id == "twin-2"
    assert read(home).canary is not None


def idle_server(home: Path, version: str) -> servers.Served:
    return servers.start(
        home, version, (sys.executable, "-c", "import time; time.sleep(60)"), model="m", port=servers.free_port()
    )


def test_the_server_of_the_former_s_former_ends(home: Path, releases: Releases) -> None:
    put(home, releases.champion("first"), share=1.0)
    put(home, releases.champion("second"), share=1.0)
    first, second = idle_server(home, "twin-1"), idle_server(home, "twin-2")
    third = releases.champion("third")
    put(home, third)
    assert servers.runs(first), "a canary takes nobody's place"

    promote(home, lambda: third, now=NOW, seconds=5.0)
    assert (servers.runs(first), servers.runs(second)) == (False, True)

    put(home, releases.champion("fourth"), share=1.0)
    assert not servers.runs(second)


def test_a_rollback_that_was_broken_off_and_is_repeated_leaves_no_server(home: Path, releases: Releases) -> None:
    with listening() as first, listening() as second:
        put(home, releases.champion("first"), share=1.0, url=first)
        put(home, releases.champion("second"), share=1.0, url=second)
        withdrawn = idle_server(home, "twin-2")
        champion = read(home).former
        assert champion is not None
        # It was killed after the app was told, and before the registry was.
        deploying._write(home, Deployment(champion=champion))

        roll_back(home, releases)

    assert releases.registry.version("champion").id == "twin-1"
    assert not servers.runs(withdrawn)


def test_a_server_that_was_started_for_a_deployment_that_is_refused_ends(home: Path, releases: Releases) -> None:
    version = releases.candidate("first")

    def refused(start: Callable[[], object]) -> None:
        with deploying.kept_if_deployed(home, version):
            start()
            put(home, version)

    with pytest.raises(CannotDeploy, match="no champion answers yet"):
        refused(partial(idle_server, home, version.id))
    started = servers.served(home, version.id)
    assert started is not None
    assert not servers.runs(started)

    server = idle_server(home, version.id)
    with pytest.raises(CannotDeploy, match="no champion answers yet"):
        refused(lambda: None)
    assert servers.runs(server), "it ran before"


def test_without_a_server_of_the_former_nothing_changes(home: Path, releases: Releases) -> None:
    url = f"http://127.0.0.1:{servers.free_port()}"
    put(home, releases.champion("first"), url=url)
    put(home, releases.champion("second"), share=1.0)

    with pytest.raises(ServerFailed, match=f"start its server at {url}, then again"):
        roll_back(home, releases)

    deployment = read(home)
    assert deployment.champion is not None
    assert deployment.champion.version == "twin-2"
    assert releases.registry.version("champion").id == "twin-2"


def test_a_former_that_was_never_served_is_told_of(home: Path, releases: Releases) -> None:
    releases.champion("first")
    put(home, releases.champion("second"))

    with pytest.raises(CannotDeploy, match="nobody knows where twin-1 is served"):
        roll_back(home, releases)


def test_where_nothing_is_deployed_the_registry_alone_goes_back(home: Path, releases: Releases) -> None:
    releases.champion("first")
    releases.champion("second")

    assert roll_back(home, releases)[0].id == "twin-1"
    assert read(home) == Deployment()
    with pytest.raises(NotReleased, match="no former champion"):
        roll_back(home, releases)


@pytest.mark.integration
def test_what_was_deployed_is_served_again_after_everything_was_stopped(home: Path, releases: Releases) -> None:
    server = serving(home, releases.champion("first"))
    servers.stop_servers(home, seconds=5.0)

    assert deploying.resume(home, wait=20.0, say=pytest.fail) == ["twin-1"]

    servers.answer_one_token(server.url, server.model)
    assert deploying.resume(home, wait=20.0, say=pytest.fail) == [], "it runs already"


def test_the_app_reads_what_is_written(home: Path, releases: Releases) -> None:
    from serving.deployment import Deployment as Read  # what it imports takes a while

    put(home, releases.champion("first"))
    put(home, releases.candidate("second"), share=0.2)

    found = msgspec.json.decode((home / "deployment.json").read_bytes(), type=Read)

    assert found.champion is not None
    assert found.canary is not None
    assert (found.champion.version, found.canary.version, found.canary.share) == ("twin-1", "twin-2", 0.2)


# A real model


@pytest.mark.integration
def test_transformers_serves_a_version_and_answers_a_token(home: Path, releases: Releases) -> None:
    # What `transformers serve` needs.
    for needed in ("torch", "transformers", "fastapi", "openai"):
        pytest.importorskip(needed)
    from training import tiny

    version = releases.champion("first")
    folder = home / "tiny"
    tiny.make(["Green tea is steeped at eighty degrees."] * 50, folder, seed=0, hidden=32, layers=1, heads=2, steps=0)
    real = msgspec.structs.replace(version, folder=str(folder))

    server = deploying.serve(home, real, wait=120.0)

    servers.answer_one_token(server.url, server.model)
    with pytest.raises(ServerFailed, match="400"):
        servers.answer_one_token(server.url, "another")
    target = Target(version=version.id, url=server.url, model=server.model, since=NOW)
    assert target.model == str(folder)
    assert servers.stop_servers(home, seconds=20.0) == ["twin-1"]
