"""The registry: numbered versions of the twin's model, which of them is champion, and who decided so and why.

The truth is in the warehouse (`models`), where an erasure also finds which models were made from what is erased;
MLflow's registry and its aliases `candidate` and `champion` are told, and told again later where it was away.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from corpus.warehouse import AlreadyBuilt, BuiltMeanwhile
from training.evaluation.figures import (
    DIGITS,
    Comparison,
    Evaluation,
    Metric,
    UnreadableFigures,
    model_folder,
    served_digest,
    weights_digest,
)
from training.release.gate import Decision, Rules, judge
from training.release.tracking import MODEL, Named, RegistryUnavailable

if TYPE_CHECKING:
    from corpus.warehouse import BuiltKind, Erasure
    from training.runs import RunRecord

State = Literal["candidate", "champion", "former", "rejected"]
LOCK = "registry.lock"
MADE_CHAMPION = ("approved", "overridden", "restored")


class UnknownModel(LookupError):
    """There is no such model version; the message says where they are listed."""


class CannotRegister(RuntimeError):
    """A run that cannot become a model version; the message says what is missing."""


class NotReleased(RuntimeError):
    """A version may not become champion, or cannot leave its place; the message has the reasons."""


class Records(Protocol):
    """What the registry needs of the warehouse."""

    def built(self, kind: BuiltKind, id: str | None = None) -> list[dict[str, Any]]: ...

    def add_built(self, kind: BuiltKind, record: Mapping[str, Any]) -> None: ...

    def replace_built(self, kind: BuiltKind, record: Mapping[str, Any], *, decisions: int) -> None: ...

    def erasures(self, condition: Mapping[str, Any]) -> list[Erasure]: ...


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody decided about a version, when, and the reasons; `by` is empty for what followed from another."""

    at: datetime
    by: str
    what: Literal[
        "registered", "evaluated", "approved", "overridden", "succeeded", "rejected", "rolled back", "restored"
    ]
    reasons: tuple[str, ...] = ()


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation without its texts, which would outlive the documents that they are of.

    `document_ids`: of its dataset where the model was not made of that, read at `read_at`; `available`: how many
    samples its dataset has to evaluate on, None where that is not known; `against_files`, `bases_files`: what lay
    beside the weights of the other model then, and of the bases of the runs when it was registered.
    """

    model: str
    against: str | None
    dataset: str
    generation: str
    created_at: datetime
    seed: int
    metrics: dict[str, Metric]
    comparisons: dict[str, Comparison]
    notes: dict[str, str]
    document_ids: tuple[str, ...] = ()
    read_at: datetime | None = None
    available: int | None = None
    against_files: str = ""
    bases_files: tuple[str, ...] = ()
    questions: int | None = None


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A model version and its lineage.

    `folder`: the model's, `run`: that of the run that made it; `datasets`: its own, those of the runs before it and of
    the base that they began with, the newest first, `document_ids`: of all of them, `read_at`: when the first of them
    was read; `bases`: SHA-256 of the weights that the runs began with, as far as they are known; `weights`: of its own,
    `served`: of the other files that its server reads ("" where that was not noted).
    """

    id: str
    name: str
    number: int
    folder: str
    run: str
    base_model: str
    method: str
    stage: str
    dataset: str
    datasets: tuple[str, ...]
    generation: str
    document_ids: tuple[str, ...]
    read_at: datetime
    created_at: datetime
    code_revision: str | None
    weights: str
    bases: tuple[str, ...]
    evaluation: Summary
    served: str = ""
    state: State = "candidate"
    decisions: tuple[Decided, ...] = ()


class Registry:
    """The model versions of a home.

    `told`: lets MLflow show them, and raises RegistryUnavailable; `live`: which generation is live, None where none is;
    `say` is told what is being done, and what MLflow could not be told.
    """

    def __init__(
        self,
        home: Path,
        warehouse: Records,
        *,
        told: Callable[[Sequence[Named]], None],
        live: Callable[[], str | None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        say: Callable[[str], None] = lambda told: None,
    ) -> None:
        self._home, self._warehouse, self._told, self._live = home, warehouse, told, live
        self._now, self._say = now, say

    # Reading

    def versions(self) -> list[ModelVersion]:
        """Every version, newest first. Raises WarehouseUnavailable, as everything here does."""
        found = [_from_plain(record) for record in self._warehouse.built("models") if "number" in record]
        return sorted(found, key=lambda version: version.number, reverse=True)

    def version(self, id: str) -> ModelVersion:
        """The version that an id (twin-3), its number or `champion` means. Raises UnknownModel."""
        wanted = f"{MODEL}-{id}" if id.isdecimal() else id
        for version in self.versions():
            if version.id == wanted or (id == "champion" and version.state == "champion"):
                return version
        if id == "champion":
            raise UnknownModel("there is no champion yet: `twin model approve` makes one")
        raise UnknownModel(f"there is no model {id!r}: `twin model list` shows them")

    def champion(self) -> ModelVersion | None:
        return _champion(self.versions())

    def stale(self, version: ModelVersion, *, after: datetime | None = None) -> tuple[str, Erasure] | None:
        """A document that this version was made from or evaluated on and that was erased since (and since `after`), and
        the erasure; None if none was."""
        summary = version.evaluation
        read = [(version.read_at, set(version.document_ids))]
        if summary.read_at is not None:
            read.append((summary.read_at, set(summary.document_ids)))
        for erasure in self._warehouse.erasures({}):
            if after is not None and erasure.erased_at <= after:
                continue
            for read_at, of in read:
                id = next((id for id in erasure.document_ids if id in of), None)
                if id is not None and erasure.erased_at >= read_at:
                    return id, erasure
        return None

    def erased(self, version: ModelVersion) -> dict[str, Erasure]:
        """Of the datasets that this version was made of those that a document was erased from since, by id, each with
        the first such erasure."""
        erasures = self._warehouse.erasures({})
        found = {}
        for id in version.datasets:
            for record in self._warehouse.built("datasets", id):
                of = set(record["document_ids"])
                since = (each for each in erasures if each.erased_at >= record["created_at"])
                first = next((each for each in since if not of.isdisjoint(each.document_ids)), None)
                if first is not None:
                    found[id] = first
        return found

    def deployable(self, id: str) -> ModelVersion:
        """The version that the id means, unless a document that it rests on was erased, and nobody has decided since
        then, with a reason, that it may be used all the same. Raises UnknownModel, NotReleased."""
        version = self.version(id)
        stale = self._told_stale(version, after=_overridden_at(version))
        if stale:
            told = "" if version.state == "champion" else f", or `twin model approve {version.id} --override REASON`"
            raise NotReleased(f"{version.id} is not deployed: {stale[0]}{told}")
        return version

    def judged(self, version: ModelVersion, rules: Rules) -> Decision:
        """What the gate says of this version now, held against the present champion, or its base where there is none.

        A comparison with anything else is no comparison: of what became champion `approval` tells what it said then.
        """
        return _judged(version, _champion(self.versions()), rules)

    # Deciding

    def register(self, run: Path, evaluation: Evaluation) -> ModelVersion:
        """Make the finished run in this folder a version, a candidate; one of these weights takes the new evaluation.

        Raises CannotRegister, UnreadableFigures, RunRefused.
        """
        run = run.resolve()
        runs, learned = _runs(run)
        record = runs[0][1]
        if record.state != "finished":
            raise CannotRegister(f"the run in {run} is {record.state} at step {record.step}: let it finish first")
        folder = model_folder(run)
        weights = weights_digest(folder)
        if evaluation.model.rpartition("@")[2] != weights[:DIGITS]:
            raise CannotRegister(
                f"the evaluation is of {evaluation.model}, and the weights in {folder} are {weights[:DIGITS]}: "
                f"run `twin evaluate {run}`"
            )
        served = served_digest(folder)
        if evaluation.files != served:
            raise CannotRegister(
                f"tokenizer, template or configuration in {folder} are not those that were evaluated: run "
                f"`twin evaluate {run}`"
            )
        bases = tuple(_bases(runs))
        # A base may be a copy of a registered model, which lies beside no run.
        copied = (id for version in self.versions() if version.weights in bases for id in version.datasets)
        datasets = [self._dataset(id) for id in dict.fromkeys((*learned, *copied))]
        unknown = set(learned) - set(evaluation.trained_on)
        if unknown:
            raise CannotRegister(
                f"the evaluation did not know that the model was trained on {', '.join(sorted(unknown))}, and may have "
                f"tested it by that: run `twin evaluate {run}`, by the run's folder and not by a copy of its model"
            )
        summary = self._summary(evaluation, record.generation, made_of=[str(each["_id"]) for each in datasets])
        summary = msgspec.structs.replace(summary, bases_files=tuple(_bases_files(runs)))
        told = Decided(at=self._now(), by="", what="evaluated", reasons=tuple(_told_evaluation(summary)))
        with self._locked():
            known = self._known(weights, served)
            if known is not None:
                version = msgspec.structs.replace(known, evaluation=summary, served=served)
                if version != known:
                    version = msgspec.structs.replace(version, decisions=(*known.decisions, told))
                    self._replace(version, known)
            else:
                version = ModelVersion(
                    id="",
                    name=MODEL,
                    number=0,
                    folder=str(folder),
                    run=str(run),
                    base_model=record.base_model,
                    method=record.method,
                    stage=record.stage,
                    dataset=record.dataset,
                    datasets=tuple(str(each["_id"]) for each in datasets),
                    generation=record.generation,
                    document_ids=tuple(sorted({id for each in datasets for id in each["document_ids"]})),
                    read_at=min(each["created_at"] for each in datasets),
                    created_at=self._now(),
                    code_revision=record.code_revision,
                    weights=weights,
                    served=served,
                    bases=bases,
                    evaluation=summary,
                    decisions=(Decided(at=self._now(), by="", what="registered"), told),
                )
                version = self._added(version)
        self.tell()
        return version

    def approve(self, id: str, *, by: str, rules: Rules, override: str | None = None) -> ModelVersion:
        """Make a version champion in the name of `by`; the one until now becomes former.

        `override`: the reason why it may although the gate refuses it or it rests on erased documents; it is recorded.
        Raises UnknownModel, NotReleased.
        """
        with self._locked():
            version, champion = self.version(id), self.champion()
            if version.state == "champion":
                raise NotReleased(f"{version.id} is the champion already")
            self.must_be_servable(version)
            decision = _judged(version, champion, rules)
            stale = [f"refuses: {told}" for told in self._told_stale(version)]
            against = bool(stale) or not decision.passes
            if against and override is None:
                told = "\n  ".join([*stale, *decision.told()])
                raise NotReleased(
                    f"{version.id} is not approved:\n  {told}\nTo approve it all the same: --override REASON"
                )
            now = self._now()
            reasons = (*stale, *decision.told(), f"by the rules of {rules.source}")
            if against:
                decided = Decided(at=now, by=by, what="overridden", reasons=(f"because {override}", *reasons))
            else:
                decided = Decided(at=now, by=by, what="approved", reasons=reasons)
            version = self._moved(version, "champion", decided)
            self._settle()
        self.tell()
        return version

    def reject(self, id: str, *, by: str, reason: str) -> ModelVersion:
        """Note that a version is not to be used; a champion where there is no former, which leaves none.

        Raises UnknownModel, NotReleased.
        """
        with self._locked():
            self._settle()
            version = self.version(id)
            if version.state == "champion" and any(each.state == "former" for each in self.versions()):
                raise NotReleased(f"{version.id} is the champion: `twin model rollback` puts the former one back")
            if version.state == "rejected":
                raise NotReleased(f"{version.id} is rejected already")
            decided = Decided(at=self._now(), by=by, what="rejected", reasons=(reason,))
            version = self._moved(version, "rejected", decided)
        self.tell()
        return version

    def former(self) -> ModelVersion:
        """The champion before the present one. Raises NotReleased where there is none."""
        found = [version for version in self.versions() if version.state == "former"]
        if not found:
            told = "there is no former champion to go back to"
            champion = self.champion()
            if champion is not None:
                told += f": `twin model reject {champion.id}` leaves no champion"
            raise NotReleased(told)
        return max(found, key=_succeeded_at)

    def may_restore(self, override: str | None = None) -> ModelVersion:
        """The former champion, if it may be one again. Raises NotReleased."""
        former = self.former()
        self.must_be_servable(former)
        stale = self._told_stale(former)
        if stale and override is None:
            raise NotReleased(f"{former.id} is not restored: {stale[0]}\nTo restore it all the same: --override REASON")
        return former

    def rollback(
        self,
        *,
        by: str,
        reason: str,
        override: str | None = None,
        expected: str | None = None,
        first: Callable[[], None] = lambda: None,
    ) -> tuple[ModelVersion, ModelVersion | None]:
        """Make the former champion champion again; it, and the version that was taken back, which is rejected.

        `expected`: which version that must be; `first` is done once it is sure that nothing stands in the way. Raises
        NotReleased.
        """
        with self._locked():
            self._settle()
            former, champion, now = self.may_restore(override), self.champion(), self._now()
            if expected is not None and former.id != expected:
                raise NotReleased(
                    f"{expected} was to be restored, and meanwhile somebody decided that {former.id} is the former "
                    "champion: look (`twin model list`), then again"
                )
            first()
            # Taken back first: after a crash between the two, the same command restores the same version.
            if champion is not None:
                decided = Decided(at=now, by=by, what="rolled back", reasons=(reason,))
                champion = self._moved(champion, "rejected", decided)
            reasons = (reason, *([f"because {override}"] if override else []), *self._told_stale(former))
            former = self._moved(former, "champion", Decided(at=now, by=by, what="restored", reasons=reasons))
        self.tell()
        return former, champion

    def tell(self) -> bool:
        """Let MLflow show what the warehouse has; False where it is away, which is said."""
        versions = self.versions()
        self._say("telling MLflow of the versions")
        try:
            self._told(list(named(versions)))
        except RegistryUnavailable as error:
            self._say(str(error))
            return False
        return True

    # What stands in the way

    def must_be_servable(self, version: ModelVersion) -> None:
        """Its files are those that were evaluated, and its documents were prepared as questions are now."""
        try:
            weights = weights_digest(model_folder(Path(version.folder)))
        except UnreadableFigures as error:
            raise NotReleased(f"{version.id} cannot be served: {error}") from error
        if weights != version.weights:
            raise NotReleased(
                f"the weights in {version.folder} are not those that were registered as {version.id}: "
                "register what is there (`twin model register`)"
            )
        if version.served and served_digest(model_folder(Path(version.folder))) != version.served:
            raise NotReleased(
                f"the configuration, the tokenizer or the chat template in {version.folder} is not what was registered "
                f"as {version.id}: put it back, or evaluate and register what is there (`twin model register`)"
            )
        live = self._live()
        if live is not None and live != version.generation:
            raise NotReleased(
                f"{version.id} was made of generation {version.generation}, and {live} is live: train a model on a "
                "dataset of that (`twin dataset build`), or promote its generation (`twin reindex promote`)"
            )

    def _told_stale(self, version: ModelVersion, *, after: datetime | None = None) -> list[str]:
        found = self.stale(version, after=after)
        if found is None:
            return []
        id, erasure = found
        rests, what = "it rests", "train again"
        if id not in version.document_ids:
            rests, what = "its evaluation rests", "evaluate it again"
        return [
            f"{rests} on document {id}, which was erased for good on {erasure.erased_at:%Y-%m-%d} "
            f"(erasure {erasure.id}): {what} on a dataset built since"
        ]

    def _summary(self, evaluation: Evaluation, generation: str, made_of: Sequence[str]) -> Summary:
        """The evaluation without its texts, with what is known of its dataset. Raises CannotRegister."""
        dataset = self._dataset(evaluation.dataset)
        for of in (evaluation.generation, str(dataset.get("generation", generation))):
            if of != generation:
                raise CannotRegister(
                    f"the model was made of generation {generation}, and its evaluation is on dataset "
                    f"{evaluation.dataset} of generation {of}: `twin evaluate` with --dataset of that generation"
                )
        summary = msgspec.convert(msgspec.to_builtins(evaluation, builtin_types=(datetime,)), Summary)
        summary = msgspec.structs.replace(summary, available=dataset.get("splits", {}).get("test"))
        if evaluation.dataset in made_of:
            return summary
        return msgspec.structs.replace(
            summary, document_ids=tuple(sorted(dataset["document_ids"])), read_at=dataset["created_at"]
        )

    def _dataset(self, id: str) -> dict[str, Any]:
        found = self._warehouse.built("datasets", id)
        if not found:
            raise CannotRegister(
                f"the warehouse has no record of dataset {id}, so nobody could tell which documents the model is made "
                "of: train on a dataset that `twin dataset build` made in this home"
            )
        return found[0]

    # Writing

    def _settle(self) -> None:
        """There is one champion, the one that was decided on last; a crash may have left another."""
        versions = self.versions()
        champion = _champion(versions)
        for version in versions:
            if champion is not None and version.state == "champion" and version.id != champion.id:
                told = Decided(at=self._now(), by="", what="succeeded", reasons=(champion.id,))
                self._moved(version, "former", told)

    def _known(self, weights: str, served: str) -> ModelVersion | None:
        found = (version for version in self.versions() if version.weights == weights)
        return next((version for version in found if version.served in ("", served)), None)

    def _added(self, version: ModelVersion) -> ModelVersion:
        """The version under the first number that is free; another home may take one at the same moment."""
        while True:
            number = max((each.number for each in self.versions()), default=0) + 1
            numbered = msgspec.structs.replace(version, id=f"{MODEL}-{number}", number=number)
            try:
                self._warehouse.add_built("models", _plain(numbered))
            except AlreadyBuilt:
                continue
            return numbered

    def _moved(self, version: ModelVersion, state: State, decided: Decided) -> ModelVersion:
        moved = msgspec.structs.replace(version, state=state, decisions=(*version.decisions, decided))
        self._replace(moved, version)
        return moved

    def _replace(self, version: ModelVersion, before: ModelVersion) -> None:
        try:
            self._warehouse.replace_built("models", _plain(version), decisions=len(before.decisions))
        except BuiltMeanwhile as error:
            raise NotReleased(
                f"somebody decided about {version.id} at this very moment: look (`twin model show {version.id}`), "
                "then again"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time decides in this home."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._home / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def named(versions: Sequence[ModelVersion]) -> Iterator[Named]:
    """The versions, oldest first, as MLflow is to show them."""
    champion = _champion(versions)
    candidates = [version for version in versions if version.state == "candidate"]
    newest = max(candidates, key=lambda version: version.number, default=None)
    for version in sorted(versions, key=lambda version: version.number):
        aliases = [alias for alias, held in (("candidate", newest), ("champion", champion)) if held is version]
        told = next((each for each in reversed(version.decisions) if each.what != "evaluated"), None)
        yield Named(
            id=version.id,
            folder=version.folder,
            run=version.run,
            state=version.state,
            aliases=tuple(aliases),
            tags={
                "twin.dataset": version.dataset,
                "twin.generation": version.generation,
                "twin.code_revision": version.code_revision or "unknown",
                "twin.decided": f"{told.what} {told.at:%Y-%m-%d %H:%M} {told.by}".strip() if told else "",
            },
        )


def _champion(versions: Sequence[ModelVersion]) -> ModelVersion | None:
    found = [version for version in versions if version.state == "champion"]
    return max(found, key=_champion_at, default=None)


def _champion_at(version: ModelVersion) -> datetime:
    return max((each.at for each in version.decisions if each.what in MADE_CHAMPION), default=version.created_at)


def _overridden_at(version: ModelVersion) -> datetime | None:
    """When somebody last said, with a reason, that this version is used although something stands against it."""
    overridden = [
        each.at
        for each in version.decisions
        if each.what in MADE_CHAMPION and any(reason.startswith("because ") for reason in each.reasons)
    ]
    return max(overridden, default=None)


def approval(version: ModelVersion) -> Decided | None:
    """The last decision by which a version that is or was champion became it, with what the gate said of it then; None
    for any other."""
    if version.state not in ("champion", "former"):
        return None
    return next((each for each in reversed(version.decisions) if each.what in ("approved", "overridden")), None)


def _judged(version: ModelVersion, champion: ModelVersion | None, rules: Rules) -> Decision:
    summary, mismatch = version.evaluation, ""
    meant = (champion.weights,) if champion is not None else version.bases
    files = (champion.served,) if champion is not None else summary.bases_files
    against = (summary.against or "").rpartition("@")[2]
    is_meant = bool(against) and any(weights.startswith(against) for weights in meant)
    if not is_meant or (any(files) and summary.against_files not in files):
        wanted = f"the champion {champion.id}" if champion is not None else f"its base {version.base_model}"
        said = f"it was compared with {summary.against}" if summary.against else "it was compared with nothing"
        said += " of another tokenizer, template or configuration" if is_meant else ""
        mismatch = f"{said}, and must be with {wanted}: `twin evaluate` with --against, then `twin model register`"
    evaluation = Evaluation(
        model=summary.model,
        against=summary.against,
        dataset=summary.dataset,
        generation=summary.generation,
        created_at=summary.created_at,
        seed=summary.seed,
        metrics=summary.metrics,
        comparisons=summary.comparisons,
        notes=summary.notes,
        questions=summary.questions,
    )
    return judge(evaluation, rules, available=_available(summary), mismatch=mismatch)


def _available(summary: Summary) -> dict[str, int]:
    """How many samples there are to evaluate on; of how many families, where the likelihood is of all of them."""
    if summary.available is None:
        return {}
    whole = summary.metrics.get("bits_per_byte")
    if whole is None or whole.families is None or whole.n != summary.available:
        return {"samples": summary.available}
    return {"samples": summary.available, "families": whole.families}


def _told_evaluation(summary: Summary) -> Iterator[str]:
    against = summary.against or "nothing"
    yield f"on dataset {summary.dataset}, against {against}, at {summary.created_at:%Y-%m-%d %H:%M}"
    for each in summary.comparisons.values():
        yield f"{each.name}: difference {each.difference:+.3g} ({each.low:+.3g} to {each.high:+.3g}), n {each.n}"


def _succeeded_at(version: ModelVersion) -> datetime:
    return max((each.at for each in version.decisions if each.what == "succeeded"), default=version.created_at)


def _runs(run: Path) -> tuple[list[tuple[Path, RunRecord]], list[str]]:
    """This run, the run that made its base, and so on; and the datasets of all of them and of the base of the first.

    Raises CannotRegister.
    """
    from training.evaluation.held_out import chain, trained_on
    from training.inputs import UnusableInput

    try:
        runs, datasets = list(chain(run)), trained_on(run)
    except UnusableInput as error:
        raise CannotRegister(str(error)) from error
    if not runs or runs[0][0] != run:
        raise CannotRegister(f"there is no run in {run}: name the folder that `twin train` wrote to")
    return runs, datasets


def _began_with(runs: Sequence[tuple[Path, RunRecord]]) -> list[str]:
    """The models that the runs began with: each with the next one's, the last with a model that no run made."""
    return [*(str(run) for run, _ in runs[1:]), runs[-1][1].base_model]


def _bases(runs: Sequence[tuple[Path, RunRecord]]) -> Iterator[str]:
    """Weights that the runs began with, as they noted; of runs that noted none, what lies there now."""
    from training.inputs import UnusableInput
    from training.inputs import model_folder as found

    for (_, record), name in zip(runs, _began_with(runs), strict=True):
        if record.base_weights is not None:
            yield record.base_weights
            continue
        with suppress(UnusableInput, UnreadableFigures):
            yield weights_digest(found(name))


def _bases_files(runs: Sequence[tuple[Path, RunRecord]]) -> Iterator[str]:
    """`served_digest` of the models that the runs began with, as far as they are there."""
    from training.inputs import UnusableInput
    from training.inputs import model_folder as found

    for name in _began_with(runs):
        with suppress(UnusableInput, UnreadableFigures):
            yield served_digest(found(name))


def _plain(version: ModelVersion) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(version, builtin_types=(datetime,))
    return {**plain, "_id": version.id}


def _from_plain(plain: Mapping[str, Any]) -> ModelVersion:
    return msgspec.convert(plain, ModelVersion)
