"""The release gate: whether a model may take the champion's place, by rules on intervals and not on points.

No I/O but the rules' own file. A rule looks at the interval of a figure's difference to the champion: one that just
might be better is not, and one that just might be much worse is refused.
Source: paired bootstrap intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993) as evaluations give
them; non-inferiority by a margin as in clinical trials (Piaggio et al., CONSORT, 2012).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import yaml  # type: ignore[import-untyped]

from training.evaluation.figures import ENOUGH_FAMILIES, ENOUGH_SAMPLES, Comparison, Evaluation, Metric

RULES = Path(__file__).with_name("rules.yaml")
Count = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class InvalidRules(ValueError):
    """Rules that cannot be used; the message names the file and the place, and says what is expected."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one figure must do: see `rules.yaml`. `by`, `margin` and `value` are in the figure's own unit;
    `samples`: how many it must rest on at least, and of how many document `families` where it knows them."""

    must: Literal["improve", "not_worsen", "reach"]
    by: NotNegative = 0.0
    margin: NotNegative = 0.0
    value: float | None = None
    required: bool = True
    samples: Count = ENOUGH_SAMPLES
    families: Count = ENOUGH_FAMILIES


class CanaryRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a canary has shown enough, and what it may do worse; see training/release/rules.yaml."""

    least_answers: Count = 20
    least_times: Count = 60
    failure_margin: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.2
    latency_factor: Annotated[float, msgspec.Meta(ge=1)] = 1.5


class DueRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From when on to train again: documents and their share of all (both), or lines of feedback."""

    documents: Count = 20
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    feedback: Count = 50


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every rule; `figures`: by the names of the figures; `questions`: how many the model must have been asked, or all
    that there are; `source`: the file that they are of, with a digest of them
    all, which `load_rules` alone sets."""

    figures: Annotated[dict[str, Rule], msgspec.Meta(min_length=1)]
    questions: Count = 20
    canary: CanaryRules = msgspec.field(default_factory=CanaryRules)
    due: DueRules = msgspec.field(default_factory=DueRules)
    source: str = "no file"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model passes; a sentence for each rule that `refuses` it or is `kept`, and for each `not_judged`."""

    passes: bool
    refuses: tuple[str, ...]
    kept: tuple[str, ...] = ()
    not_judged: tuple[str, ...] = ()

    def told(self) -> list[str]:
        """Every sentence marked by what it is, what refuses first."""
        marked = (("refuses", self.refuses), ("kept", self.kept), ("not judged", self.not_judged))
        return [f"{mark}: {sentence}" for mark, sentences in marked for sentence in sentences]


def load_rules(path: Path | None = None) -> Rules:
    """The rules in this file, or those that come with the program. Raises InvalidRules."""
    path = path or RULES
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidRules(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRules(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise InvalidRules(f"{path} is not YAML: {told[:200]}") from error
    if not isinstance(values, dict):
        raise InvalidRules(f"{path}: rules are sections, such as `figures:`; {RULES.name} of the program has them all")
    if "source" in values:
        raise InvalidRules(f"{path}: `source` is no section: leave it out")
    if "figures" not in values and path != RULES:
        values = {"figures": msgspec.to_builtins(load_rules().figures), **values}
    try:
        rules = msgspec.convert(values, Rules)
    except msgspec.ValidationError as error:
        raise InvalidRules(f"{path}: {error}") from error
    for name, rule in rules.figures.items():
        _check(path, name, rule)
    # Of what counts, which where sections are left out is not all in the file.
    digest = hashlib.sha256(msgspec.json.encode(rules)).hexdigest()
    named = "the program" if path == RULES else str(path)
    return msgspec.structs.replace(rules, source=f"{named} (SHA-256 {digest[:12]})")


def _check(path: Path, name: str, rule: Rule) -> None:
    if name not in FIGURES:
        raise InvalidRules(f"{path}: there is no figure {name}; there are {', '.join(FIGURES)}")
    if (rule.must == "reach") != (rule.value is not None):
        raise InvalidRules(f"{path}: {name}: `value` is for `must: reach`, which needs it")
    if rule.must != "improve" and rule.by:
        raise InvalidRules(f"{path}: {name}: `by` is for `must: improve`")
    if (rule.must == "not_worsen") != (rule.margin > 0):
        raise InvalidRules(f"{path}: {name}: `margin` is for `must: not_worsen`, which needs one above 0")


# Of answers with passages, for which a prompt may have no room.
RESTING = ("groundedness", "correctness")
FIGURES = (
    *("perplexity", "bits_per_byte", "style_author", "style_sentence_length", "style_vocabulary"),
    *("style_punctuation", "groundedness", "correctness", "win_rate", "general"),
)


def judge(
    evaluation: Evaluation, rules: Rules, *, available: Mapping[str, int] | None = None, mismatch: str = ""
) -> Decision:
    """Hold the figures against the rules. Where no rule could be judged the model does not pass.

    `available`: how many `samples` and `families` there were to evaluate on, as far as that is known. A figure on too
    few refuses unless there are no more, so that asking few questions switches no rule off. `mismatch`: why no
    comparison counts, which is told once and not of each figure.
    """
    refuses: list[str] = []
    kept: list[str] = []
    not_judged: list[str] = []
    there = available or {}
    uncompared = []
    for name, rule in rules.figures.items():
        # What a judge said of two models holds for these two.
        if mismatch and (rule.must != "reach" or name == "win_rate"):
            uncompared.append(rule)
            continue
        found = _found(evaluation, name, rule)
        if isinstance(found, TooFew):
            excused = _scarce(found, there) and not rule.required
            (not_judged if excused else refuses).append(
                f"{name}: {found.told}{_more(evaluation, name, rule, found, there)}"
            )
        elif isinstance(found, str):
            (refuses if rule.required else not_judged).append(f"{name}: {found}")
        else:
            (kept if found[0] else refuses).append(f"{name}: {found[1]}")
    if uncompared and kept and not any(rule.required for rule in uncompared):
        not_judged.insert(0, mismatch)
    elif uncompared:
        refuses.insert(0, mismatch)
    few = _few_questions(evaluation, rules, there)
    if few:
        refuses.append(few)
    if not kept and not refuses:
        refuses.append("nothing was judged: run `twin evaluate` with --against")
    return Decision(passes=not refuses, refuses=tuple(refuses), kept=tuple(kept), not_judged=tuple(not_judged))


def _scarce(few: TooFew, available: Mapping[str, int]) -> bool:
    """Whether there were no more to evaluate on."""
    return available.get(few.what, few.needed) < few.needed


def _more(evaluation: Evaluation, name: str, rule: Rule, few: TooFew, available: Mapping[str, int]) -> str:
    """Where more evidence would come from."""
    hold_out = ": hold more out (`test` of its recipe)"
    if _scarce(few, available):
        return f", and the dataset has {available[few.what]}{hold_out if rule.required else ''}"
    if evaluation.questions is None or evaluation.questions < available.get("samples", math.inf):
        return ": evaluate on more (`--questions`)"
    lacking = evaluation.notes.get("groundedness") if name in RESTING else None
    return f", though all {available['samples']} questions were asked{f' ({lacking})' if lacking else hold_out}"


def _few_questions(evaluation: Evaluation, rules: Rules, available: Mapping[str, int]) -> str:
    """Why the model was asked too little to be judged, so that no figure is missing for that; "" if it was not."""
    asked, there = evaluation.questions, available.get("samples")
    if asked is None or asked >= rules.questions or (there is not None and asked >= there):
        return ""
    return f"it was asked {asked} questions, and {rules.questions} are needed: evaluate on more (`--questions`)"


class TooFew(NamedTuple):
    """A figure that rests on too few `samples` or `families`, in words too."""

    what: str
    needed: int
    told: str


def _found(evaluation: Evaluation, name: str, rule: Rule) -> tuple[bool, str] | TooFew | str:
    """Whether a rule is kept, and in words; or why it cannot be judged."""
    metric, comparison = evaluation.metrics.get(name), evaluation.comparisons.get(name)
    figure = metric if rule.must == "reach" else comparison
    few = _too_few(figure or metric, rule)
    if few is not None:
        return few
    if metric is None or figure is None:
        why = evaluation.notes.get(name)
        missing = "not measured" if metric is None else f"not compared with {evaluation.against or 'another model'}"
        return missing if why is None else f"{missing} ({why.removeprefix('not measured: ')})"
    point = figure.value if isinstance(figure, Metric) else figure.difference
    if not all(map(math.isfinite, (figure.low, point, figure.high))) or not figure.low <= figure.high:
        return f"no interval ({figure.low} to {figure.high})"
    if isinstance(figure, Metric):
        return _reached(figure, rule)
    return _compared(figure, metric.better, rule)


def _too_few(figure: Metric | Comparison | None, rule: Rule) -> TooFew | None:
    if figure is None:
        return None
    if figure.n < rule.samples:
        told = f"{figure.n} samples are too few to judge, {rule.samples} are needed"
        return TooFew("samples", rule.samples, told)
    # Answers from one document are alike: they are one piece of evidence, however many there are.
    if figure.families is not None and figure.families < rule.families:
        told = f"samples of {figure.families} document families are too few to judge, {rule.families} are needed"
        return TooFew("families", rule.families, told)
    return None


def _reached(metric: Metric, rule: Rule) -> tuple[bool, str]:
    value = rule.value or 0.0
    kept = metric.low >= value if metric.better == "higher" else metric.high <= value
    bound = "at least" if metric.better == "higher" else "at most"
    told = f"{metric.value:.3g} ({metric.low:.3g} to {metric.high:.3g}), {'and' if kept else 'but'} must be"
    return kept, f"{told} {bound} {value:g} with its whole interval"


def _compared(comparison: Comparison, better: str, rule: Rule) -> tuple[bool, str]:
    """In terms of the gain: the difference, counted so that more is better."""
    sign = 1 if better == "higher" else -1
    gain, least, most = (
        sign * comparison.difference,
        *sorted((sign * comparison.low, sign * comparison.high)),
    )
    interval = f"difference {comparison.difference:+.3g} ({comparison.low:+.3g} to {comparison.high:+.3g})"
    said = f"{interval}, {better} is better"
    if rule.must == "improve":
        if least > rule.by:
            return True, f"better: {said}"
        how = "worse" if most < 0 else "not surely better" if gain > 0 else "not better"
        return False, f"{how}{f' by {rule.by:g}' if rule.by and how != 'worse' else ''}: {said}"
    if least > -rule.margin:
        return True, f"not worse by {rule.margin:g}: {said}"
    how = "worse" if most < 0 else "may be worse"
    return False, f"{how} by {rule.margin:g} or more: {said}"
