"""Which values a recipe may have, and how one that is wrong is told."""

from __future__ import annotations

from typing import Annotated

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
# Of a likeness: with none at all everything would be alike.
SomeShare = Annotated[float, msgspec.Meta(gt=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class InvalidRecipe(ValueError):
    """A value, or a file, that is no recipe; the message says what is wrong with it, and what is allowed."""


def fault(error: msgspec.ValidationError) -> str:
    """What is wrong with a value, after the place of its field where it has one."""
    reason, _, place = str(error).partition(" - at `$.")
    field = f"{place.rstrip('`')}: " if place else ""
    return f"{field}{reason[:1].lower()}{reason[1:]}"


def in_order(**values: float) -> None:
    """Of two values, by their names, the first must not be above the second. Raises InvalidRecipe."""
    (least, low), (most, high) = values.items()
    if low > high:
        raise InvalidRecipe(f"{least} ({low}) must not be above {most} ({high})")
