"""From documents to the samples of a dataset version, by a recipe. No I/O here but what a wordsmith does.

The same documents, recipe and words of models give the same samples in the same order: that is what a rebuild rests on.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from corpus.history import DocumentVersion
from training.datasets.families import divide, families
from training.datasets.gates import Context, Gated, Thresholds, gate
from training.datasets.instructions import METHODS, Limits, NoWordsmith
from training.datasets.likeness import Embed
from training.datasets.preferences import Feedback, Rules, paired, preferred, prompts
from training.datasets.ranges import InvalidRecipe, Positive
from training.datasets.samples import SPLITS, InstructionSample, Method, Sample, Split, asked
from training.datasets.scoring import scored
from training.datasets.wordsmith import Wordsmith

Kind = Literal["instructions", "preferences"]
# Of the document families.
HeldOut = Annotated[float, msgspec.Meta(ge=0, le=0.5)]
# Below, a split says nothing: an evaluation on it would be a coin.
FEWEST_SAMPLES = 2


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that decides, beside the documents, which samples a dataset has.

    `size`: samples of all splits together, None for all there are; `validation`, `test`: shares of the document
    families; `authors` (names), `categories`, `languages`: only these, empty for all; `wordsmith`: the model that wrote
    (instructions, questions, or the rejected answers; with `rewrites` it rewords templates, with `judged` it scores
    samples), `embedder`: the model that compared meanings, "" for none; `evaluation_sets`: SHA-256 by name of what must
    not be trained on; `feedback`: ids of what people said. Raises InvalidRecipe for what does not go together.
    """

    kind: Kind = "instructions"
    methods: tuple[Method, ...] = ("backtranslation", "code")
    size: Positive | None = None
    seed: int = 7
    validation: HeldOut = 0.1
    test: HeldOut = 0.1
    authors: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    wordsmith: str = ""
    rewrites: bool = False
    judged: bool = False
    embedder: str = ""
    limits: Limits = Limits()
    thresholds: Thresholds = Thresholds()
    rules: Rules = Rules()
    evaluation_sets: dict[str, str] = {}
    feedback: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.validation + self.test >= 1:
            raise InvalidRecipe(
                f"validation ({self.validation}) and test ({self.test}) must leave a share for train: below 1 in all"
            )
        if self.kind == "preferences" and "question" in self.methods:
            raise InvalidRecipe(
                "methods: question is none for preferences, whose chosen answers are the author's own words: "
                "backtranslation, code, or both"
            )


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a recipe asks for: `evaluation_sets`: the texts of each by its name; the others as the recipe names them."""

    documents: Sequence[DocumentVersion]
    wordsmith: Wordsmith | None = None
    embed: Embed | None = None
    evaluation_sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    feedback: Sequence[Feedback] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """The samples of each split in their order. `left_out`: how many were not taken, by reason; `notes`: why a gate, by
    its name, could not look or only in part; `families`: the family of each document."""

    splits: Mapping[Split, tuple[Sample, ...]]
    left_out: Mapping[str, int]
    notes: Mapping[str, str]
    families: Mapping[str, str]


class TooFewSamples(ValueError):
    """The documents give too few samples; the message says how many, why, and what to do."""


def build(recipe: Recipe, ingredients: Ingredients) -> Built:
    """The samples that a recipe makes of these documents.

    Raises TooFewSamples, TooFew (document families), NoWordsmith, and what the wordsmith raises.
    """
    documents = _chosen(recipe, ingredients.documents)
    if not documents:
        raise TooFewSamples(_nothing(recipe, len(ingredients.documents)))
    of = families({each.document_id: each.text for each in documents}, {d.document_id: d.title for d in documents})
    places = divide(of, recipe.seed, recipe.validation, recipe.test)
    left_out: Counter[str] = Counter()

    made: list[Sample] = []
    if recipe.kind == "instructions" or recipe.wordsmith:
        writes = ingredients.wordsmith if recipe.kind == "instructions" else None
        for method in recipe.methods:
            result = METHODS[method](documents, _writer(recipe, method, writes), recipe.limits)
            made += result.samples
            left_out.update({f"{method}: {reason}": count for reason, count in result.left_out.items()})
    kept, notes = _gated(recipe, ingredients, documents, made, of, left_out)
    if recipe.judged and recipe.kind == "instructions":
        if ingredients.wordsmith is None:
            raise NoWordsmith("scores need a language model: set TWIN_LLM_URL, or leave --judge out")
        found = scored(kept, ingredients.wordsmith, recipe.thresholds.judge)
        left_out.update(found.left_out)
        kept = found.samples
    if recipe.kind == "preferences":
        instructions = _instructions(recipe, ingredients, kept, places)
        told = _told(recipe, ingredients, of, places, left_out)
        # A pair is in the split of its instruction, so what is too little is so before a model is asked.
        _enough(recipe, _by_split([*instructions, *told], places), left_out)
        kept = [*_on_policy(recipe, ingredients, instructions, left_out), *told]
    samples = stratified(kept, recipe.size, recipe.seed, places)
    left_out["size: more than were asked for"] += len(kept) - len(samples)
    splits = _by_split(samples, places)
    _enough(recipe, splits, left_out)
    ordered = {split: tuple(sorted(found, key=_order)) for split, found in splits.items()}
    return Built(ordered, dict(+left_out), notes, of)


def _chosen(recipe: Recipe, documents: Sequence[DocumentVersion]) -> list[DocumentVersion]:
    chosen = (each for each in documents if _is_asked_for(recipe, each))
    return sorted(chosen, key=lambda each: each.document_id)


def _is_asked_for(recipe: Recipe, each: DocumentVersion | Feedback) -> bool:
    return (
        (not recipe.authors or each.author in recipe.authors)
        and (not recipe.categories or each.category in recipe.categories)
        and (not recipe.languages or each.language in recipe.languages)
    )


def _nothing(recipe: Recipe, there: int) -> str:
    if not there:
        return "there are no documents: bring some in (twin ingest SOURCE), and wait until they are indexed (twin wait)"
    asked_for = (*recipe.authors, *recipe.categories, *recipe.languages)
    return f"none of the {there} documents is of {', '.join(asked_for)}: `twin documents list` shows what there is"


def _writer(recipe: Recipe, method: Method, wordsmith: Wordsmith | None) -> Wordsmith | None:
    """Templates are rewritten only where that was asked for: it costs a request for each sample."""
    return wordsmith if method != "backtranslation" or recipe.rewrites else None


def _gated(
    recipe: Recipe,
    ingredients: Ingredients,
    documents: Sequence[DocumentVersion],
    made: Sequence[Sample],
    of: Mapping[str, str],
    left_out: Counter[str],
) -> tuple[list[Sample], Mapping[str, str]]:
    judged = _judged(recipe, ingredients, made, {each.document_id: each.text for each in documents}, left_out)
    kept = [
        msgspec.structs.replace(
            made[at],
            family=of[made[at].document_id],
            scores={**made[at].scores, **{name: round(score, 4) for name, score in judged.scores[at].items()}},
        )
        for at in judged.kept
    ]
    return kept, judged.left_out


def _judged(
    recipe: Recipe,
    ingredients: Ingredients,
    samples: Sequence[Sample],
    passages: Mapping[str, str],
    left_out: Counter[str],
) -> Gated:
    """What the gates say of samples; who falls is counted."""
    context = Context(
        passages=passages,
        embed=ingredients.embed,
        thresholds=recipe.thresholds,
        evaluation_sets=ingredients.evaluation_sets,
        languages=frozenset(recipe.languages) or None,
    )
    judged = gate(samples, context)
    left_out.update(f"gate: {finding.gate}" for finding in judged.findings)
    return judged


def _instructions(
    recipe: Recipe, ingredients: Ingredients, samples: Sequence[Sample], places: Mapping[str, Split]
) -> list[InstructionSample]:
    """As many instructions as are asked for, that a model answers; none where there is no model."""
    if ingredients.wordsmith is None:
        return []
    chosen = stratified(samples, recipe.size, recipe.seed, places)
    return [sample for sample in sorted(chosen, key=_order) if isinstance(sample, InstructionSample)]


def _on_policy(
    recipe: Recipe, ingredients: Ingredients, instructions: Sequence[InstructionSample], left_out: Counter[str]
) -> Sequence[Sample]:
    """The author's own answers against the model's."""
    if ingredients.wordsmith is None:
        return ()
    answers = ingredients.wordsmith.write(prompts(instructions))
    pairs = paired(instructions, answers, ingredients.wordsmith.name, recipe.rules)
    left_out.update({f"on-policy: {reason}": count for reason, count in pairs.left_out.items()})
    return _without_documents(recipe, ingredients, pairs.samples, left_out)


def _without_documents(
    recipe: Recipe, ingredients: Ingredients, pairs: Sequence[Sample], left_out: Counter[str]
) -> list[Sample]:
    """The pairs that pass the gates: what a model or a person wrote need not stand in any document."""
    return [pairs[at] for at in _judged(recipe, ingredients, pairs, {}, left_out).kept]


def _told(
    recipe: Recipe,
    ingredients: Ingredients,
    of: Mapping[str, str],
    places: Mapping[str, Split],
    left_out: Counter[str],
) -> Sequence[Sample]:
    """What people preferred, each in the family of a document that it rests on, unless another is in another split."""
    pairs = preferred([row for row in ingredients.feedback if _is_asked_for(recipe, row)], recipe.rules)
    left_out.update({f"feedback: {reason}": count for reason, count in pairs.left_out.items()})
    kept = []
    for pair, documents in zip(pairs.samples, pairs.documents, strict=True):
        known = [id for id in documents if id in of]
        if len({places[id] for id in known}) > 1:
            left_out["feedback: rests on documents of two splits"] += 1
        else:
            kept.append(msgspec.structs.replace(pair, family=of[known[0]] if known else ""))
    return _without_documents(recipe, ingredients, kept, left_out)


def _side(sample: Sample, places: Mapping[str, Split]) -> Split:
    """The split of a sample's family, which has the name of one of its documents; what rests on none is trained on."""
    return places.get(sample.family, "train")


def _by_split(samples: Sequence[Sample], places: Mapping[str, Split]) -> dict[Split, list[Sample]]:
    splits: dict[Split, list[Sample]] = {split: [] for split in SPLITS}
    for sample in samples:
        splits[_side(sample, places)].append(sample)
    return splits


def stratified(samples: Sequence[Sample], size: int | None, seed: int, places: Mapping[str, Split]) -> list[Sample]:
    """So many of the samples that splits, authors, categories and methods keep their shares; all if there are fewer.

    Within a stratum they are drawn by the hash of their text, so a larger size holds what a smaller one has.
    """
    if size is None or size >= len(samples):
        return list(samples)
    strata: defaultdict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        strata[_side(sample, places), sample.author, sample.category, sample.method].append(sample)
    exact = {key: size * len(found) / len(samples) for key, found in strata.items()}
    counts = {key: int(share) for key, share in exact.items()}
    # Largest remainders first; of equal ones in the order of their names.
    by_rest = sorted(exact, key=lambda key: (counts[key] - exact[key], key))
    for key in by_rest[: size - sum(counts.values())]:
        counts[key] += 1
    return [
        sample
        for key, found in strata.items()
        for sample in sorted(found, key=lambda each: _drawn(each, seed))[: counts[key]]
    ]


def _drawn(sample: Sample, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{sample.document_id}:{sample.start}:{asked(sample)}".encode()).hexdigest()


def _order(sample: Sample) -> tuple[str, int, str, str]:
    return sample.document_id, sample.start, sample.method, asked(sample)


def _enough(recipe: Recipe, splits: Mapping[Split, Sequence[Sample]], left_out: Counter[str]) -> None:
    shares = {"train": 1.0, "validation": recipe.validation, "test": recipe.test}
    short = [split for split in SPLITS if shares[split] > 0 and len(splits[split]) < FEWEST_SAMPLES]
    if short:
        counts = ", ".join(f"{split} {len(splits[split])}" for split in SPLITS)
        most = ", ".join(f"{reason} ({count})" for reason, count in (+left_out).most_common(3))
        raise TooFewSamples(
            f"{' and '.join(short)} would have fewer than {FEWEST_SAMPLES} samples ({counts}): bring in more "
            "documents, ask for more samples, or set the share of validation or test to 0"
            + (f"; most were left out because of: {most}" if most else "")
        )


def digest(kind: Kind, splits: Mapping[Split, Sequence[Sample]]) -> str:
    """SHA-256, in hexadecimal, of the samples of all splits in order, but for their scores.

    A score's last digit may depend on the machine that embedded; which samples there are does not.
    """
    whole = hashlib.sha256(kind.encode())
    for split in SPLITS:
        for sample in splits.get(split, ()):
            plain = {name: value for name, value in msgspec.to_builtins(sample).items() if name != "scores"}
            whole.update(msgspec.json.encode([split, plain], order="sorted"))
    return whole.hexdigest()
