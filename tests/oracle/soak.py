"""Seeded random operations and faults against the oracle: `make soak SEED=7 OPS=100000`.

After every few operations everything is brought to rest, and then index, ledger and compacted topics equal what the
oracle computes from the warehouse alone. A failure tells the seed, the operation and the first difference.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from world import Killed, Process, Turns, World

from corpus.documents import Document, new_document
from corpus.points import IndexUnavailable
from streaming.changes import Message

WORDS = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "jetty", "kelp"),
    *("lagoon", "meadow", "nectar", "orchard", "prairie"),
)
SECTIONS = 30
SECTION_WORDS = 40
NAMES = 400
AUTHORS = 25
START = datetime(2026, 1, 1, tzinfo=UTC)
# Relative: how often each is done.
OPERATIONS = {
    "word": 30,
    "insert": 18,
    "delete": 10,
    "title": 5,
    "moved": 6,
    "truncated": 4,
    "heading": 4,
    "twice": 3,
    "metadata": 5,
    "category": 3,
    "renamed": 2,
    "refused": 3,
    "malformed": 2,
    "back": 3,
    "recrawled": 2,
    "foreign": 1,
    "author": 0.1,
}
FAULTS = {
    "killed": 10,
    "redelivered": 4,
    "old offset": 3,
    "duplicated": 4,
    "away": 4,
    "two workers": 8,
    "compacted": 1,
    "cut history": 0.5,
    "log lost": 0.3,
}
FAULTY = 0.06
TELL_SECONDS = 10.0
# Every effect waits for the disk, where there is one: hundreds of thousands of them are done in memory.
MEMORY = Path("/dev/shm")
READ = 0.25


class Unequal(AssertionError):
    """What is there is not what the oracle says; the message has seed, operation and the first difference."""


class Soak:
    """One world, changed at random."""

    def __init__(self, directory: Path, seed: int, names: int = NAMES) -> None:
        self.seed, self.names = seed, names
        self.random = random.Random(seed)
        self.world = World(directory, random.Random(seed + 1))
        self.process = self.world.process()
        self.operation = 0
        self.counts: Counter[str] = Counter()
        self.recent: list[str] = []

    def run(self, operations: int, progress: Callable[[Soak], None] = lambda soak: None) -> None:
        """Raises Unequal at the first difference."""
        rest = self.random.randint(20, 150)
        for _ in range(operations):
            self.operation += 1
            self.change()
            if self.random.random() < READ:
                self.read()
            if self.random.random() < FAULTY:
                (fault,) = self.random.choices(list(FAULTS), list(FAULTS.values()))
                self.note(fault)
                self.fault(fault)
            if self.operation % rest == 0 or self.operation == operations:
                self.settle()
                rest = self.random.randint(20, 150)
                progress(self)

    def note(self, what: str) -> None:
        self.counts[what] += 1
        self.recent.append(f"{self.operation} {what}")
        del self.recent[:-400]

    # What people do

    def change(self) -> None:
        (what,) = self.random.choices(list(OPERATIONS), list(OPERATIONS.values()))
        self.counts[what] += 1
        existing = list(self.world.documents)
        if what == "insert" or not existing:
            self.put(self.written(f"d{self.random.randrange(self.names)}"))
            return
        id = self.random.choice(existing)
        held = self.world.documents[id]
        last = held.former[-1] if held.former else self.written(f"d{self.random.randrange(self.names)}")
        if what == "delete":
            self.world.remove(id)
        elif what == "author":
            for other in existing:
                if self.world.documents[other].record["author_name"] == held.record["author_name"]:
                    self.world.remove(other)
        elif what == "renamed":
            if id == last.id:
                self.world.remove(id)
                self.put(edited(last, url=f"https://example.org/d{self.random.randrange(self.names)}"))
        elif what == "refused":
            text, category = self.random.choice([("  \n\n ", "article"), (last.text, "poem")])
            self.put(edited(last, text=text, category=category, crawled_at=self.now()))
        elif what == "malformed":
            self.world.put(
                edited(last, title=f"Malformed {self.operation}"), platform=self.random.choice([None, 5, []])
            )
        elif what == "back":
            # Edited and edited back, often before anybody looked.
            self.put(edited(last, title="For a moment", crawled_at=self.now()))
            if self.random.random() < 0.5:
                self.read()
            self.put(self.random.choice([last, edited(last, crawled_at=self.now())]))
        elif what == "recrawled":
            self.put(edited(last, crawled_at=self.now(), crawl_id=f"crawl-{self.operation}"))
        elif what == "foreign":
            self.world.append_foreign(self.written("d0"))
        else:
            self.put(self.edited(what, last))

    def put(self, document: Document) -> None:
        self.world.put(document)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.operation)

    def written(self, name: str) -> Document:
        source = self.random
        sections = [section(source.randrange(SECTIONS)) for _ in range(source.randint(1, 4))]
        return new_document(
            url=f"https://example.org/{name}",
            category=source.choices(["article", "post", "code"], [6, 2, 1])[0],
            platform="example.org",
            author_name=f"Author {source.randrange(AUTHORS)}",
            title=f"About {source.choice(WORDS)}",
            text=f"# Notes {source.randrange(9)}\n\n" + "\n\n".join(sections),
            crawl_id=f"crawl-{self.operation}",
            crawled_at=self.now(),
            published_at=source.choice([None, START - timedelta(days=source.randrange(900))]),
            metadata={"language": source.choice([None, "en", "de"])},
        )

    def edited(self, what: str, last: Document) -> Document:
        source = self.random
        head, *sections = last.text.split("\n\n## ")
        when = {"crawled_at": self.now(), "crawl_id": f"crawl-{self.operation}"}
        if what == "title":
            return edited(last, title=f"On {source.choice(WORDS)} {source.randrange(3)}", **when)
        if what == "metadata":
            change = source.choice(["author_name", "published_at", "language"])
            if change == "author_name":
                return edited(last, author_name=f"Author {source.randrange(AUTHORS)}", **when)
            if change == "language":
                return edited(last, metadata={"language": source.choice(["en", "fr"])}, **when)
            return edited(last, published_at=START - timedelta(days=source.randrange(900)), **when)
        if what == "category":
            return edited(last, category=source.choice(["article", "post", "code"]), **when)
        if what == "heading":
            head = f"# Notes {source.randrange(9)}"
        elif what == "moved":
            source.shuffle(sections)
        elif what == "truncated" and sections:
            del sections[source.randrange(len(sections)) :]
        elif what == "twice":
            # The same passage a second time is another point.
            sections.append(source.choice(sections) if sections else section(1).removeprefix("## "))
            del sections[:-6]
        elif sections:
            number = source.randrange(len(sections))
            words = sections[number].split(" ")
            words[source.randrange(1, len(words))] = f"{source.choice(WORDS)}{source.randrange(100)}"
            sections[number] = " ".join(words)
        if not any(each.strip() for each in sections):
            sections = [section(source.randrange(SECTIONS)).removeprefix("## ")]
        return edited(last, text="\n\n## ".join([head, *sections]), **when)

    # What the dataflow does

    def read(self) -> None:
        self.process.apply(self.shuffled(self.process.read(self.random.randint(1, 32))))

    def shuffled(self, messages: list[Message]) -> list[Message]:
        """Messages of different documents in another order; those of one keep theirs."""
        if self.random.random() < 0.7:
            return messages
        order = sorted(range(len(messages)), key=lambda number: self.random.random())
        keys = [messages[number].key for number in order]
        waiting = {key: iter([each for each in messages if each.key == key]) for key in set(keys)}
        return [next(waiting[key]) for key in keys]

    def restart(self) -> None:
        if self.random.random() < 0.25:
            self.world.reopen()
        self.process = self.world.process()

    def killed(self, act: Callable[[], None]) -> None:
        """Run the act in a process that dies at one of its effects, and start another."""
        effects = self.process.effects
        effects.kill = (len(effects.done) + self.random.randint(1, 25), self.random.choice(["before", "after"]))
        try:
            act()
        except Killed:
            self.recent.append(f"  killed after {effects.done[-3:]}")
        effects.kill = None
        self.restart()

    def fault(self, fault: str) -> None:
        world, source = self.world, self.random
        if fault == "killed":
            self.killed(self.read)
        elif fault == "redelivered":
            self.restart()
        elif fault == "old offset":
            world.committed = [max(0, offset - source.randint(0, 60)) for offset in world.committed]
            self.restart()
        elif fault == "duplicated":
            messages = self.shuffled(self.process.read(source.randint(1, 32)))
            for _ in range(2):
                self.process.publish(self.process.indexed(messages))
            self.process.commit()
        elif fault == "away":
            effects = self.process.effects
            effects.away = len(effects.done) + source.randint(1, 12)
            try:
                self.read()
            except IndexUnavailable:
                self.process = world.process()
            effects.away = None
        elif fault == "two workers":
            self.two_workers()
        elif fault == "compacted":
            world.compact_log()
        elif fault == "cut history":
            world.dropping = world.gap = True
            for _ in range(source.randint(1, 10)):
                self.change()
            world.dropping = False
            world.snapshot(self.change)
        else:
            world.lose_log()
            for _ in range(source.randint(0, 10)):
                self.change()
            self.restart()
            world.snapshot(self.change)

    def two_workers(self) -> None:
        """Two that take the same messages for theirs; the one that is slow may be several batches behind."""
        rival = self.world.process()
        turns = Turns(random.Random(self.random.random()))
        sizes = [[self.random.randint(1, 16) for _ in range(self.random.randint(1, 4))] for _ in range(2)]

        def work(process: Process, limits: list[int]) -> None:
            for limit in limits:
                process.apply(process.read(limit))

        turns.run(
            (self.process.effects, partial(work, self.process, sizes[0])),
            (rival.effects, partial(work, rival, sizes[1])),
        )
        if self.random.random() < 0.5:
            self.process = rival
        # Whoever goes on reads from what is committed.
        self.process = self.world.process()

    def settle(self) -> None:
        """Everything is delivered and, where changes were lost, found by comparing; then all is equal."""
        if self.process.life != self.world.life:
            self.restart()
        self.process.catch_up()
        for _ in range(5):
            if not self.world.gap or not self.world.reconcile():
                break
            self.counts["reconciled"] += 1
            self.process.catch_up()
        self.world.at_rest()
        self.counts["settled"] += 1
        found = self.world.difference()
        if found:
            raise Unequal(f"seed {self.seed}, operation {self.operation}: {found}")


def section(number: int) -> str:
    source = random.Random(number)
    return f"## Section {number}\n\nThe station {number} reports {' '.join(source.choices(WORDS, k=SECTION_WORDS))}."


def edited(document: Document, **changes: object) -> Document:
    """The document with other contents; id, author's id and hash follow."""
    names = ("url", "category", "platform", "author_name", "title", "text", "crawl_id", "crawled_at", "published_at")
    fields = {**{name: getattr(document, name) for name in names}, "metadata": document.metadata, **changes}
    return new_document(**fields)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--documents", type=int, default=NAMES, help="how many there are at most at a time")
    parser.add_argument("--rounds", type=int, default=12, help="of the sample with real processes; 0 leaves it out")
    parser.add_argument("--over-kafka", action="store_true", help="the sample uses ../shared/infra's Kafka and Connect")
    options = parser.parse_args()
    try:
        if options.operations:
            in_process(options.seed, options.operations, options.documents)
        if options.rounds:
            with_processes(options.seed, options.rounds, options.over_kafka)
    except AssertionError as error:
        print(f"\nseed {options.seed} failed: {error}")
        return 1
    return 0


def in_process(seed: int, operations: int, documents: int) -> None:
    began = last = time.monotonic()

    def tell(soak: Soak) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > TELL_SECONDS:
            last = now
            print(f"{soak.operation:,} operations, {soak.operation / (now - began):.0f} a second", flush=True)

    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        soak = Soak(Path(directory), seed, documents)
        try:
            soak.run(operations, tell)
        except BaseException:
            print(f"seed {seed}, operation {soak.operation}; the last faults: {'; '.join(soak.recent[-12:])}")
            raise
        finally:
            soak.world.close()
    faults = ", ".join(f"{soak.counts[fault]:,} {fault}" for fault in FAULTS)
    print(
        f"seed {seed}: {operations:,} operations in {time.monotonic() - began:.0f} s, {soak.counts['settled']:,} times "
        f"at rest and equal\n  {faults}, {soak.counts['reconciled']:,} reconciled"
    )


def with_processes(seed: int, rounds: int, over_kafka: bool) -> None:
    from processes import sample

    began = time.monotonic()
    print(f"real processes, {rounds} rounds{' over Kafka and Connect' if over_kafka else ''}", flush=True)
    counts = sample(seed, rounds, over_kafka)
    told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    print(f"seed {seed}: {rounds} rounds with processes in {time.monotonic() - began:.0f} s, equal\n  {told}")


if __name__ == "__main__":
    sys.exit(main())
