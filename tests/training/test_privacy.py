"""What must not be learned by heart: addresses of people, and secrets in the forms that texts have them."""

from __future__ import annotations

import pytest

from training.datasets.passages import passages
from training.datasets.preferences import alike
from training.datasets.privacy import exposed, hidden

GUID = "0f1e2d3c-0f1e-4d3c-8f1e-0f1e2d3c4b5a"


@pytest.mark.parametrize(
    "text",
    [
        "[write to me](mailto:jane.doe@bigcorp.com)",
        "Email:jane.doe@bigcorp.com",
        "DB_PASSWORD=hunter2secret",
        "password: Tr0ub4dor&3xyz",
        "Authorization: Bearer 8f7d6a5b4c3d2e1f",
        "'Authorization': 'Basic amFuZTpodW50ZXIy'",
        "redis://:s3cr3tpw@cache:6379",
        "postgres://app:p@ss@db/x",
        "glsa_" + "aB3" * 12,
        "SG." + "aB3" * 7 + "." + "cD4" * 12,
        "xapp-1-A012BCDEFGH-1234567890123-" + "ab12" * 8,
        "GOCSPX-" + "aB3_" * 7,
        "dop_v1_" + "0f" * 32,
        "https://hooks.slack.com/" + "services/T012ABCDEFG/B012ABCDEFG/" + "aB3d" * 6,
        "https://discord.com/" + "api/webhooks/123456789012345678/" + "aB3d" * 17,
        "https://bigcorp.webhook.office.com/" + f"webhookb2/{GUID}@{GUID}/IncomingWebhook/{'0f' * 16}/{GUID}",
        "password is Tr0ub4dor&3xyz",
        "the passphrase is: `hunter2`",
        "pwd: hunter22",
        "адрес@почта.рф",
        "juan@correo-españa.com",
        "jane [at] bigcorp [dot] com",
        "jane.doe (at) mail.bigcorp.com",
    ],
)
def test_what_is_private_is_found_and_hidden(text: str) -> None:
    assert list(exposed(f"It says {text} there."))
    assert text not in hidden(f"It says {text} there.")


@pytest.mark.parametrize(
    "text",
    [
        "Set TWIN_LLM_API_KEY to the key of your server.",
        "export DB_PASSWORD=$PASSWORD",
        "API_KEY=<your key>",
        "the password: at least eight characters",
        "Authorization: Bearer YOUR_TOKEN_HERE",
        "the token=value pairs of a query",
        "a decorator @pytest.mark.parametrize in code",
        "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX",
        "the password is sha256-hashed, the passphrase is 12-characters. And each pass is 10x-faster",
        "PWD=/home/ada2 and pwd: ~/gate10",
        "jane [at] example [dot] com, rows[at].name, and we met (at) noon. Then we left",
    ],
)
def test_what_only_speaks_of_secrets_is_none(text: str) -> None:
    assert list(exposed(text)) == []


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("It rings at {} all day.", "415.263.8891"),
        ("It rings at {} all day.", "1.415.263.8891"),
        ("It rings at {} all day.", "1-415-263-8891"),
        ("It rings at {} all day.", "090-1234-5678"),
        ("It rings at {} all day.", "+33 6 12 34 56 78"),
        ("My mobile, which I seldom answer, is {}.", "06 12 34 56 78"),
        ("Telefon (nur abends): {}", "030 12345678"),
        ("Telefon: siehe (030) 901820, mobil {}", "0170 1234567"),
        ("{} is on WhatsApp", "07700 912345"),
        ("Call {} or write.", "4155552671"),
        ("Phones: 030 12345678, {}", "07700 912345"),
    ],
)
def test_a_phone_number_in_the_form_of_its_country_is_found(line: str, number: str) -> None:
    found = hidden(line.format(number))

    assert number not in found
    assert "[a phone number]" in found


@pytest.mark.parametrize(
    "text",
    [
        "06 12 34 56 78",
        "4155552671 rows and 030 12345678 more",
        "a phone rang\n4155552671 rows",
        "The phone, and what follows for " + "a long, long while " * 4 + "after it: 4155552671",
        "The phone of 2024, bought on 03.04.2024 at 10:30, from 01/02/2023 to 05-06-2024",
        "the phone book, ISBN 0306406152 or 978-0-306-40615-7",
        "phone firmware version 415.263.8891, phone-lib 12.04.1.2, at 192.168.001.020",
        "a mobile costs $4155552671 or 1,234,567,890 or 0.4155552671",
        "| phone | 0012 3400 5600 7800 9000 1200 3400 |",
        "the call at 4155552671 returns",
    ],
)
def test_numbers_that_no_word_calls_a_phone_or_that_are_something_else_are_none(text: str) -> None:
    assert list(exposed(text)) == []


def test_a_social_security_number_is_known_by_the_word_and_by_its_groups() -> None:
    assert hidden("My SSN is 123-45-6789.") == "My SSN is [a social security number]."
    assert hidden("123-45-6789, my social security number") == "[a social security number], my social security number"
    for harmless in ("part 123-45-6789", "SSN 000-45-6789", "SSN 923-45-6789", "SSN 123-00-6789", "SSN 123-45-6789-1"):
        assert list(exposed(harmless)) == []


def test_hostile_texts_take_no_minutes() -> None:
    """Each took time in the square of its length."""
    passages("[" * 200_000)
    assert alike("the same again " * 2_000, "again the same " * 3_000) > 0.5


@pytest.mark.integration
@pytest.mark.parametrize("odd", ["eyJaaaaaaaa-", "phone 0", "a@b.", "é.", "a [at] b.", "SSN 123-45-"])
def test_a_megabyte_of_beginnings_takes_seconds_where_its_square_would_take_hours(odd: str) -> None:
    assert list(exposed(odd * (1_000_000 // len(odd)))) == []
