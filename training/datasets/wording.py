"""What the wording of a text tells: boilerplate, lists of links, what is no prose, its language, and questions that
nobody understands without the passage. No I/O here.
"""

from __future__ import annotations

import re
import unicodedata

# What is around an author's text on a page, by what it is. Each stands at the head of a short line or sentence.
_AROUND = {
    "an appeal to subscribe": (
        r"(please |don.t forget to |click (here )?to |you can )?(like,? )?(share,? )?(and )?subscribe"
        r"(?=\W*$| (now|here|today|below|for free)"
        r"| to (my|our|the|this) (\w+ ){0,2}(newsletter|blog|channel|podcast|list))",
        r"(click (here )?to )?sign (up|in) (for|to|with) (my|our|the|your|google|email|medium|free)\b",
        r"sign (up|in)( now| here| today)?\W*$",
        r"join (my|our|the|this) (\w+ ){0,3}(newsletter|mailing list|community)",
        r"get (an email whenever|(my|our) (\w+ )?newsletter)",
        r"(newsletter|jetzt|kostenlos) abonnieren|abonnez-vous|s.abonner\W*$|suscr[ií]bete|iscriviti",
    ),
    "an appeal to follow": (
        r"(please )?follow (me|us)\b|connect with me\b|(you can )?find me on\b",
        r"buy me a coffee|become a (paid )?(member|patron|subscriber)|support (me|my work) (on|by)\b",
        r"(thanks|thank you) for reading\b",
    ),
    "an appeal to share": (
        r"share (this (post|article|story|page)|on (x|twitter|facebook|linkedin|reddit))\b",
        r"share\W*$|tweet this|copy link",
        r"(please )?(leave|write|post) a comment|clap (for|if)\b|(give|like|recommend) (it|this) (a clap|post|article)",
    ),
    "a way to other pages": (
        r"read (more|next|the full (story|article|post))\b|continue reading|more from\b",
        r"(load|view|see|show) (more|all)\W*$|(previous|next) (post|article|page)\W*$|open in app\b|\d+ min read\b",
        r"related (posts|articles|stories|reading)|you (might|may) also (like|enjoy)",
        r"back to (the )?(top|home)\b|skip to (the )?(main )?content|table of contents\W*$",
        r"weiterlesen\b|lire la suite|leer m[aá]s",
    ),
    "a notice on cookies or rights": (
        r"(we|this (web)?site) uses? cookies|(accept|manage|reject) (all )?cookies",
        r"cookie (policy|settings|preferences)|privacy policy\W*$|terms (of (service|use)|and conditions)\W*$",
        r"all rights reserved|©|(copyright )?\(c\) ?\d{4}|copyright \W*\d{4}",
        r"wir verwenden cookies|nous utilisons des cookies|utilizamos cookies",
    ),
}
BOILERPLATE = {name: re.compile(rf"\W*(?:{'|'.join(shapes)})", re.IGNORECASE) for name, shapes in _AROUND.items()}
# Above it a line is a sentence of the author, who may write about newsletters and cookies.
_LONGEST_LINE = 20
_SENTENCE = re.compile(r"[^\n.!?]+[.!?]*")
_LINK = re.compile(r"!?\[[^\[\]\n]{0,1000}\]\([^)\n]{0,2000}\)|<?https?://[^\s>]+>?")
# What names a text right behind the word for it: a title in quotation marks, or what it is the text of.
_NAMED = r"\s+(?:(?:titled|entitled|called|named)\b|[“”„«»‘\"'`*_\[]|of\b(?! (?:it|this|that|these|those)\b))"
# The words of a question that points at what the asker has before them, and nobody else. Not for samples of code, whose
# questions quote what it says of itself: that may well be about a text or a document.
GENERIC = re.compile(
    r"(?:\b(?:the|this|that|above|given|following|provided) (?:extract|excerpt|passage|snippet|text|paragraph|content"
    r"|context|article|section|document|piece|author.s (?:text|analysis|argument))\b"
    r"|\baccording to the (?:author|speaker|writer)\b"
    r"|\b(?:mentioned|described|discussed|stated|outlined)"
    r" (?:above|below|here|in the (?:text|article|passage|extract))\b"
    rf")(?!{_NAMED})",
    re.IGNORECASE,
)


def boilerplate(text: str) -> tuple[float, str]:
    """The share of a text's characters that stand in boilerplate, from 0 to 1, and what most of it is ("" for none)."""
    found: dict[str, int] = {}
    total = 0
    for match in _SENTENCE.finditer(text):
        sentence = match[0].strip()
        total += len(sentence)
        if len(sentence.split()) <= _LONGEST_LINE:
            for name, shape in BOILERPLATE.items():
                if shape.match(sentence):
                    found[name] = found.get(name, 0) + len(sentence)
                    break
    if not found:
        return 0.0, ""
    return sum(found.values()) / total, max(sorted(found), key=lambda name: found[name])


def links(text: str) -> float:
    """The share of the lines that are a link and hardly anything else; of fewer than two lines 0."""
    lines = [line for line in text.splitlines() if line.strip()]
    listed = sum(bool(_LINK.search(line)) and sum(map(str.isalpha, _LINK.sub("", line))) <= 20 for line in lines)
    return listed / len(lines) if len(lines) >= 2 else 0.0


def letters(text: str) -> float:
    """The share of letters and marks among the characters that are no space; of no characters 1."""
    # Without marks the vowels of many scripts would count as signs; ASCII has none, and most texts are ASCII.
    solid = "".join(text.split())
    if not solid:
        return 1.0
    return sum(char.isalpha() or (not char.isascii() and _is_mark(char)) for char in solid) / len(solid)


def _is_mark(char: str) -> bool:
    return unicodedata.category(char).startswith("M")
