"""Templates: how an author is asked for a passage or a definition, in the words of a language. No I/O here.

An instruction names what is around its answer, so that whoever reads it alone knows what is asked for.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from corpus.history import DocumentVersion
from training.datasets.definitions import Definition
from training.datasets.passages import FENCED, LINK, Passage, Place

TEMPLATES_VERSION = "templates-1"
LONGEST_TITLE = 120
TERMS = 3


class _Wording(NamedTuple):
    """How one language asks: `works`, by category and for a section, names what is asked for as an object, the one of a
    name in the genitive, and any one in the genitive; `frames`, by place; the rest is put into or behind them."""

    works: Mapping[str, tuple[str, str, str]]
    titled: str
    quoted: str
    about: str
    covering: str
    part: str
    last: str
    frames: Mapping[Place, tuple[str, ...]]


WORDINGS: dict[str, _Wording] = {
    "en": _Wording(
        works={
            "article": ("an article", "of the article", "of an article"),
            "post": ("a post", "of the post", "of a post"),
            "section": ("the section", "of the section", ""),
        },
        titled=" titled “{}”",
        quoted=" “{}”",
        about=" about {}",
        covering=", covering {}",
        part=" (part {} of {})",
        last=" and ",
        frames={
            "whole": ("Write {work}{more}.", "Could you write {work}{more}?", "Please write {work}{more}."),
            "opening": ("Write the opening {of}{more}.", "How would you begin {work}{more}?"),
            "middle": ("Write a passage from the middle {of}{more}.", "Write one of the middle parts {of}{more}."),
            "closing": ("Write the end {of}{more}.", "How would you end {work}{more}?"),
        },
    ),
    "de": _Wording(
        works={
            "article": ("einen Artikel", "des Artikels", "eines Artikels"),
            "post": ("einen Beitrag", "des Beitrags", "eines Beitrags"),
            "section": ("den Abschnitt", "des Abschnitts", ""),
        },
        titled=" mit dem Titel „{}“",
        quoted=" „{}“",
        about=" zu den Stichworten {}",
        covering=", mit den Stichworten {}",
        part=" (Teil {} von {})",
        last=" und ",
        frames={
            "whole": ("Schreibe {work}{more}.", "Bitte schreibe {work}{more}."),
            "opening": ("Schreibe den Anfang {of}{more}.", "Wie beginnst du {work}{more}?"),
            "middle": ("Schreibe ein Stück aus der Mitte {of}{more}.", "Schreibe einen mittleren Teil {of}{more}."),
            "closing": ("Schreibe den Schluss {of}{more}.", "Wie beendest du {work}{more}?"),
        },
    ),
    "fr": _Wording(
        works={
            "article": ("un article", "de l’article", "d’un article"),
            "post": ("un billet", "du billet", "d’un billet"),
            "section": ("la section", "de la section", ""),
        },
        titled=" intitulé «\u00a0{}\u00a0»",
        quoted=" «\u00a0{}\u00a0»",
        about=" sur les thèmes {}",
        covering=", avec les mots-clés {}",
        part=" (partie {} sur {})",
        last=" et ",
        frames={
            "whole": ("Écris {work}{more}.", "Peux-tu écrire {work}{more}\u00a0?"),
            "opening": ("Écris le début {of}{more}.", "Comment commences-tu {work}{more}\u00a0?"),
            "middle": ("Écris un passage du milieu {of}{more}.", "Écris l’une des parties centrales {of}{more}."),
            "closing": ("Écris la fin {of}{more}.", "Comment termines-tu {work}{more}\u00a0?"),
        },
    ),
    "es": _Wording(
        works={
            "article": ("un artículo", "del artículo", "de un artículo"),
            "post": ("una publicación", "de la publicación", "de una publicación"),
            "section": ("la sección", "de la sección", ""),
        },
        titled=" con el título «{}»",
        quoted=" «{}»",
        about=" sobre los temas {}",
        covering=", con las palabras clave {}",
        part=" (parte {} de {})",
        last=", ",  # "y" would be "e" before some words
        frames={
            "whole": ("Escribe {work}{more}.", "¿Puedes escribir {work}{more}?"),
            "opening": ("Escribe el comienzo {of}{more}.", "¿Cómo empiezas {work}{more}?"),
            "middle": ("Escribe un pasaje de la parte central {of}{more}.", "Escribe una parte intermedia {of}{more}."),
            "closing": ("Escribe el final {of}{more}.", "¿Cómo terminas {work}{more}?"),
        },
    ),
}
# Words of five letters and more that say nothing about what a text is about, in the four languages.
EMPTY_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        about above after again against almost along already although always among another anyone anything around
        because become becomes before being below better between cannot could different doesn during either enough every
        everything example first found given going great having however instead itself large least little makes making
        maybe might myself never nothing often other others ought people perhaps really right second seems several
        should simple simply since small someone something sometimes still their themselves there therefore these thing
        things think third those though three through times together toward under until using usually wants where
        whether which while whole whose within without would years yourself andere anderen bereits damit danach daran
        darauf deine deinem deinen denen deren deshalb diese diesem diesen dieser dieses durch eigenen einem einen einer
        eines einige etwas gegen haben hatte hatten hinter immer indem jeden jeder jedes jetzt keine keinen können
        könnte machen manche meine müssen nachdem nicht nichts obwohl schon seine seinem seinen seiner solche sollte
        sondern soweit unsere unter viele vielleicht waren warum welche wenig werden wieder wirklich wurde wurden
        während würde zwischen ainsi alors après aucun aucune aujourd aussi autre autres avant avoir beaucoup celle
        celui cette chaque chose comme comment contre depuis encore entre étaient était faire jamais leurs lorsque
        maintenant mêmes moins notre parce pendant peuvent plusieurs plutôt pourquoi presque quand quelle quelque
        quelques selon seulement serait souvent toujours toute toutes votre ahora algunas algunos antes aquel aquella
        aunque contra cualquier cuando desde después donde durante ellas ellos entonces estaba estas estos están estar
        gracias había hacer hacia hasta incluso luego mejor menos mientras mismo misma mucho muchos muchas nunca nuestra
        nuestro otras otros porque puede pueden quien según siempre sobre también tanto tiene tienen todas todos todavía
        """,
    )
)
TERM = re.compile(r"[^\W\d_]{5,}(?:['’-][^\W\d_]+)*")
CODE_FRAMES = (
    "Write the {language} {kind} `{name}`{where}{more}: {told}",
    "Implement the {kind} `{name}`{where} in {language}{more}. {told}",
    "How do you write the {kind} `{name}`{where} in {language}{more}? {told}",
)
NAMES = {"javascript": "JavaScript", "typescript": "TypeScript", "php": "PHP", "cuda": "CUDA", "shell": "shell"}


def for_passages(document: DocumentVersion, passages: Sequence[Passage]) -> list[list[str]]:
    """Of each passage of a document of prose the instructions that can ask for it, the one that says least first.

    Where title and headings do not tell two passages apart, what is particular to each does, or its number.
    """
    wording = WORDINGS.get((document.language or "en").split("-")[0].lower(), WORDINGS["en"])
    particular = _terms([_prose(document.text[passage.start : passage.end]) for passage in passages])
    result = []
    for number, (passage, terms) in enumerate(zip(passages, particular, strict=True), 1):
        told = _joined(terms, wording)
        part = wording.part.format(number, len(passages))
        covering = wording.covering.format(told) if told else ""
        # Without a heading nothing but its terms says which of the middle parts is meant.
        first = [""] if passage.headings or passage.place != "middle" else []
        added = (*first, covering, part, covering + part)
        result.append([_asked(document, passage, wording, told, more) for more in added])
    return result


def for_definition(document: DocumentVersion, definition: Definition, language: str, again: int) -> list[str]:
    """The instructions that can ask for a definition; `again`: which of this name it is in its document."""
    title = _short(document.title)
    return [
        frame.format(
            language=NAMES.get(language, language.title()),
            kind=definition.kind,
            name=definition.name,
            where=f" of {title}" if title else "",
            more=f" (definition {again} of this name)" if again > 1 else "",
            told=definition.told,
        )
        for frame in _in_turn(CODE_FRAMES, document.document_id, definition.start)
    ]


def _asked(document: DocumentVersion, passage: Passage, wording: _Wording, told: str, more: str) -> str:
    work, of_the, of_a = wording.works.get(document.category, wording.works["article"])
    if title := _short(document.title):
        work, of = work + wording.titled.format(title), of_the + wording.quoted.format(title)
    elif told:
        # What it is about stands in the place of a title, and need not follow again.
        about = wording.about.format(told)
        work, of, more = work + about, of_a + about, more.replace(wording.covering.format(told), "")
    else:
        of = of_a
    if passage.headings:
        both = ": ".join(dict.fromkeys(passage.headings[-2:]))
        section = wording.quoted.format(_short(both if len(both) <= LONGEST_TITLE else passage.headings[-1]))
        work, of = (f"{word}{section} {of}" for word in wording.works["section"][:2])
    frame = _in_turn(wording.frames[passage.place], document.document_id, passage.start)[0]
    return frame.format(work=work, of=of, more=more)


def _in_turn(frames: Sequence[str], document_id: str, start: int) -> list[str]:
    """All frames, beginning at the one that falls to this place of the document."""
    digest = hashlib.sha256(f"{document_id}:{start}".encode()).digest()
    first = int.from_bytes(digest[:4], "big") % len(frames)
    return [*frames[first:], *frames[:first]]


def _short(text: str) -> str:
    """A title or heading in one line, cut after a word where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_TITLE else f"{line[:LONGEST_TITLE].rsplit(' ', 1)[0].rstrip(' ,;:.')}…"


def _prose(text: str) -> str:
    return re.sub(r"`[^`\n]*`", " ", LINK.sub(" ", FENCED.sub(" ", text)))


def _terms(texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Of each text up to TERMS words that it has and the others seldom have, as they are written there."""
    found = [TERM.findall(text) for text in texts]
    counts = [Counter(term.casefold() for term in terms) for terms in found]
    spread = Counter(term for counted in counts for term in counted)
    result = []
    for terms, counted in zip(found, counts, strict=True):
        written = {term.casefold(): term for term in reversed(terms)}
        weights = {
            term: number * (1 + math.log(len(texts) / spread[term]))
            for term, number in counted.items()
            if term not in EMPTY_WORDS
        }
        # Of equal weight are those first that stand first, as `counted` has them.
        best = sorted(weights, key=lambda term: -weights[term])[:TERMS]
        result.append(tuple(written[term] for term in best))
    return result


def _joined(terms: Sequence[str], wording: _Wording) -> str:
    return wording.last.join(filter(None, [", ".join(terms[:-1]), *terms[-1:]]))
