"""The registry: which version is champion, who said so, and what keeps a version from becoming it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corpus.settings import load
from corpus.warehouse import AlreadyBuilt, BuiltMeanwhile, connect
from tests.training.model_runs import BUILT, LATER, Shelf, evaluated, make_model, make_run
from training.release.commands import shown
from training.release.gate import Rule, load_rules
from training.release.registry import (
    CannotRegister,
    ModelVersion,
    NotReleased,
    Records,
    Registry,
    UnknownModel,
    approval,
)
from training.release.tracking import Named, RegistryUnavailable

RULES = load_rules()


@dataclass
class Office:
    """A home with a registry, a base model, and a clock that moves an hour with each look."""

    home: Path
    shelf: Records
    shown: list[Named] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    generation: str | None = "g1"
    away: bool = False
    _hours: int = 0

    def __post_init__(self) -> None:
        self.base = make_model(self.home / "base", "base")
        self.registry = Registry(
            self.home, self.shelf, told=self._told, live=lambda: self.generation, now=self._now, say=self.said.append
        )

    def _now(self) -> datetime:
        self._hours += 1
        return LATER + timedelta(hours=self._hours)

    def _told(self, versions: Sequence[Named]) -> None:
        if self.away:
            raise RegistryUnavailable("MLflow is away")
        self.shown = list(versions)

    def candidate(self, name: str, against: Path | None = None, **evaluation: Any) -> ModelVersion:
        """A new version, compared with the base unless said otherwise."""
        run = make_run(self.home / "runs" / name, self.base, weights=name)
        return self.registry.register(run, evaluated(run, against or self.base, **evaluation))

    def champion(self, name: str, against: Path | None = None) -> ModelVersion:
        return self.registry.approve(self.candidate(name, against).id, by="Ada", rules=RULES)

    def states(self) -> dict[str, str]:
        return {version.id: version.state for version in self.registry.versions()}

    def aliases(self) -> dict[str, str]:
        return {alias: version.id for version in self.shown for alias in version.aliases}


@pytest.fixture
def shelf() -> Shelf:
    shelf = Shelf()
    shelf.add_dataset("d1", "doc-1", "doc-2")
    return shelf


@pytest.fixture
def office(tmp_path: Path, shelf: Shelf) -> Office:
    return Office(tmp_path, shelf)


# Registering


def test_a_finished_run_becomes_a_candidate_that_names_what_it_is_made_of(office: Office, shelf: Shelf) -> None:
    version = office.candidate("first")

    assert (version.id, version.state, version.dataset, version.generation) == ("twin-1", "candidate", "d1", "g1")
    assert shelf.held["models"]["twin-1"]["document_ids"] == ("doc-1", "doc-2")
    assert version.folder == str(office.home / "runs" / "first" / "model")
    assert office.aliases() == {"candidate": "twin-1"}


def test_a_model_after_dpo_is_made_of_the_documents_of_both_runs(office: Office, shelf: Shelf) -> None:
    shelf.add_dataset("d2", "doc-3", created_at=LATER)
    first = make_run(office.home / "runs" / "sft", office.base, weights="sft")
    run = make_run(office.home / "runs" / "dpo", first, weights="dpo", base_run=str(first), dataset="d2", stage="dpo")

    version = office.registry.register(run, evaluated(run, office.base))

    assert version.document_ids == ("doc-1", "doc-2", "doc-3")
    assert (version.datasets, version.read_at) == (("d2", "d1"), BUILT)
    assert office.registry.judged(version, RULES).passes, "the base of the first run is its base too"


def test_a_model_is_made_of_what_its_base_was_made_of_too(office: Office, shelf: Shelf) -> None:
    shelf.add_dataset("d0", "doc-0")
    run = make_run(office.home / "runs" / "one", office.base, base_dataset="d0")

    version = office.registry.register(run, evaluated(run, office.base))

    assert (version.datasets, version.document_ids) == (("d1", "d0"), ("doc-0", "doc-1", "doc-2"))


def test_a_base_that_is_a_copy_of_a_registered_model_is_made_of_the_same(office: Office, shelf: Shelf) -> None:
    shelf.add_dataset("d2", "doc-3")
    first = office.candidate("first")
    copy = office.home / "copied"
    shutil.copytree(first.folder, copy)
    run = make_run(office.home / "runs" / "later", copy, weights="later", dataset="d2", base_weights=first.weights)

    assert office.registry.register(run, evaluated(run, copy)).datasets == ("d2", "d1")


def test_a_base_that_is_named_by_its_model_alone_has_a_run_all_the_same(office: Office, shelf: Shelf) -> None:
    shelf.add_dataset("d2", "doc-3")
    first = make_run(office.home / "runs" / "sft", office.base, weights="sft")
    run = make_run(office.home / "runs" / "dpo", first / "model", weights="dpo", dataset="d2", stage="dpo")

    version = office.registry.register(run, evaluated(run, office.base))

    assert version.datasets == ("d2", "d1")
    assert len(version.bases) == 2


def test_the_datasets_that_something_was_erased_from_are_told(office: Office, shelf: Shelf) -> None:
    shelf.add_dataset("d2", "doc-3", created_at=LATER)
    first = make_run(office.home / "runs" / "sft", office.base, weights="sft")
    run = make_run(office.home / "runs" / "dpo", first, weights="dpo", base_run=str(first), dataset="d2", stage="dpo")
    version = office.registry.register(run, evaluated(run, office.base))
    shelf.erase("doc-3", at=BUILT)
    assert office.registry.erased(version) == {}, "that was before it was built"

    shelf.erase("doc-2", at=LATER)

    erased = office.registry.erased(version)
    assert list(erased) == ["d1"]
    told = shown(version, office.registry.judged(version, RULES), "doc-2", erased)
    assert f"datasets    d2, d1 (erased {LATER:%Y-%m-%d}) (3 documents)" in told


def test_the_same_weights_are_one_version_with_the_newer_evaluation(office: Office) -> None:
    run = make_run(office.home / "runs" / "one", office.base)
    office.registry.register(run, evaluated(run, office.base, gain=-1.0))

    again = office.registry.register(run, evaluated(run, office.base))

    assert again.id == "twin-1"
    assert office.registry.judged(again, RULES).passes
    assert len(office.registry.versions()) == 1


def test_the_record_holds_no_word_of_the_samples(office: Office, shelf: Shelf) -> None:
    from training.evaluation.figures import SideBySide

    run = make_run(office.home / "runs" / "one", office.base)
    samples = (SideBySide(question="What?", author="zqmarkerzq", model="?"),)

    office.registry.register(run, evaluated(run, office.base, samples=samples))

    assert "zqmarkerzq" not in str(shelf.held["models"])


def test_a_run_that_is_not_finished_is_no_version(office: Office) -> None:
    run = make_run(office.home / "runs" / "one", office.base, state="stopped", step=1)

    with pytest.raises(CannotRegister, match="stopped at step 1"):
        office.registry.register(run, evaluated(run, office.base))


def test_an_evaluation_of_other_weights_is_refused(office: Office) -> None:
    run = make_run(office.home / "runs" / "one", office.base)

    with pytest.raises(CannotRegister, match="twin evaluate"):
        office.registry.register(run, evaluated(office.base, office.base))


def test_an_evaluation_that_knew_nothing_of_what_the_model_was_trained_on_is_refused(office: Office) -> None:
    run = make_run(office.home / "runs" / "one", office.base)
    shutil.copytree(run / "model", office.home / "copy")

    with pytest.raises(CannotRegister, match=r"did not know that the model was trained on d1.*twin evaluate"):
        office.registry.register(run, evaluated(office.home / "copy", office.base))


def test_an_evaluation_with_another_template_is_refused(office: Office) -> None:
    run = make_run(office.home / "runs" / "one", office.base)
    found = evaluated(run, office.base)
    (run / "model" / "chat_template.jinja").write_text("{{ messages }}")

    with pytest.raises(CannotRegister, match="not those that were evaluated"):
        office.registry.register(run, found)


def test_a_comparison_with_a_disfigured_copy_of_the_champion_or_the_base_does_not_pass(office: Office) -> None:
    run = make_run(office.home / "runs" / "first", office.base, weights="first")
    bad_base = office.home / "bad-base"
    shutil.copytree(office.base, bad_base)
    (bad_base / "config.json").write_text('{"rms_norm_eps": 1000}')
    version = office.registry.register(run, evaluated(run, bad_base))
    assert not office.registry.judged(version, RULES).passes
    champion = office.registry.approve(
        office.registry.register(run, evaluated(run, office.base)).id, by="Ada", rules=RULES
    )

    worse = make_run(office.home / "runs" / "worse", office.base, weights="worse")
    bad_champion = office.home / "bad"
    shutil.copytree(champion.folder, bad_champion)
    (bad_champion / "chat_template.jinja").write_text("zq " * 60)
    version = office.registry.register(worse, evaluated(worse, bad_champion))

    with pytest.raises(NotReleased, match="of another tokenizer, template or configuration"):
        office.registry.approve(version.id, by="Ada", rules=RULES)


def test_a_model_of_a_dataset_that_nobody_knows_is_refused(office: Office) -> None:
    run = make_run(office.home / "runs" / "one", office.base, dataset="gone")

    with pytest.raises(CannotRegister, match="no record of dataset gone"):
        office.registry.register(run, evaluated(run, office.base))


def test_a_model_whose_earlier_run_is_gone_is_refused(office: Office) -> None:
    run = make_run(office.home / "runs" / "dpo", office.base, base_run="runs/lost")

    with pytest.raises(CannotRegister, match="runs/lost"):
        office.registry.register(run, evaluated(run, office.base, trained_on=()))


def test_a_folder_without_a_run_is_refused(office: Office) -> None:
    with pytest.raises(CannotRegister, match="there is no run"):
        office.registry.register(office.base, evaluated(office.base, office.base))


# Approving


def test_a_better_candidate_becomes_champion_by_a_named_person_with_the_reasons(office: Office) -> None:
    version = office.champion("first")

    decided = version.decisions[-1]
    assert (version.state, decided.what, decided.by) == ("champion", "approved", "Ada")
    assert any("bits_per_byte: better" in reason for reason in decided.reasons)
    assert office.aliases() == {"champion": "twin-1"}


def test_a_worse_candidate_is_refused_with_the_figures_and_stays_candidate(office: Office) -> None:
    version = office.candidate("worse", gain=-0.4)

    with pytest.raises(NotReleased, match="bits_per_byte: worse") as refused:
        office.registry.approve(version.id, by="Ada", rules=RULES)

    assert "--override" in str(refused.value)
    assert office.states() == {"twin-1": "candidate"}


def test_a_refusal_says_first_what_refuses_then_what_is_kept_then_what_nobody_knows(office: Office) -> None:
    version = office.candidate("worse", gain=-0.4)

    with pytest.raises(NotReleased) as refused:
        office.registry.approve(version.id, by="Ada", rules=RULES)

    lines = str(refused.value).splitlines()[1:-1]
    assert [line.split(":")[0].strip() for line in lines[:3]] == ["refuses", "kept", "not judged"]
    assert [line.split(":")[1].strip() for line in lines[:2]] == ["bits_per_byte", "general"]
    told = shown(version, office.registry.judged(version, RULES), None, {})
    assert "\n".join(f"  {line}" for line in lines) in told, "it is shown alike"


def test_of_a_champion_is_told_what_the_gate_said_when_it_was_approved(office: Office) -> None:
    first = office.champion("first")
    office.champion("second", against=Path(first.folder))

    for id in ("twin-1", "twin-2"):
        version = office.registry.version(id)
        said = approval(version)
        assert said is not None
        text = shown(version, said, None, {})
        assert "gate        as it was approved by Ada" in text
        assert text.count("kept: bits_per_byte: better") == 1
        assert "refuses" not in text
    assert approval(office.candidate("third")) is None
    office.registry.rollback(by="Ada", reason="it swears")
    assert approval(office.registry.version("twin-2")) is None, "it may be judged anew"


def test_a_reason_overrides_the_gate_and_is_kept(office: Office) -> None:
    office.candidate("worse", gain=-0.4)

    version = office.registry.approve("twin-1", by="Ada", rules=RULES, override="a trial in a closed group")

    decided = version.decisions[-1]
    assert (version.state, decided.what) == ("champion", "overridden")
    assert decided.reasons[0] == "because a trial in a closed group"
    assert any("worse" in reason for reason in decided.reasons)


def test_the_next_champion_makes_the_first_the_former(office: Office) -> None:
    first = office.champion("first")

    office.champion("second", against=Path(first.folder))

    assert office.states() == {"twin-1": "former", "twin-2": "champion"}
    assert office.aliases() == {"champion": "twin-2"}
    assert office.registry.version("twin-1").decisions[-1].reasons == ("twin-2",)


def test_what_was_compared_with_the_base_is_not_compared_with_the_champion(office: Office) -> None:
    office.champion("first")
    second = office.candidate("second", against=office.base)

    with pytest.raises(NotReleased, match="must be with the champion twin-1") as refused:
        office.registry.approve(second.id, by="Ada", rules=RULES)
    assert str(refused.value).count("compared") == 1
    assert "nothing was judged" not in str(refused.value)


def test_an_evaluation_without_a_comparison_does_not_pass(office: Office) -> None:
    run = make_run(office.home / "runs" / "one", office.base)
    office.registry.register(run, evaluated(run, None))

    with pytest.raises(NotReleased, match="compared with nothing"):
        office.registry.approve("twin-1", by="Ada", rules=RULES)


def test_the_champion_is_not_approved_twice(office: Office) -> None:
    office.champion("first")

    with pytest.raises(NotReleased, match="champion already"):
        office.registry.approve("1", by="Ada", rules=RULES)


def test_an_unknown_version_is_told_of(office: Office) -> None:
    for id in ("twin-9", "9", "champion"):
        with pytest.raises(UnknownModel, match="twin model"):
            office.registry.version(id)


def test_what_rests_on_an_erased_document_needs_a_reason(office: Office, shelf: Shelf) -> None:
    office.candidate("first")
    shelf.erase("doc-2", at=LATER)

    with pytest.raises(NotReleased, match="doc-2, which was erased for good"):
        office.registry.approve("twin-1", by="Ada", rules=RULES)

    version = office.registry.approve("twin-1", by="Ada", rules=RULES, override="the author agreed")
    assert any("doc-2" in reason for reason in version.decisions[-1].reasons)


def test_an_erasure_before_the_documents_were_read_does_not_count(office: Office, shelf: Shelf) -> None:
    shelf.erase("doc-2", at=BUILT - timedelta(days=1))

    assert office.champion("first").state == "champion"


def test_a_model_of_another_generation_is_refused_whatever_the_reason(office: Office) -> None:
    office.candidate("first")
    office.generation = "g2"

    with pytest.raises(NotReleased, match="generation g1, and g2 is live"):
        office.registry.approve("twin-1", by="Ada", rules=RULES, override="because")


def test_a_model_whose_weights_changed_since_or_are_gone_is_refused(office: Office) -> None:
    version = office.candidate("first")
    weights = Path(version.folder) / "model.safetensors"

    weights.write_text("other")
    with pytest.raises(NotReleased, match="not those that were registered"):
        office.registry.approve("twin-1", by="Ada", rules=RULES)
    weights.unlink()
    with pytest.raises(NotReleased, match="cannot be served"):
        office.registry.approve("twin-1", by="Ada", rules=RULES)


def test_an_erasure_after_the_approval_stands_against_a_deployment(office: Office, shelf: Shelf) -> None:
    office.champion("first")
    assert office.registry.deployable("champion").id == "twin-1"

    shelf.erase("doc-2", at=LATER + timedelta(days=1))

    with pytest.raises(NotReleased, match="twin-1 is not deployed: it rests on document doc-2"):
        office.registry.deployable("champion")


def test_who_decided_for_a_model_in_spite_of_an_erasure_may_deploy_it_until_the_next(
    office: Office, shelf: Shelf
) -> None:
    office.candidate("first")
    shelf.erase("doc-2", at=LATER)
    with pytest.raises(NotReleased, match="--override"):
        office.registry.deployable("twin-1")
    office.registry.approve("twin-1", by="Ada", rules=RULES, override="the author agreed")
    assert office.registry.deployable("twin-1").state == "champion"

    shelf.erase("doc-1", at=LATER + timedelta(days=1))

    with pytest.raises(NotReleased, match="doc-1"):
        office.registry.deployable("twin-1")


def test_a_document_of_the_evaluation_alone_that_was_erased_counts_too(office: Office, shelf: Shelf) -> None:
    shelf.add_dataset("held-out", "doc-9", created_at=BUILT)
    version = office.candidate("first", dataset="held-out")
    shelf.erase("doc-9", at=LATER)

    with pytest.raises(NotReleased, match="its evaluation rests on document doc-9"):
        office.registry.approve("twin-1", by="Ada", rules=RULES)
    assert version.document_ids == ("doc-1", "doc-2"), "it is not made of it"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"])
def test_a_model_whose_tokenizer_or_configuration_changed_since_is_refused(office: Office, name: str) -> None:
    run = make_run(office.home / "runs" / "one", office.base)
    (run / "model" / name).write_text("{}")
    office.registry.register(run, evaluated(run, office.base))

    (run / "model" / name).write_text('{"eos_token_id": 7}')

    with pytest.raises(NotReleased, match="the tokenizer or the chat template"):
        office.registry.approve("twin-1", by="Ada", rules=RULES)
    assert office.registry.register(run, evaluated(run, office.base)).id == "twin-2", "that is another model"


def test_the_base_is_what_the_run_began_with_and_not_what_lies_there_now(office: Office) -> None:
    from training.evaluation.figures import weights_digest

    run = make_run(office.home / "runs" / "one", office.base, base_weights=weights_digest(office.base))
    evaluation = evaluated(run, office.base)
    began_with = weights_digest(office.base)
    (office.base / "model.safetensors").write_text("another base")

    version = office.registry.register(run, evaluation)

    assert version.bases == (began_with,)
    assert office.registry.judged(version, RULES).passes


def test_an_evaluation_on_what_nobody_knows_or_of_another_generation_is_refused(office: Office, shelf: Shelf) -> None:
    run = make_run(office.home / "runs" / "one", office.base)
    shelf.add_dataset("old", "doc-1", generation="g0")

    with pytest.raises(CannotRegister, match="no record of dataset made-up"):
        office.registry.register(run, evaluated(run, office.base, dataset="made-up"))
    with pytest.raises(CannotRegister, match="dataset old of generation g0"):
        office.registry.register(run, evaluated(run, office.base, dataset="old"))
    with pytest.raises(CannotRegister, match="of generation g0"):
        office.registry.register(run, evaluated(run, office.base, generation="g0"))


def test_every_evaluation_leaves_its_trace_and_the_same_one_leaves_one(office: Office) -> None:
    run = make_run(office.home / "runs" / "one", office.base)
    worse, better = evaluated(run, office.base, gain=-1.0), evaluated(run, office.base)

    for evaluation in (worse, better, better):
        version = office.registry.register(run, evaluation)

    traces = [decided.reasons for decided in version.decisions if decided.what == "evaluated"]
    assert [reasons[1].split(" (")[0] for reasons in traces] == [
        "bits_per_byte: difference +1",
        "bits_per_byte: difference -0.2",
    ]


def test_an_evaluation_of_the_champion_leaves_it_the_champion(
    office: Office, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = office.champion("first")
    office.champion("second", against=Path(first.folder))
    # As a crash leaves it: both are champions by their records.
    shelf.held["models"]["twin-1"]["state"] = "champion"
    run = Path(first.run)

    office.registry.register(run, evaluated(run, office.base, seed=7))

    champion = office.registry.champion()
    assert champion is not None
    assert champion.id == "twin-2"


def test_an_approval_says_by_which_rules(office: Office, tmp_path: Path) -> None:
    lax = tmp_path / "lax.yaml"
    lax.write_text("figures: {bits_per_byte: {must: not_worsen, margin: 9}}")
    office.candidate("first")

    version = office.registry.approve("twin-1", by="Ada", rules=load_rules(lax))

    assert f"by the rules of {lax} (SHA-256 " in version.decisions[-1].reasons[-1]


def test_asking_few_questions_switches_no_rule_off(office: Office, shelf: Shelf) -> None:
    shelf.add_dataset("d1", "doc-1", splits={"train": 400, "test": 60})
    run = make_run(office.home / "runs" / "one", office.base)
    few = evaluated(run, office.base)
    for found in (few.metrics, few.comparisons):
        found["correctness"] = msgspec.structs.replace(found["general"], name="correctness", n=3)  # type: ignore[type-var]
    office.registry.register(run, few)

    with pytest.raises(NotReleased, match="correctness: 3 samples are too few to judge"):
        office.registry.approve("twin-1", by="Ada", rules=RULES)

    shelf.add_dataset("d1", "doc-1", splits={"train": 40, "test": 12})
    office.registry.register(run, msgspec.structs.replace(few, seed=1))
    assert "and the dataset has 12" in str(office.registry.approve("twin-1", by="Ada", rules=RULES).decisions[-1])


def test_a_figure_is_excused_where_the_whole_test_has_no_more_families(office: Office, shelf: Shelf) -> None:
    shelf.add_dataset("d1", "doc-1", splits={"train": 400, "test": 60})
    run = make_run(office.home / "runs" / "one", office.base)
    found = evaluated(run, office.base)
    lax = msgspec.structs.replace(
        RULES, figures={**RULES.figures, "bits_per_byte": Rule(must="improve", families=3)}, source="here"
    )
    for figures in (found.metrics, found.comparisons):
        figures["bits_per_byte"] = msgspec.structs.replace(figures["bits_per_byte"], families=4)  # type: ignore[type-var]
        figures["correctness"] = msgspec.structs.replace(  # type: ignore[type-var]
            figures["general"], name="correctness", n=40, families=4
        )

    decision = office.registry.judged(office.registry.register(run, found), lax)

    assert decision.passes
    told = next(each for each in decision.not_judged if each.startswith("correctness"))
    assert told == (
        "correctness: samples of 4 document families are too few to judge, 5 are needed, and the dataset has 4"
    )


# Two homes on one warehouse


def test_two_homes_that_register_at_once_make_two_versions(
    office: Office, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = Office(tmp_path / "other", shelf)
    add, meanwhile = shelf.add_built, [lambda: other.candidate("theirs")]

    def overtaken(kind: Any, record: Any) -> None:
        while meanwhile:
            meanwhile.pop()()
        add(kind, record)

    monkeypatch.setattr(shelf, "add_built", overtaken)
    mine = office.candidate("mine")

    found = {version.id: Path(version.run).name for version in office.registry.versions()}
    assert found == {"twin-1": "theirs", "twin-2": "mine"}
    assert mine.id == "twin-2"


def test_a_decision_in_another_home_is_not_written_over(
    office: Office, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = Office(tmp_path / "other", shelf)
    office.candidate("first")
    replace, meanwhile = shelf.replace_built, [lambda: other.registry.reject("1", by="Grace", reason="it swears")]

    def overtaken(kind: Any, record: Any, *, decisions: int) -> None:
        while meanwhile:
            meanwhile.pop()()
        replace(kind, record, decisions=decisions)

    monkeypatch.setattr(shelf, "replace_built", overtaken)

    with pytest.raises(NotReleased, match="at this very moment"):
        office.registry.approve("twin-1", by="Ada", rules=RULES)
    assert office.states() == {"twin-1": "rejected"}


# Rejecting and going back


def test_a_candidate_is_rejected_with_a_reason(office: Office) -> None:
    office.candidate("first")

    version = office.registry.reject("twin-1", by="Ada", reason="it swears")

    assert (version.state, version.decisions[-1].reasons) == ("rejected", ("it swears",))
    assert office.aliases() == {}
    with pytest.raises(NotReleased, match="rejected already"):
        office.registry.reject("twin-1", by="Ada", reason="again")


def test_a_champion_that_has_a_former_is_not_rejected_but_rolled_back(office: Office) -> None:
    first = office.champion("first")
    office.champion("second", against=Path(first.folder))

    with pytest.raises(NotReleased, match="twin model rollback"):
        office.registry.reject("twin-2", by="Ada", reason="it swears")


def test_the_first_champion_is_rejected_and_leaves_none(office: Office) -> None:
    office.champion("first")
    with pytest.raises(NotReleased, match="no former champion to go back to: `twin model reject twin-1`"):
        office.registry.rollback(by="Ada", reason="it swears")

    version = office.registry.reject("champion", by="Ada", reason="it swears")

    assert (version.state, version.decisions[-1].reasons) == ("rejected", ("it swears",))
    assert office.registry.champion() is None
    assert office.aliases() == {}
    assert office.champion("second").state == "champion", "it is held against its base again"


def test_a_rollback_restores_the_former_champion_and_says_who_and_why(office: Office) -> None:
    first = office.champion("first")
    office.champion("second", against=Path(first.folder))

    restored, withdrawn = office.registry.rollback(by="Grace", reason="complaints")

    assert (restored.id, withdrawn and withdrawn.id) == ("twin-1", "twin-2")
    assert office.states() == {"twin-1": "champion", "twin-2": "rejected"}
    assert (restored.decisions[-1].by, restored.decisions[-1].reasons) == ("Grace", ("complaints",))
    assert office.aliases() == {"champion": "twin-1"}


def test_rollbacks_go_back_one_champion_at_a_time(office: Office) -> None:
    first = office.champion("first")
    second = office.champion("second", against=Path(first.folder))
    office.champion("third", against=Path(second.folder))

    assert office.registry.rollback(by="Ada", reason="x")[0].id == "twin-2"
    assert office.registry.rollback(by="Ada", reason="x")[0].id == "twin-1"
    with pytest.raises(NotReleased, match="no former champion"):
        office.registry.rollback(by="Ada", reason="x")


def test_a_rollback_to_what_was_made_from_an_erased_document_needs_a_reason(office: Office, shelf: Shelf) -> None:
    first = office.champion("first")
    office.champion("second", against=Path(first.folder))
    shelf.erase("doc-1", at=LATER)

    with pytest.raises(NotReleased, match="doc-1"):
        office.registry.rollback(by="Ada", reason="x")
    assert office.states() == {"twin-1": "former", "twin-2": "champion"}
    assert office.registry.rollback(by="Ada", reason="x", override="for an hour")[0].id == "twin-1"


def test_an_approval_that_a_crash_broke_off_leaves_one_champion(
    office: Office, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = office.champion("first")
    second = office.candidate("second", against=Path(first.folder))
    record, written = shelf.record_built, []

    def crashing(kind: Any, plain: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(plain)
        record(kind, plain)

    monkeypatch.setattr(shelf, "record_built", crashing)
    with pytest.raises(KeyboardInterrupt):
        office.registry.approve(second.id, by="Ada", rules=RULES)
    monkeypatch.undo()

    champion = office.registry.champion()
    assert champion is not None
    assert champion.id == "twin-2"
    assert office.registry.rollback(by="Ada", reason="x")[0].id == "twin-1"
    assert sorted(office.states().values()) == ["champion", "rejected"]


# MLflow and the warehouse


def test_where_mlflow_is_away_the_decision_holds_and_it_is_told_later(office: Office) -> None:
    office.away = True
    office.champion("first")
    assert "MLflow is away" in office.said

    office.away = False
    office.registry.tell()

    assert [(version.id, version.state, version.aliases) for version in office.shown] == [
        ("twin-1", "champion", ("champion",))
    ]


def test_versions_come_back_from_a_real_warehouse_and_an_erasure_finds_them(tmp_path: Path, mongodb_uri: str) -> None:
    settings = load({"TWIN_HOME": str(tmp_path), "TWIN_MONGODB_URI": mongodb_uri, "TWIN_DATABASE": "registry"})
    with connect(settings) as warehouse:
        warehouse.record_built(
            "datasets", {"_id": "d1", "document_ids": ["doc-1"], "created_at": BUILT, "generation": "g1"}
        )
        office = Office(tmp_path / "office", warehouse)
        first = office.champion("first")

        assert office.registry.champion() == first
        assert warehouse.built_from(["doc-1"])["models"] == ["twin-1"]


def test_a_real_warehouse_adds_an_id_once_and_replaces_only_what_was_read(tmp_path: Path, mongodb_uri: str) -> None:
    settings = load({"TWIN_HOME": str(tmp_path), "TWIN_MONGODB_URI": mongodb_uri, "TWIN_DATABASE": "registry_races"})
    with connect(settings) as warehouse:
        warehouse.add_built("models", {"_id": "twin-1", "who": "first", "decisions": [1]})
        with pytest.raises(AlreadyBuilt, match="twin-1"):
            warehouse.add_built("models", {"_id": "twin-1", "who": "second", "decisions": [1]})

        warehouse.replace_built("models", {"_id": "twin-1", "who": "third", "decisions": [1, 2]}, decisions=1)
        with pytest.raises(BuiltMeanwhile, match="twin-1"):
            warehouse.replace_built("models", {"_id": "twin-1", "who": "fourth", "decisions": [1, 2]}, decisions=1)

        assert [record["who"] for record in warehouse.built("models")] == ["third"]
