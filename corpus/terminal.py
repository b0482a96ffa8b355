"""What the commands of every room write to a terminal, and read from its command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def printable(text: str) -> str:
    """The text without control characters: a document never moves the cursor or colours of a reader's terminal."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


def bold(text: str) -> str:
    """Bold on a terminal, plain in a file or a pipe."""
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text


def faint(text: str) -> str:
    """Faint on a terminal, plain in a file or a pipe."""
    return f"\x1b[2m{text}\x1b[0m" if sys.stdout.isatty() else text


def print_json(value: Any) -> None:
    """A result for programs."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2)
    sys.stdout.write("\n")


def teller(silent: bool) -> Callable[[str], None]:
    """Says what is being done, a line at a time, where it does not mix with the result; `silent` says nothing."""

    def say(line: str) -> None:
        if not silent:
            sys.stderr.write(printable(line) + "\n")
            sys.stderr.flush()

    return say


def bounded(kind: Callable[[str], float], least: float, most: float, said: str) -> Callable[[str], float]:
    """A reader of an option's value; `said` tells which values there are."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if least <= (found := kind(text)) <= most:
                return found
        raise argparse.ArgumentTypeError(f"{text!r} is not {said}")

    return read
