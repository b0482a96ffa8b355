"""Personal data and secrets in a text: what a model must never learn by heart. A table of patterns, each with the check
that tells the real from the alike. No I/O here.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

Kind = Literal["personal data", "secret"]


class Exposed(NamedTuple):
    """What a text gives away: `what` names it and never repeats it; it is `text[start:end]`."""

    kind: Kind
    what: str
    start: int
    end: int


class _Pattern(NamedTuple):
    """`value` is the group that is looked at, and all of the match where there is none of this name; `near` must stand
    in the same line, at most `_NEAR` characters away."""

    kind: Kind
    what: str
    shape: re.Pattern[str]
    holds: Callable[[str], bool]
    near: re.Pattern[str] | None


# Names that are kept free for examples (RFC 2606, RFC 6761), and addresses that are nobody's.
_NOBODY = re.compile(r"^(no-?reply|git|postmaster|mailer-daemon)@|[@.](example(\.\w+)?|test|invalid|localhost|local)$")
_RESOLVERS = frozenset({"1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "9.9.9.9"})
_FICTION = re.compile(r"555\W*01\d\d$")
_PLACEHOLDER = re.compile(
    r"example|placeholder|change.?me|dummy|sample|xxx|\*\*\*|\.\.\.|^[<$%{]|\$\{|\{\w+\}|\byour[-_ ]|^your"
    r"|^(my|the|a|some)?[-_ ]?(secret|password|token|key)[-_ ]?(here)?$|^(test|none|null|true|false)$",
    re.IGNORECASE,
)
# What is said of a password instead of it: how it is kept, how long it is.
_OF_A_PASSWORD = re.compile(r"(base|sha|md|aes|rsa|utf|argon|pbkdf)-?\d|\d+-[a-z-]+\W*$", re.IGNORECASE)
_SPELLED_AT, _SPELLED_DOT = r" ?[\[({] ?at ?[\])}] ?", r" ?[\[({] ?dot ?[\])}] ?"
_NEAR = 60
_OF_A_PHONE = re.compile(
    r"phone|tel[eé]f|電話|携帯|\bt[eé]l\b|\bmobil|\b(?:cell|handy|whatsapp|fax|sms|dial)\b"
    r"|\bcall[ :]+(?:(?:me|us|him|her|them)\b|(?=[\d(]))",
    re.IGNORECASE,
)
_OF_SOCIAL_SECURITY = re.compile(r"\bSSN\b|\bsocial[- ]security\b", re.IGNORECASE)
# Issuers by first digits and length (ISO/IEC 7812).
_CARD = re.compile(r"4\d{12}(\d{3})?(\d{3})?|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|6(011|5\d\d)\d{12}")


def _is_somebodys(address: str) -> bool:
    return not _NOBODY.search(address.lower())


def _is_spelled_somebodys(address: str) -> bool:
    plain = re.sub(_SPELLED_AT, "@", re.sub(_SPELLED_DOT, ".", address.lower()))
    return _is_somebodys(plain)


def _is_phone(number: str) -> bool:
    digits = re.sub(r"\D", "", number)
    # E.164 has at most 15; numbers of films are nobody's.
    return 7 <= len(digits) <= 15 and len(set(digits)) > 2 and not _FICTION.search(number)


def _is_national_phone(number: str) -> bool:
    # Eight digits are rather a date.
    return 9 <= sum(char.isdigit() for char in number) <= 11 and _is_phone(number)


def _is_iban(number: str) -> bool:
    """Source: ISO 13616, with the check of ISO 7064 (MOD 97-10)."""
    plain = number.replace(" ", "")
    turned = plain[4:] + plain[:4]
    return 15 <= len(plain) <= 34 and int("".join(str(int(char, 36)) for char in turned)) % 97 == 1


def _is_card(number: str) -> bool:
    """Source: the Luhn formula, ISO/IEC 7812-1, annex B."""
    digits = re.sub(r"\D", "", number)
    doubled = (int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits)))
    return bool(_CARD.fullmatch(digits)) and sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _is_public_address(number: str) -> bool:
    try:
        address = ipaddress.IPv4Address(number)
    except ValueError:
        return False
    # Four small numbers are rather a version or a section.
    return address.is_global and number not in _RESOLVERS and max(address.packed) >= 20


def entropy(text: str) -> float:
    """Bits for each character of a text by its own frequencies (Shannon 1948); 0 for the empty one."""
    counts = Counter(text)
    return sum(-count / len(text) * math.log2(count / len(text)) for count in counts.values())


def _is_quoted_secret(value: str) -> bool:
    # A quoted name of one lower-case word is rather the name of a field.
    return not _PLACEHOLDER.search(value) and not re.fullmatch(r"[a-z_ -]+|[A-Z_]+", value)


def _is_random(value: str) -> bool:
    digits = sum(char.isdigit() for char in value)
    letters = sum(char.isalpha() for char in value)
    return digits >= 3 and letters >= 3 and entropy(value) >= 3.0 and not _PLACEHOLDER.search(value)


def _is_mixed(value: str) -> bool:
    """Letters and digits, as passwords have and words and numbers have not."""
    mixed = re.search("[A-Za-z]", value) and re.search("[0-9]", value)
    return bool(mixed) and not _PLACEHOLDER.search(value) and not _OF_A_PASSWORD.match(value)


def _is_no_placeholder(value: str) -> bool:
    return not _PLACEHOLDER.search(value)


def _always(_: str) -> bool:
    return True


def _pattern(
    kind: Kind,
    what: str,
    shape: str,
    holds: Callable[[str], bool] = _always,
    flags: int = re.ASCII,
    near: re.Pattern[str] | None = None,
) -> _Pattern:
    return _Pattern(kind, what, re.compile(shape, flags), holds, near)


_NAMED = r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|(?:api|access|auth|private|secret|account)[_-]?key)"
PATTERNS: tuple[_Pattern, ...] = (
    _pattern(
        "personal data",
        "an e-mail address",
        # A decorator's or an attribute's name after `@` is code.
        r"(?:(?<=mailto:)|(?<=[Mm]ail:)|(?<![\w.%+/:@-]))[A-Za-z0-9][\w.%+-]{0,63}@(?!self\.|np\.|torch\.)(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b(?!\()",
        _is_somebodys,
    ),
    _pattern(
        "personal data",
        "an e-mail address",
        # Letters of any script (RFC 6531); the pattern above finds those of ASCII within a text that has no spaces.
        r"(?<![\w.%+/:@-])[^\W_][\w.%+-]{0,63}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}\b(?!\()",
        lambda address: not address.isascii() and _is_somebodys(address),
        re.NOFLAG,
    ),
    _pattern(
        "personal data",
        "an e-mail address",
        rf"(?<![\w.%+-])\w[\w.%+-]{{0,63}}{_SPELLED_AT}(?:[\w-]{{1,63}}(?:\.|{_SPELLED_DOT})){{1,5}}[a-z]{{2,24}}\b",
        _is_spelled_somebodys,
        re.IGNORECASE,
    ),
    _pattern(
        "personal data",
        "a phone number",
        r"(?<![\w+.])\+[1-9]\d{0,2}[ .\-]?(?:\(\d{1,4}\)[ .\-]?)?\d{1,4}(?:[ .\-]?\d{2,4}){1,4}(?![\w])"
        r"|(?<![\w(])\([2-9]\d{2}\) ?\d{3}[-. ]\d{4}(?!\w)"
        r"|(?<![\w.-])(?:1-)?[2-9]\d{2}-\d{3}-\d{4}(?![\w-])"
        # The North American plan (NANP): neither the area nor the exchange begins with 0 or 1.
        r"|(?<![\w.-])(?<!version )(?:1\.)?[2-9]\d{2}\.[2-9]\d{2}\.\d{4}(?![\w-]|\.\d)"
        # Japan's mobile and IP telephones.
        r"|(?<![\w.-])0[5-9]0-\d{4}-\d{4}(?![\w-])"
        r"|\b(?:[Tt]el(?:ephone|efon)?|[Pp]hone|[Mm]obile|[Ff]ax|[Ww]hats[Aa]pp)(?: number| no)?\.?[:\s]{1,3}"
        r"(?P<value>[+(]?\d[\d ()./-]{5,18}\d)(?!\w)",
        _is_phone,
    ),
    _pattern(
        "personal data",
        "a phone number",
        # In groups after a trunk prefix 0 (ITU-T E.123), or the ten digits of the NANP: alone, any number may look so.
        r"(?<![\w.,:/+$€£-])(?<!\d )(?<!ISBN )(?<!ISBN: )"
        r"(?:(?:\(0\d{1,4}\) ?|0\d{1,4}[ ./-]?)\d{2,8}(?:[ ./-]\d{2,8}){0,3}|[2-9]\d{2} ?[2-9]\d{2} ?\d{4})"
        r"(?!\w|[ .,:/-]\d)",
        _is_national_phone,
        near=_OF_A_PHONE,
    ),
    _pattern(
        "personal data",
        "a social security number",
        # Areas, groups and serials that the Social Security Administration gives to nobody are left out.
        r"(?<![\w.-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])",
        near=_OF_SOCIAL_SECURITY,
    ),
    _pattern(
        "personal data",
        "an IBAN",
        r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)",
        _is_iban,
    ),
    _pattern("personal data", "a card number", r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w.-]?\d)", _is_card),
    _pattern(
        "personal data",
        "a public IP address",
        r"(?<![\w.-])(?<!version )(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)",
        _is_public_address,
    ),
    _pattern(
        "secret",
        "a private key",
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z0-9 ]+-----|\Z)",
    ),
    _pattern("secret", "an AWS access key", r"(?<!\w)(?:AKIA|ASIA)[A-Z0-9]{16}(?!\w)"),
    _pattern("secret", "a GitHub token", r"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})"),
    _pattern("secret", "a GitLab token", r"(?<!\w)glpat-[\w-]{20,}"),
    _pattern("secret", "a Hugging Face token", r"(?<!\w)hf_[A-Za-z0-9]{30,}(?!\w)"),
    _pattern(
        "secret",
        "a key of a language model's provider",
        r"(?<![\w-])sk-(?P<value>(?:proj-|ant-)?[A-Za-z0-9_-]{20,})",
        _is_random,
    ),
    _pattern("secret", "a Slack token", r"(?<!\w)xox[abeoprs]-\d[\w-]{10,}"),
    _pattern("secret", "a Slack token", r"(?<!\w)xapp-\d-[A-Z0-9]{6,}-\d{6,}-[a-f0-9]{16,}"),
    _pattern(
        "secret",
        "a webhook's address",
        # Whoever has it may post: Slack's incoming webhooks, Discord's `webhooks/ID/TOKEN`, Teams' incoming webhooks.
        r"https://(?:hooks\.slack\.com/(?:services|workflows|triggers)/[A-Z]\w{6,}(?:/\w{6,}){2,3}"
        r"|(?:\w{1,20}\.)?discord(?:app)?\.com/api/(?:v\d{1,2}/)?webhooks/\d{17,20}/[\w-]{20,}"
        r"|[\w-]{1,63}\.webhook\.office\.com/webhookb2/[\w@-]{36,}/IncomingWebhook/[\w-]{20,}(?:/[\w-]{20,})*)",
        _is_no_placeholder,
    ),
    _pattern("secret", "a Grafana token", r"(?<!\w)gl(?:sa|c)_[A-Za-z0-9+/=_]{20,}"),
    _pattern("secret", "a SendGrid key", r"(?<!\w)SG\.[\w-]{16,}\.[\w-]{16,}"),
    _pattern(
        "secret",
        "credentials of a request",
        r"\bauthorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:bearer|basic|token)\s+(?P<value>[A-Za-z0-9._~+/=-]{8,})",
        _is_no_placeholder,
        re.IGNORECASE | re.ASCII,
    ),
    _pattern("secret", "a Google API key", r"(?<!\w)AIza[\w-]{35}(?![\w-])"),
    # Google's secrets of OAuth clients begin so.
    _pattern("secret", "a Google client secret", r"(?<!\w)GOCSPX-[\w-]{20,}"),
    # DigitalOcean's prefixes of personal (p), OAuth (o) and refresh (r) tokens.
    _pattern("secret", "a DigitalOcean token", r"(?<!\w)do[por]_v1_[a-f0-9]{64}(?!\w)"),
    _pattern("secret", "a Stripe key", r"(?<!\w)[rs]k_live_[A-Za-z0-9]{16,}"),
    _pattern("secret", "a package registry's token", r"(?<!\w)(?:npm_[A-Za-z0-9]{36}(?!\w)|pypi-AgE[\w-]{50,})"),
    # The header has a bound, or a long line of their beginnings would take the square of its length.
    _pattern("secret", "a JSON web token", r"(?<!\w)eyJ[\w-]{8,4000}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
    _pattern(
        "secret",
        "a password in an address",
        r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/@:]{0,64}:(?P<value>[^\s/]{3,128})@",
        _is_no_placeholder,
    ),
    _pattern(
        "secret",
        "a password or key in an assignment",
        rf"{_NAMED}[\"']?\s{{0,3}}(?:=|:=?)\s{{0,3}}(?P<quote>[\"'])(?P<value>[^\"'\n]{{6,200}})(?P=quote)",
        _is_quoted_secret,
        re.IGNORECASE | re.ASCII,
    ),
    _pattern(
        "secret",
        "a password or key in an environment",
        r"(?<!\w)(?:[A-Z0-9]+_)*(?:PASSWORD|PASSWD|SECRET|TOKEN|API_KEY|ACCESS_KEY)="
        r"(?P<value>[^\s\"'`$<>{}()]{6,200})",
        _is_no_placeholder,
    ),
    _pattern(
        "secret",
        "a password in words",
        # `pwd` with a path is a folder, and `pass is` speaks of a round.
        r"\b(?:(?:pass(?:word|wd|phrase|code)|pwd(?!\W{1,5}[/~]))(?:\s{0,2}[:=]|\s{1,2}is\b:?)|pass\s{0,2}[:=])\s{0,2}"
        r"[\"'`*]{0,2}"
        r"(?P<value>[^\s\"'`<>(){}\[\],;]{6,100})",
        _is_mixed,
        re.IGNORECASE | re.ASCII,
    ),
    _pattern(
        "secret",
        "a random string after key, token or secret",
        r"(?:key|token|secret|passw(?:or)?d)[\"']?[\s:=]{1,5}[\"'`]?(?P<value>[A-Za-z0-9+/=_-]{16,200})(?![\w(.\[])",
        _is_random,
        re.IGNORECASE | re.ASCII,
    ),
)


def exposed(text: str) -> Iterator[Exposed]:
    """Every piece of personal data and every secret that the patterns know, by pattern and place."""
    for kind, what, shape, holds, near in PATTERNS:
        for match in shape.finditer(text):
            name = "value" if match.groupdict().get("value") is not None else 0
            start, end = match.span(name)
            if holds(match[name]) and (near is None or near.search(_line(text, start, end))):
                yield Exposed(kind, what, start, end)


def _line(text: str, start: int, end: int) -> str:
    """What stands near text[start:end] in its line, and itself; never more, however long the line is."""
    before = text[max(0, start - _NEAR) : start].rpartition("\n")[2]
    return before + text[start : end + _NEAR].partition("\n")[0]


def hidden(text: str) -> str:
    """The text with everything exposed replaced by what it is, fit for a report."""
    spans: dict[int, tuple[int, str]] = {}
    for found in exposed(text):
        end, _ = spans.get(found.start, (0, ""))
        if found.end > end:
            spans[found.start] = (found.end, found.what)
    told, at = [], 0
    for start, (end, what) in sorted(spans.items()):
        if start >= at:
            told += [text[at:start], f"[{what}]"]
        at = max(at, end)
    return "".join([*told, text[at:]])
