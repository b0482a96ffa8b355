"""Documents of an author for tests of training data: prose with headings, and code with descriptions."""

from __future__ import annotations

import random

from corpus.history import DocumentVersion

WORDS = "river stone garden lantern copper meadow winter harbour thread market bridge candle orchard violin".split()  # noqa: SIM905
WORDS += "marble kitchen forest letter window shadow ribbon saddle island engine pepper barrel compass feather".split()  # noqa: SIM905


def article(number: int, author: str = "Ada", *, version: int = 1, sections: int = 4, seed: int = 0) -> DocumentVersion:
    """An article whose sentences no other article has."""
    source = random.Random(f"{number}-{seed}")
    text = f"# About subject {number}\n\n"
    for section in range(sections):
        sentences = [
            " ".join(["The", *source.sample(WORDS, 9), f"{source.choice(WORDS)}{number}"]).capitalize() + "."
            for _ in range(6)
        ]
        text += f"## {source.choice(WORDS).capitalize()} part {section}\n\n{' '.join(sentences)}\n\n"
    return told(f"doc-{number:03}", f"About subject {number}", text.strip(), author, version=version)


def module(number: int, author: str = "Ada") -> DocumentVersion:
    """A Python module with two functions that say what they do."""
    source = random.Random(f"code-{number}")
    parts = []
    for place in range(2):
        one, other = source.sample(WORDS, 2)
        parts.append(
            f"def {one}_{other}_{number}_{place}(value: int) -> int:\n"
            f'    """Add the {one} of {number} to the {other} and give back the sum."""\n'
            f"    {one} = value + {number}\n    {other} = {one} * {place + 2}\n    return {other} - {one}\n"
        )
    return told(
        f"code-{number:03}", f"module{number}.py", "\n\n".join(parts), author, category="code", language="python"
    )


def told(
    id: str, title: str, text: str, author: str, *, version: int = 1, category: str = "article", language: str = "en"
) -> DocumentVersion:
    return DocumentVersion(
        document_id=id,
        version=version,
        sequence=0,
        recorded_at="2026-06-01T00:00:00+00:00",
        generation="words-1",
        category=category,
        platform="files",
        author=author,
        author_id=f"id of {author}",
        url=f"file:///{id}",
        title=title,
        language=language,
        published_at=None,
        crawled_at="2026-06-01T00:00:00+00:00",
        crawl_id="",
        content_hash=f"hash of {id} {version}",
        text=text,
    )
