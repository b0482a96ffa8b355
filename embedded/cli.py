"""The command line `twin`, assembled from each package's own commands. Nothing heavy is imported before its use."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from corpus.settings import InvalidSettings, Settings, load, masked_text
from embedded import commands as embedded_commands
from embedded import index_commands
from ingestion import capture_commands
from ingestion import commands as ingestion_commands
from serving import commands as serving_commands
from streaming import commands as streaming_commands
from training import commands as training_commands
from training.datasets import commands as dataset_commands
from training.evaluation import commands as evaluate_command
from training.release import commands as model_commands

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(prog="twin", description="A living, searchable copy of what an author has written.")
    root.add_argument("--version", action=_Version, nargs=0, help="show the version and end")
    root.add_argument("--home", metavar="DIR", help="where all state lies (TWIN_HOME, default .twin)")
    subparsers = root.add_subparsers(action=_Commands, dest="command", metavar="COMMAND", required=True)
    for commands in (
        *(embedded_commands, ingestion_commands, capture_commands),
        *(serving_commands, index_commands, streaming_commands),
        *(dataset_commands, training_commands, evaluate_command, model_commands),
    ):
        commands.register(subparsers)
    return root


class _Commands(argparse._SubParsersAction):  # type: ignore[type-arg]
    """A command without a longer description says in its own help what it does, too."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = super().add_parser(name, **{"description": options.get("help"), **options})
        return command


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"twin {version('llm-twin')}\n")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 (done), 1 (failed) or 2 (usage)."""
    # Before any library can be imported that would report its use to its makers.
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("SCARF_NO_ANALYTICS", "true")
    try:
        namespace = parser().parse_args(arguments)
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        handler: Callable[[argparse.Namespace, Settings], int] = namespace.handler
        return handler(namespace, load(home=namespace.home))
    except InvalidSettings as error:
        return _told(error, USAGE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if os.environ.get("TWIN_DEBUG"):
            raise
        return _told(error, FAILED)


def _told(error: Exception, code: int) -> int:
    named = str(error) if str(error) else type(error).__name__
    sys.stderr.write(f"twin: {masked_text(named)}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
