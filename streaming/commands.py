"""`twin dead-letters`: what was refused, from a terminal. Needs the log alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from corpus.terminal import bold, print_json, printable

if TYPE_CHECKING:
    from corpus.settings import Settings
    from streaming.letters import Chosen, Letter, OpenLetters

STEPS = ("decode", "validate", "clean", "split", "embed", "write")
# Characters of a message that a person is shown.
SHOWN = 2_000


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `dead-letters` and its verbs; each sets `handler`, a function of (arguments, settings) to the exit code."""
    parser = subparsers.add_parser("dead-letters", help="list, show, replay or discard what was refused")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = _verb(verbs, "list", "list the open dead letters", list_letters)
    _add_filters(listing)
    show = _verb(verbs, "show", "show one dead letter and its message", show_letter)
    show.add_argument("id", metavar="ID", help="the letter's id")
    for name, told, handler in (
        ("replay", "send the messages of dead letters into the dataflow again", replay_letters),
        ("discard", "close dead letters without applying their messages", discard_letters),
    ):
        verb = _verb(verbs, name, told, handler)
        verb.add_argument("ids", nargs="*", metavar="ID", help="a letter's id")
        _add_filters(verb)
        verb.add_argument("--all", action="store_true", help="every open letter")


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    told: str,
    handler: Callable[[argparse.Namespace, Settings], int],
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=told, description=told)
    verb.add_argument("--json", action="store_true", help="print JSON for programs")
    verb.set_defaults(handler=handler)
    return verb


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", choices=(*STEPS, "unknown"), help="only what this step refused")
    parser.add_argument("--document", metavar="ID", help="only of this document")
    parser.add_argument("--reason", metavar="TEXT", help="only where the reason has this in it")
    parser.add_argument("--since", type=_moment, metavar="TIME", help="only what failed then or later (UTC)")


def _moment(text: str) -> datetime:
    """A day or a time in ISO 8601, in UTC where it names no zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 2026-05-31 or 2026-05-31T18:00") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def list_letters(arguments: argparse.Namespace, settings: Settings) -> int:
    return _asked(settings, lambda letters: _listed(arguments, letters))


def show_letter(arguments: argparse.Namespace, settings: Settings) -> int:
    return _asked(settings, lambda letters: _shown(arguments, settings, letters))


def replay_letters(arguments: argparse.Namespace, settings: Settings) -> int:
    from streaming.letters import replay_of, values

    def replay(chosen: list[Letter]) -> tuple[list[str], dict[str, str]]:
        refused: dict[str, str] = {}

        def messages() -> Iterable[tuple[str, dict[str, Any]]]:
            for letter, value in values(_bootstrap(settings), settings.dead_letters_topic, chosen):
                message = replay_of(letter, value)
                if message is None:
                    refused[letter.letter_id] = "its message was too large to be kept in the letter"
                else:
                    yield letter.letter_id, message

        return _produced(settings, messages()), refused

    return _asked(settings, lambda letters: _done(arguments, letters, "replayed", replay))


def discard_letters(arguments: argparse.Namespace, settings: Settings) -> int:
    from streaming.letters import tombstone

    def discard(chosen: list[Letter]) -> tuple[list[str], dict[str, str]]:
        messages = ((letter.letter_id, tombstone(letter.letter_id, "discarded")) for letter in chosen)
        return _produced(settings, ((id, {"topic": settings.dead_letters_topic, **sent}) for id, sent in messages)), {}

    return _asked(settings, lambda letters: _done(arguments, letters, "discarded", discard))


def _asked(settings: Settings, answer: Callable[[OpenLetters], int]) -> int:
    """Answer from the open letters; 1 with a sentence when there is no log, or it does not answer."""
    from confluent_kafka import KafkaException

    from corpus.settings import without_password
    from streaming.clients import LogFailed
    from streaming.letters import OpenLetters

    if settings.kafka_bootstrap_servers is None:
        return _failed(f"nothing runs in {settings.home}: run `twin up`")
    try:
        letters = OpenLetters(settings.kafka_bootstrap_servers, settings.dead_letters_topic)
        try:
            return answer(letters)
        finally:
            letters.close()
    except LogFailed as error:
        return _failed(str(error))
    except KafkaException as error:
        where = without_password(settings.kafka_bootstrap_servers)
        return _failed(f"the log at {where} does not answer ({error.args[0].str()}): see `twin status`")


def _listed(arguments: argparse.Namespace, letters: OpenLetters) -> int:
    chosen = _chosen(arguments)
    found = [letter for letter in letters.found() if chosen.holds(letter)]
    if arguments.json:
        print_json([_plain(letter) for letter in found])
    else:
        sys.stdout.write(_table(found, len(letters.found())))
    return 0


def _shown(arguments: argparse.Namespace, settings: Settings, letters: OpenLetters) -> int:
    from streaming.letters import values

    wanted = [letter for letter in letters.found() if letter.letter_id == arguments.id]
    for letter, value in values(_bootstrap(settings), settings.dead_letters_topic, wanted):
        if arguments.json:
            print_json(json.loads(value))
        else:
            sys.stdout.write(_described(letter, value))
        return 0
    return _failed(_unknown([arguments.id]))


def _done(
    arguments: argparse.Namespace,
    letters: OpenLetters,
    done: str,
    act: Callable[[list[Letter]], tuple[list[str], dict[str, str]]],
) -> int:
    """Do something to the letters that are meant, and say to which; 1 where one is unknown or cannot be."""
    chosen = _chosen(arguments)
    if "" in (chosen.step, chosen.document_id, chosen.reason, *arguments.ids):
        # What an unset variable of a shell leaves must not mean every letter.
        sys.stderr.write("twin: an id or a filter is empty: leave it out, or say --all\n")
        return 2
    if not arguments.all and not arguments.ids and chosen == type(chosen)():
        sys.stderr.write("twin: name letters by id or filter, or all of them with --all\n")
        return 2
    known = {letter.letter_id: letter for letter in letters.found()}
    unknown = [id for id in dict.fromkeys(arguments.ids) if id not in known]
    named = [letter for id, letter in known.items() if id in arguments.ids or not arguments.ids]
    ids, refused = act([letter for letter in named if chosen.holds(letter)])
    if arguments.json:
        print_json({done: ids, "unknown": unknown, "refused": refused})
    else:
        sys.stdout.write(f"{done} {_count(len(ids))}\n")
    for id, reason in refused.items():
        sys.stderr.write(f"twin: {printable(id)}: {reason}\n")
    if unknown:
        return _failed(_unknown(unknown))
    return 1 if refused else 0


def _produced(settings: Settings, messages: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """Send messages in order; their letters' ids. Raises LogFailed when the log does not take one."""
    from streaming.clients import LogFailed, noting, producer

    failed: list[str] = []
    outlet = producer(_bootstrap(settings))
    ids: list[str] = []
    for id, message in messages:
        outlet.produce(on_delivery=noting(failed), **message)
        # One after the other: a message may be as large as all others together.
        outlet.flush()
        if failed:
            raise LogFailed(f"the log did not take letter {id} ({failed[0]}); {len(ids)} were sent before it")
        ids.append(id)
    return ids


def _bootstrap(settings: Settings) -> str:
    return settings.kafka_bootstrap_servers or ""


def _chosen(arguments: argparse.Namespace) -> Chosen:
    from streaming.letters import Chosen

    return Chosen(arguments.step, arguments.document, arguments.reason, arguments.since)


def _unknown(ids: Iterable[str]) -> str:
    return f"no open dead letter has the id {', '.join(map(repr, ids))}: `twin dead-letters list` shows them"


def _plain(letter: Letter) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(letter)
    del plain["at"]
    return plain


def _table(letters: list[Letter], open: int) -> str:
    if not letters:
        return "nothing found\n" if open else "no open dead letters\n"
    width = max(len("LETTER"), *(len(printable(letter.letter_id)) for letter in letters))
    lines = [bold(_row("LETTER", width, "STEP", "ATTEMPTS", "FAILED"))]
    for letter in letters:
        attempts, failed = str(letter.attempts), _time(letter.failed_at)
        lines.append(_row(printable(letter.letter_id), width, letter.step, attempts, failed))
        lines.append(f"    {printable(' '.join(letter.reason.split()))}\n")
    return "".join(lines) + _count(len(letters)) + "\n"


def _row(id: str, width: int, step: str, attempts: str, failed: str) -> str:
    return f"{id:<{width}}  {step:<8}  {attempts:>8}  {failed}\n"


def _described(letter: Letter, value: bytes) -> str:
    from streaming.letters import message_in

    message = message_in(value)
    about = [
        ("document", letter.document_id or "not known"),
        ("version", letter.version),
        ("step", letter.step),
        ("reason", letter.reason),
        ("attempts", letter.attempts),
        ("failed", _time(letter.failed_at)),
        ("index", letter.generation),
        ("message", f"partition {letter.partition}, offset {letter.offset} of {letter.topic}"),
        *((f"header {name}", _excerpt(header)) for name, header in message.headers),
        ("key", _excerpt(message.key)),
        ("value", _excerpt(message.value)),
    ]
    rows = [(printable(name), printable(str(told))) for name, told in about if told is not None]
    width = max(len(name) for name, _ in rows)
    return f"{bold(printable(letter.letter_id))}\n" + "".join(f"{name:<{width}}  {told}\n" for name, told in rows)


def _excerpt(value: bytes | None) -> str:
    if value is None:
        return "none"
    text = value[:SHOWN].decode("utf-8", "replace")
    return text if len(value) <= SHOWN else f"{text}… ({len(value):,} bytes; --json has them all, in base64)"


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _count(number: int) -> str:
    return f"{number:,} dead letter{'' if number == 1 else 's'}"


def _failed(reason: str) -> int:
    sys.stderr.write(f"twin: {printable(reason)}\n")
    return 1
