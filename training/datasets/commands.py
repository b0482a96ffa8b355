"""`twin dataset`: build versions of training data from the documents, show them, hold any dataset against the gates."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus.batches import batches
from corpus.terminal import bold, bounded, faint, print_json, printable, teller

if TYPE_CHECKING:
    from corpus.settings import Settings
    from training.datasets.building import Recipe
    from training.datasets.likeness import Embed
    from training.datasets.store import Outline, Record, Store
    from training.datasets.wordsmith import Request, Wordsmith

BUILD = """\
Build a version of training data from the documents as they are now, or were at a time. Instructions are grounded by
construction: every answer is a passage of the author's, or was made from one and checked against it. Preferences set
the author's text against a model's own answer, or hold what people preferred. The same documents and options give the
same version, which is named by the hash of its samples."""
CHECK = """\
Hold any dataset against the gates that ours passes: a folder or file of JSON, JSON lines, CSV, Parquet or Arrow. Exit
code 1 where it should not be trained on. Answers are compared with the documents of this home, or of --documents."""
FORMATS = ("parquet", "arrow", "jsonl")
PREFERENCES_NEED = (
    "preferences need a model's own answers (--model FOLDER, or TWIN_LLM_URL) or what people said (--feedback FILE)"
)
# What --from takes from the record.
RECORDED = (
    *("kind", "name", "method", "rewrite", "judge", "size", "as_of", "author", "category", "language", "validation"),
    *("test", "seed", "model", "feedback", "recipe", "no_embedding"),
)
CHARACTERS_EMBEDDED, EMBEDDED_TOGETHER = 1_200, 256


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `dataset` and its actions; each sets `handler`, a function of (arguments, settings) to the exit code."""
    parser = subparsers.add_parser("dataset", help="build, show and check training data")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    build = _action(actions, "build", "build a version from the documents", build_dataset, BUILD)
    build.add_argument("--kind", choices=("instructions", "preferences"), help="(default instructions)")
    build.add_argument("--name", metavar="NAME", help="what to call it (default: its kind)")
    build.add_argument(
        "--method",
        action="append",
        choices=("backtranslation", "question", "code"),
        help="how instructions are made; may be repeated (default: all that need no language model, "
        "and question where TWIN_LLM_URL is set)",
    )
    build.add_argument("--rewrite", action="store_true", help="let the language model reword the instructions")
    build.add_argument("--judge", action="store_true", help="let the language model score samples; bad ones go")
    whole = bounded(int, 1, 10_000_000, "a whole number above 0")
    build.add_argument("--size", type=whole, metavar="N", help="samples of all splits together (default: all)")
    build.add_argument("--as-of", type=_moment, metavar="TIME", help="from the documents as they were then (ISO 8601)")
    build.add_argument("--author", action="append", metavar="NAME", help="only what NAME wrote; may be repeated")
    build.add_argument("--category", action="append", metavar="C", help="only this kind of text; may be repeated")
    build.add_argument("--language", action="append", metavar="L", help="only this language; may be repeated")
    share = bounded(float, 0, 0.5, "a share from 0 to 0.5")
    build.add_argument("--validation", type=share, metavar="SHARE", help="of the document families (default 0.1)")
    build.add_argument("--test", type=share, metavar="SHARE", help="of the document families (default 0.1)")
    build.add_argument("--seed", type=int, metavar="N", help="which families and samples are drawn (default 7)")
    build.add_argument("--model", type=Path, metavar="FOLDER", help="a model here whose own answers are rejected")
    build.add_argument(
        "--feedback", type=Path, metavar="FILE", help="take in what people said (JSON lines), and use it"
    )
    build.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe (YAML), as a dataset's card shows it")
    build.add_argument("--no-embedding", action="store_true", help="do not compare meanings: faster, and less is found")
    build.add_argument("--from", dest="source", metavar="ID", help="build this very version again, from its record")

    _action(actions, "list", "list the versions", list_datasets)
    _action(actions, "show", "show a version: its card", show_dataset).add_argument("id", metavar="ID")
    diff = _action(actions, "diff", "show what one version has and another has not", diff_datasets)
    diff.add_argument("ids", nargs=2, metavar="ID")
    export = _action(actions, "export", "write a version elsewhere, or push it to a hub", export_dataset)
    export.add_argument("id", metavar="ID")
    export.add_argument("--to", type=Path, metavar="FOLDER", help="a new folder, outside of the home")
    export.add_argument("--format", choices=FORMATS, default="parquet", help="(default parquet)")
    export.add_argument("--hub", metavar="NAME", help="push it to this dataset repository of the hub, private, instead")
    check = _action(actions, "check", "hold any dataset against the gates", check_dataset, CHECK)
    check.add_argument("file", type=Path, metavar="FILE", help="a file, a folder, or the id or name of a version")
    check.add_argument("--documents", type=Path, metavar="FILE", help="the author's texts: an export, or a folder")
    check.add_argument("--no-embedding", action="store_true", help="do not compare meanings: faster, and less is found")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    told: str,
    handler: Callable[[argparse.Namespace, Settings], int],
    description: str = "",
) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=told, description=description or told)
    action.add_argument("--json", action="store_true", help="print JSON for programs")
    action.set_defaults(handler=handler)
    return action


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 2026-05-31 or 2026-05-31T12:00:00Z") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment > datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"{text!r} is in the future, of which there are no documents yet")
    return moment


def build_dataset(arguments: argparse.Namespace, settings: Settings) -> int:
    """`twin dataset build`: 0 when the version is there, 1 when it cannot be, 2 for wrong options."""
    from training.datasets.preferences import NotFeedback
    from training.datasets.ranges import InvalidRecipe

    say = teller(arguments.json)
    # A share or a seed of 0 is given too.
    given = [name for name in RECORDED if (value := getattr(arguments, name)) is not None and value is not False]
    if arguments.source is not None and given:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        return _usage(f"--from builds a version as its record has it, so leave out {told}, or leave out --from")
    with _store(settings, say) as store:
        if arguments.source is not None:
            known = store.record(arguments.source)
            record = store.rebuild(known.id, _embedder(settings, known.recipe.embedder, say))
            return _built(record, store, settings, arguments.json, "built again, with the same hash")
        wordsmith = _wordsmith(arguments, settings, say)
        try:
            recipe = _recipe(arguments, settings, store, wordsmith)
        except (InvalidRecipe, NotFeedback) as error:
            return _usage(str(error))
        if recipe.kind == "preferences" and not recipe.wordsmith and not recipe.feedback:
            return _usage(PREFERENCES_NEED)
        _catch_up(settings, say)
        former = {each.id: each.name for each in store.listed()}
        try:
            record = store.build(
                recipe,
                name=arguments.name,
                as_of=arguments.as_of,
                wordsmith=wordsmith if recipe.wordsmith else None,
                embed=_embedder(settings, recipe.embedder, say),
            )
        except Exception:
            if arguments.feedback is not None:
                sys.stderr.write(f"twin: what {printable(str(arguments.feedback))} says is taken in all the same\n")
            raise
        return _built(record, store, settings, arguments.json, _how(record, former.get(record.id)))


def _usage(told: str) -> int:
    sys.stderr.write(f"twin: {printable(told)}\n")
    return 2


def _how(record: Record, former: str | None) -> str:
    """What a build came to; `former`: the name of the version with the same samples, None where there was none."""
    if former is None:
        return "built"
    if former == record.name:
        return f"is there already, as {printable(former)}"
    return f"is there already, now called {printable(record.name)}, until now {printable(former)}"


def _few_to_test(record: Record, store: Store, settings: Settings) -> str:
    """That the test split is too small for a release, "" where it is not, or was not asked for."""
    from training.datasets.store import read_split
    from training.release.gate import InvalidRules, load_rules

    if record.kind != "instructions" or not record.recipe.test:
        return ""
    try:
        rules = load_rules(settings.release_rules).figures.values()
    except InvalidRules as error:
        return f"whether the test split is enough for the release gate is not known: {printable(str(error))}"
    samples, families = (max(getattr(rule, name) for rule in rules) for name in ("samples", "families"))
    there = list(read_split(store.directory / record.id / "test.parquet", record.kind))
    of = len({sample.family for sample in there})
    if len(there) >= samples and of >= families:
        return ""
    return (
        f"the test split has {len(there)} samples of {of} document families: the release gate asks for {samples} of "
        f"{families}; hold more out (--test)"
    )


def _built(record: Record, store: Store, settings: Settings, as_json: bool, how: str) -> int:
    if as_json:
        print_json(_plain([record], store)[0])
        return 0
    splits = ", ".join(f"{split} {count:,}" for split, count in record.splits.items())
    total = sum(record.splits.values())
    lines = [
        f"{bold(record.id)} {how}: {total:,} samples of {len(record.document_ids):,} documents ({splits})",
        faint(f"{store.directory / record.id}"),
    ]
    if few := _few_to_test(record, store, settings):
        lines.insert(1, few)
    if record.recipe.size and total < record.recipe.size:
        lines.insert(1, f"{record.recipe.size:,} were asked for, and these are all that the documents give")
    left = sorted(record.left_out.items(), key=lambda item: -item[1])[:4]
    if left:
        lines.insert(1, "left out: " + ", ".join(f"{reason} {count:,}" for reason, count in left))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def list_datasets(arguments: argparse.Namespace, settings: Settings) -> int:
    """`twin dataset list`."""
    with _store(settings) as store:
        rows = _plain(store.listed(), store)
    if arguments.json:
        print_json(rows)
        return 0
    if not rows:
        sys.stdout.write("no datasets: `twin dataset build` makes one\n")
        return 0
    width = max(len(row["id"]) for row in rows)
    names = max(4, *(len(printable(row["name"])) for row in rows))
    lines = [bold(f"{'ID':<{width}}  {'NAME':<{names}}  SAMPLES  DOCUMENTS  BUILT              FILES")]
    lines += [
        f"{row['id']:<{width}}  {printable(row['name']):<{names}}  {sum(row['splits'].values()):>7,}  "
        f"{row['document_count']:>9,}  {row['created_at'][:16].replace('T', ' ')}Z  {row['state']}"
        for row in rows
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def show_dataset(arguments: argparse.Namespace, settings: Settings) -> int:
    """`twin dataset show`."""
    from training.datasets.cards import card

    with _store(settings) as store:
        record = store.record(arguments.id)
        if arguments.json:
            print_json(_plain([record], store)[0])
        else:
            shown = card(record, repr(str(store.directory / record.id))).split("---\n", 2)[2]
            lines = [shown.strip(), store.without_files(record)]
            sys.stdout.write(printable("\n\n".join(filter(None, lines))) + "\n")
    return 0


def diff_datasets(arguments: argparse.Namespace, settings: Settings) -> int:
    """`twin dataset diff`."""
    from training.datasets.store import difference

    with _store(settings) as store:
        one, other = (store.record(id) for id in arguments.ids)
        found = difference(one, other, {record.id: store.samples(record) for record in (one, other)})
    if arguments.json:
        print_json(found)
        return 0
    lines = [f"from {bold(one.id)} to {bold(other.id)}"]
    documents = found["documents"]
    lines.append("documents  " + ", ".join(f"{len(ids):,} {how}" for how, ids in documents.items()))
    lines += [
        f"{split:<10} " + ", ".join(f"{count:,} {how}" for how, count in counts.items())
        for split, counts in found["samples"].items()
    ]
    lines += [f"recipe     {name}: {before} -> {after}" for name, (before, after) in found["recipe"].items()]
    if found["generation"]:
        lines.append(f"generation {' -> '.join(found['generation'])}")
    sys.stdout.write(printable("\n".join(lines)) + "\n")
    return 0


def export_dataset(arguments: argparse.Namespace, settings: Settings) -> int:
    """`twin dataset export`: 2 without a place to write to."""
    from training.datasets.exporting import export, push

    if (arguments.to is None) == (arguments.hub is None):
        return _usage("name a folder (--to) or a repository of the hub (--hub)")
    with _store(settings) as store:
        record = store.record(arguments.id)
        folder = store.folder(record)
    if arguments.hub is not None:
        place = push(folder, arguments.hub)
    else:
        export(folder, record, arguments.to, arguments.format, home=settings.home)
        place = str(arguments.to)
    if arguments.json:
        print_json({"id": record.id, "place": place})
    else:
        sys.stdout.write(f"{record.id} is in {place}\n")
    return 0


def check_dataset(arguments: argparse.Namespace, settings: Settings) -> int:
    """`twin dataset check`: 1 where the dataset should not be trained on."""
    import msgspec

    from training.datasets.checking import check
    from training.datasets.loading import READERS, load, load_documents
    from training.datasets.samples import answered
    from training.datasets.store import evaluation_sets, evaluation_texts
    from training.datasets.verdict import passes, told
    from training.inputs import dataset_folder

    say = teller(arguments.json)
    path: Path = arguments.file
    # A file that is not there is told of as one.
    if not path.exists() and path.suffix.lower() not in READERS:
        path = dataset_folder(str(path), settings.datasets_directory)
    loaded = load(path)
    documents = load_documents(arguments.documents) if arguments.documents else _documents(settings)
    sets = evaluation_texts(settings, evaluation_sets(settings))
    embedder = "" if arguments.no_embedding else settings.embedding_model
    texts = len({answered(sample) for samples in loaded.splits.values() for sample in samples})
    report = check(loaded, documents, _embedder(settings, embedder, say, texts), sets)
    reasons = passes(report)
    if arguments.json:
        print_json({"passes": not reasons, "reasons": reasons, **msgspec.to_builtins(report)})
    else:
        sys.stdout.write(printable(told(report)) + "\n")
    return 1 if reasons else 0


# Parts


@contextmanager
def _store(settings: Settings, say: Callable[[str], None] = lambda told: None) -> Iterator[Store]:
    from corpus import warehouse
    from corpus.history import open_history
    from training.datasets.store import Store

    with warehouse.connect(settings) as documents:
        yield Store(settings, documents, open_history(settings), say=say)


def _catch_up(settings: Settings, say: Callable[[str], None]) -> None:
    """Record what was told until now: without a log the history is as it was when there was one."""
    from training.datasets.recording import open_recorder

    if settings.kafka_bootstrap_servers is None:
        say("the log is not running: built from what was recorded until it stopped")
        return
    open_recorder(settings).catch_up()


def _documents(settings: Settings) -> Mapping[str, str]:
    """The texts of this home, none where nothing was ever recorded."""
    from corpus.history import open_history

    if not (settings.home / "history").is_dir():
        return {}
    return {each.document_id: each.text for each in open_history(settings).documents()}


def _recipe(arguments: argparse.Namespace, settings: Settings, store: Store, wordsmith: Wordsmith | None) -> Recipe:
    """The recipe that the options ask for, over that of --recipe. Raises InvalidRecipe, NotFeedback, NoWordsmith."""
    import msgspec

    from training.datasets.building import Recipe
    from training.datasets.instructions import NoWordsmith
    from training.datasets.ranges import InvalidRecipe
    from training.datasets.store import evaluation_sets, read_recipe

    recipe = read_recipe(arguments.recipe) if arguments.recipe else Recipe()
    kind = arguments.kind or recipe.kind
    served = kind == "instructions" and settings.llm_url is not None and not arguments.recipe
    methods = tuple(arguments.method or (*recipe.methods, *(("question",) if served else ())))
    asked = kind == "instructions" and (arguments.rewrite or arguments.judge or recipe.rewrites or recipe.judged)
    writes = kind == "preferences" or "question" in methods or asked
    if told := _unused(arguments, kind, writes):
        raise InvalidRecipe(told)
    if asked and wordsmith is None:
        raise NoWordsmith("--rewrite and --judge need a language model: set TWIN_LLM_URL, or leave them out")
    given = {
        "kind": kind,
        "methods": methods,
        "size": arguments.size,
        "seed": arguments.seed,
        "validation": arguments.validation,
        "test": arguments.test,
        "authors": tuple(arguments.author) if arguments.author else None,
        "categories": tuple(arguments.category) if arguments.category else None,
        "languages": tuple(arguments.language) if arguments.language else None,
        "rewrites": arguments.rewrite or None,
        "judged": arguments.judge or None,
    }
    return msgspec.structs.replace(
        recipe,
        **{name: value for name, value in given.items() if value is not None},
        wordsmith=wordsmith.name if wordsmith is not None and writes else "",
        embedder="" if arguments.no_embedding else settings.embedding_model,
        evaluation_sets=evaluation_sets(settings),
        feedback=store.take_in(arguments.feedback) if kind == "preferences" else (),
    )


def _unused(arguments: argparse.Namespace, kind: str, writes: bool) -> str:
    """Which option would do nothing, and what to do; "" if none. `writes`: whether a language model is asked."""
    if kind == "preferences" and (arguments.rewrite or arguments.judge):
        return "--rewrite and --judge are for instructions: leave them out of preferences"
    if kind == "instructions" and arguments.feedback is not None:
        return "--feedback is for preferences: add --kind preferences, or leave it out"
    if arguments.model is not None and not writes:
        return "--model has nothing to write: add --kind preferences, --method question or --rewrite, or leave it out"
    return ""


@dataclass
class _Telling:
    """A wordsmith that says how far it is."""

    inner: Wordsmith
    say: Callable[[str], None]
    written: int = 0

    @property
    def name(self) -> str:
        return self.inner.name

    def write(self, requests: Sequence[Request]) -> list[str | None]:
        texts = self.inner.write(requests)
        self.written += len(texts)
        self.say(f"{self.name} wrote {self.written:,} texts")
        return texts


def _wordsmith(arguments: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> Wordsmith | None:
    """The model that writes: one in a folder, or the served one of the settings."""
    if arguments.model is not None:
        from training.inputs import model_folder
        from training.local_model import LocalModel, LocalWordsmith
        from training.runs import quiet

        quiet()
        return _Telling(LocalWordsmith(LocalModel(model_folder(str(arguments.model)))), say)
    if settings.llm_url is None:
        return None
    from training.datasets.wordsmith import ServedWordsmith

    return _Telling(ServedWordsmith(settings), say)


def _embedder(settings: Settings, model: str, say: Callable[[str], None], expected: int = 0) -> Embed | None:
    """Texts to unit vectors by this embedding model, as far as a text's meaning is told by its beginning.

    `expected`: of how many texts it will be asked in all, if that is known.
    """
    if not model:
        return None
    import msgspec

    from corpus.embedding import load_embedder

    embedder = load_embedder(msgspec.structs.replace(settings, embedding_model=model))
    done = 0

    def embed(texts: Sequence[str]) -> Any:
        import numpy as np

        nonlocal done
        parts = []
        for part in batches([text[:CHARACTERS_EMBEDDED] for text in texts], EMBEDDED_TOGETHER):
            parts.append(embedder.embed(part))
            done += len(part)
            if max(done, expected) > EMBEDDED_TOGETHER:
                say(f"comparing meanings: {done:,}{f' of {max(done, expected):,}' if expected else ''} texts")
        return np.concatenate(parts) if parts else embedder.embed([])

    return embed


def _plain(records: Sequence[Outline], store: Store) -> list[dict[str, Any]]:
    import msgspec

    return [
        {**msgspec.to_builtins(record), "state": state, "folder": str(store.directory / record.id)}
        for record, state in zip(records, store.states(records), strict=True)
    ]
