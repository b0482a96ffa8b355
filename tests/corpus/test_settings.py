"""Settings: where each comes from, what is refused and how, and what is shown of the secret ones."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.settings import (
    ADDRESSES,
    SCHEMES,
    SECRETS,
    InvalidSettings,
    Settings,
    load,
    masked,
    masked_text,
    running_addresses,
    without_password,
)


def written(home: Path, **addresses: str) -> None:
    home.mkdir(exist_ok=True)
    (home / ADDRESSES).write_text(json.dumps(addresses))


def test_the_command_line_wins_over_the_environment_over_dotenv_over_the_running_home(tmp_path: Path) -> None:
    home = tmp_path / ".twin"
    name = "TWIN_MONGODB_URI"
    assert load({}, tmp_path).mongodb_uri is None

    written(home, mongodb_uri="mongodb://running")
    assert load({}, tmp_path).mongodb_uri == "mongodb://running"
    (tmp_path / ".env").write_text(f"{name}=mongodb://dotenv\n")
    assert load({}, tmp_path).mongodb_uri == "mongodb://dotenv"
    assert load({name: "mongodb://environment"}, tmp_path).mongodb_uri == "mongodb://environment"
    overridden = load({name: "mongodb://environment"}, tmp_path, mongodb_uri="mongodb://line")
    assert overridden.mongodb_uri == "mongodb://line"


def test_an_empty_variable_or_an_option_not_given_is_not_set(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TWIN_LLM_MODEL=a-model\nTWIN_DATABASE=\n")

    settings = load({"TWIN_LLM_MODEL": "", "TWIN_PORT": ""}, tmp_path, home=None)

    assert (settings.llm_model, settings.port, settings.database) == ("a-model", None, "twin")
    assert settings.home == tmp_path / ".twin"


def test_the_home_names_the_addresses_that_are_read(tmp_path: Path) -> None:
    written(tmp_path / "one", app_url="http://one")
    written(tmp_path / "two", app_url="http://two")
    (tmp_path / ".env").write_text("TWIN_HOME=one\n")

    assert load({}, tmp_path).app_url == "http://one"
    assert load({"TWIN_HOME": "two"}, tmp_path).app_url == "http://two"
    assert load({"TWIN_HOME": "two"}, tmp_path, home=str(tmp_path / "one")).app_url == "http://one"
    assert load({"TWIN_HOME": "three"}, tmp_path).app_url is None


def test_what_is_not_a_setting_of_ours_is_passed_over(tmp_path: Path) -> None:
    assert load({"TWIN_SOMETHING": "1", "PORT": "1", "PATH": "/bin"}, tmp_path) == load({}, tmp_path)


def test_values_become_what_they_are_for(tmp_path: Path) -> None:
    environment = {
        "TWIN_PORT": "8080",
        "TWIN_ALLOW_PRIVATE_ADDRESSES": "true",
        "TWIN_CRAWL_TIMEOUT": "1.5",
        "TWIN_API_KEYS": "first, second,,",
        "TWIN_HOME": "/somewhere/else",
    }

    settings = load(environment, tmp_path)

    assert (settings.port, settings.allow_private_addresses, settings.crawl_timeout) == (8080, True, 1.5)
    assert settings.api_keys == ("first", "second")
    assert settings.log_directory == Path("/somewhere/else/logs")


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TWIN_PORT", "abc", "expected a whole number"),
        ("TWIN_PORT", "-1", "expected a whole number >= 0"),
        ("TWIN_PORT", "70000", "expected a whole number <= 65535"),
        ("TWIN_PARTITIONS", "0", "expected a whole number >= 1"),
        ("TWIN_LLM_TIMEOUT", "soon", "expected a number"),
        ("TWIN_ALLOW_PRIVATE_ADDRESSES", "perhaps", "expected true or false"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(tmp_path: Path, variable: str, value: str, reason: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        load({variable: value}, tmp_path)

    assert str(refused.value) == f"{variable}: {reason}"


@pytest.mark.parametrize("left", [b"", b'{"app_url": "http:', b"[1]", b"\xff\xfe"])
def test_addresses_that_a_power_failure_left_are_of_no_running_home(tmp_path: Path, left: bytes) -> None:
    (tmp_path / ADDRESSES).write_bytes(left)

    assert running_addresses(tmp_path) == {}
    assert load({"TWIN_HOME": str(tmp_path)}, tmp_path).app_url is None


def address_scheme(name: str) -> str:
    return {"mongodb_uri": "mongodb", "kafka_bootstrap_servers": "plaintext"}.get(name, "http")


@pytest.mark.parametrize("name", sorted(SCHEMES))
@pytest.mark.parametrize(
    "value",
    ["user:hunter2@host", "mongo://user:hunter2@host", "hunter2 ", "mongodb://user:hunter2", "http://user:hunter2/x"],
)
def test_what_is_no_address_is_refused_without_repeating_it(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InvalidSettings, match=f"TWIN_{name.upper()}: expected an address like ") as refused:
        load({f"TWIN_{name.upper()}": value}, tmp_path)
    assert "hunter2" not in str(refused.value)

    shown = masked(Settings(**{name: value}))
    assert "hunter2" not in json.dumps(shown)


@pytest.mark.parametrize(
    "value", ["mongodb://a:1,b:2/?replicaSet=rs0", "mongodb+srv://cluster.example.org/twin", "mongodb://[::1]:27017"]
)
def test_an_address_without_secrets_is_shown_as_it_is(tmp_path: Path, value: str) -> None:
    assert masked(load({"TWIN_MONGODB_URI": value}, tmp_path))["mongodb_uri"] == value
    assert masked_text(f"MongoDB at {value} does not answer") == f"MongoDB at {value} does not answer"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http://me:hunter2@db/ refused", "http://***@db/ refused"),
        ("mongodb://me:hun ter2@db/ refused", "mongodb://***@db/ refused"),
        ("'me:hunter2@db' is no address", "'***@db' is no address"),
        ("GET https://x.org/a?access_token=hunter2&page=2", "GET https://x.org/a?access_token=***&page=2"),
        ("'https://x.org/?sig=hunter2' answered 403", "'https://x.org/?sig=***' answered 403"),
        ("mongodb://h/?p=AWS_SESSION_TOKEN:hunter2", "mongodb://h/?p=AWS_SESSION_TOKEN:***"),
        ("sasl.password=hunter2, sasl.mechanism=PLAIN", "sasl.password=***, sasl.mechanism=PLAIN"),
    ],
)
def test_no_secret_is_told_in_a_sentence(text: str, told: str) -> None:
    assert masked_text(text) == told


@pytest.mark.parametrize(
    "text",
    [
        "https://medium.com/@author/an-article does not exist",
        "http://127.0.0.1:8000/@author answered 500",
        "/home/ada@work/notes.md is empty",
        "git@github.com:ada/notes.git cannot be cloned",
        "expected a key: value",
    ],
)
def test_a_sentence_without_secrets_stays(text: str) -> None:
    assert masked_text(text) == text


def test_secrets_and_passwords_are_shown_as_asterisks(tmp_path: Path) -> None:
    secret = "hunter2"
    given_ = {f"TWIN_{name.upper()}": secret for name in SECRETS}
    addresses = ("mongodb_uri", "kafka_bootstrap_servers", "connect_url", "qdrant_url", "app_url", "llm_url")
    given_ |= {f"TWIN_{name.upper()}": f"{address_scheme(name)}://user:{secret}@host:1/path" for name in addresses}

    shown = masked(load(given_, tmp_path))

    assert secret not in json.dumps(shown)
    assert {shown[name] for name in SECRETS} == {"***"}
    assert all(shown[name] == f"{address_scheme(name)}://***@host:1/path" for name in addresses)
    assert set(shown) == set(Settings.__struct_fields__)


def test_what_is_not_secret_is_shown_as_it_is(tmp_path: Path) -> None:
    shown = masked(load({"TWIN_LLM_URL": "http://host:8000/v1", "TWIN_CRAWL_CONTACT": "me@example.org"}, tmp_path))

    assert (shown["llm_url"], shown["crawl_contact"]) == ("http://host:8000/v1", "me@example.org")
    assert (shown["port"], shown["database"], shown["qdrant_api_key"]) == (None, "twin", None)
    assert msgspec.json.encode(shown)


@given(
    user=st.text(st.characters(codec="ascii", exclude_characters="/@:", min_codepoint=33), min_size=1),
    password=st.text(st.characters(codec="ascii", exclude_characters="/@", min_codepoint=33), min_size=8),
    path=st.sampled_from(["", "/", "/database?replicaSet=rs0"]),
)
def test_no_password_survives(user: str, password: str, path: str) -> None:
    address = f"mongodb://{user}:{password}@host:27017{path}"

    assert without_password(address) == f"mongodb://***@host:27017{path}"


@pytest.mark.parametrize("option", ["tlsCertificateKeyFilePassword=", "authMechanismProperties=AWS_SESSION_TOKEN:"])
def test_secrets_among_the_options_of_an_address_are_masked(option: str) -> None:
    address = f"mongodb://host/?{option}s3cr3t&replicaSet=rs0"

    assert without_password(address) == f"mongodb://host/?{option}***&replicaSet=rs0"
    assert masked(Settings(mongodb_uri=address))["mongodb_uri"] == without_password(address)
