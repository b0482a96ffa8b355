"""What files say: their encoding, dates, headings and language."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.documents import in_milliseconds
from corpus.language import natural_language
from ingestion.formats import code_language, first_heading, read_markdown, reader
from ingestion.reading import Unreadable, decode, moment

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
NOON = datetime(2024, 3, 4, 12, tzinfo=UTC)
ENGLISH = "Cedars grow slowly on the mountain, and their roots hold the soil when the rain comes down in autumn. " * 3
GERMAN = "Die Zedern wachsen langsam auf dem Berg, und ihre Wurzeln halten die Erde, wenn der Regen fällt. " * 3


@settings(deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])
)
def test_text_comes_back_from_its_bytes(text: str, encoding: str) -> None:
    if encoding == "utf-8" and text.startswith("\ufeff"):
        return
    assert decode(text.encode(encoding)) == text


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_refused_with_the_place_of_the_wrong_one(content: bytes) -> None:
    try:
        decode(content)
        return
    except Unreadable as error:
        place = re.search(r"byte 0x(..) at offset (\d+)", str(error))
    assert place is None or content[int(place[2])] == int(place[1], 16)


def test_the_place_is_counted_from_the_beginning_of_the_file() -> None:
    with pytest.raises(Unreadable, match="is not valid UTF-8: byte 0xff at offset 4"):
        decode(b"\xef\xbb\xbfa\xff")


@settings(deadline=None)
@given(st.text(st.sampled_from("-:#\n aé[]{}&*!|>'\"0") | st.characters(codec="utf-8"), max_size=120))
def test_front_matter_of_any_kind_loses_no_text_below_it(matter: str) -> None:
    below = "The text below."
    assert read_markdown(f"---\n{matter}\n---\n{below}".encode().replace(b"\0", b"")).text.endswith(below)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("2024-03-04T12:00:00Z", NOON),
        ("2024-03-04T13:00:00+01:00", NOON),
        ("2024-03-04 12:00", NOON),
        ("Mon, 04 Mar 2024 12:00:00 GMT", NOON),
        (date(2024, 3, 4), NOON.replace(hour=0)),
        (datetime(2024, 3, 4, 12), NOON),
        ("0001-01-01T00:00:00+23:00", None),
        ("soon", None),
        (20240304, None),
        (None, None),
    ],
)
def test_dates_are_read_in_the_forms_that_pages_use(said: object, expected: datetime | None) -> None:
    assert moment(said) == expected


@settings(deadline=None)
@given(st.text(st.sampled_from("0123456789-:+TZ., JanMo"), max_size=30) | st.datetimes() | st.dates())
def test_a_date_that_is_read_can_be_stored(said: object) -> None:
    found = moment(said)
    assert found is None or in_milliseconds(found).tzinfo is UTC


@pytest.mark.parametrize(
    ("markdown", "heading"),
    [
        ("# One\n\n## Two", "One"),
        ("text\n\n###   Three   ###\n", "Three"),
        ("Under\n-----\n", "Under"),
        ("~~~\n# code\n~~~\n# Real", "Real"),
        ("#hashtag\n", None),
        ("    # indented code", None),
        ("", None),
    ],
)
def test_the_first_heading(markdown: str, heading: str | None) -> None:
    assert first_heading(markdown) == heading


@pytest.mark.parametrize(
    ("name", "prose", "code"),
    [("a.MD", True, None), ("b.py", False, "python"), ("Makefile", False, "makefile"), ("c.jpg", False, None)],
)
def test_names_say_what_a_file_is(name: str, prose: bool, code: str | None) -> None:
    assert (reader(name) is not None, code_language(name)) == (prose, code)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        (GERMAN, "de"),
        (GERMAN + "\n```python\n" + "for word in the_list_of_words: print(word)\n" * 40 + "```\n", "de"),
        (ENGLISH[:100], "en"),
        (GERMAN[:100], "de"),
        (
            "La rivière avait monté pendant la nuit et le pont était fermé. Personne ne savait quand il rouvrirait.",
            "fr",
        ),
        (
            "El río había crecido durante la noche y el puente estaba cerrado. Nadie sabía cuándo lo iban a abrir.",
            "es",
        ),
        (
            "De rivier was in de nacht gestegen en de brug was dicht. Niemand wist wanneer de weg weer open zou gaan.",
            "nl",
        ),
        ("Too short to say.", None),
        ("New post: Docker, Kubernetes, Terraform", None),
        ("1234 5678 " * 100, None),
    ],
)
def test_the_language_of_prose(text: str, language: str | None) -> None:
    assert [natural_language(text) for _ in range(3)] == [language] * 3
