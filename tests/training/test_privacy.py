"""What must not be learned by heart: addresses of people, and secrets in the forms that texts have them."""

from __future__ import annotations

import pytest

from training.datasets.passages import passages
from training.datasets.preferences import alike
from training.datasets.privacy import exposed, hidden


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
    ],
)
def test_what_only_speaks_of_secrets_is_none(text: str) -> None:
    assert list(exposed(text)) == []


def test_hostile_texts_take_no_minutes() -> None:
    """Each took time in the square of its length."""
    passages("[" * 200_000)
    assert alike("the same again " * 2_000, "again the same " * 3_000) > 0.5
