"""Runs the embedded MongoDB in the foreground until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging
import signal
import socketserver
import sqlite3
import sys
import threading
from pathlib import Path

from embedded.mongodb import connection_string
from embedded.mongodb.commands import Server
from embedded.mongodb.store import Store, StoreClosed, StoreInUse
from embedded.mongodb.values import CommandFailed
from embedded.mongodb.wire import OP_QUERY, InvalidMessage, Request, read_request, reply_to

logger = logging.getLogger("embedded.mongodb")


class Listener(socketserver.ThreadingTCPServer):
    """Accepts connections on 127.0.0.1 and serves each in a thread of its own."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, store: Store) -> None:
        super().__init__(("127.0.0.1", port), Connection)
        self.store = store
        self.commands = Server(store, f"127.0.0.1:{self.server_address[1]}")


class Connection(socketserver.StreamRequestHandler):
    """One client: reads requests and answers them in their order."""

    server: Listener
    disable_nagle_algorithm = True

    def handle(self) -> None:
        try:
            while (request := read_request(self.rfile.read)) is not None:
                reply = reply_to(request, respond(self.server.commands, request))
                # To a client an end within a command looks like any lost server: it finds the next one and tries again.
                if self.server.commands.stopping:
                    return
                if request.answered:
                    self.connection.sendall(reply)
        except InvalidMessage as error:
            logger.warning("closed a connection that sent %s", error)
        except OSError:
            logger.debug("a client went away", exc_info=True)
        finally:
            self.server.store.release()


def respond(server: Server, request: Request) -> dict[str, object]:
    """The reply to a request; a fault of ours is logged and answered as an error, and the connection goes on."""
    name = next(iter(request.body), "")
    if request.opcode == OP_QUERY and name not in ("hello", "isMaster", "ismaster"):
        return {"ok": 0.0, **CommandFailed(352, f"Unsupported OP_QUERY command: {name}").reply()}
    try:
        return server.answer(request.body)
    except StoreClosed:
        failure = CommandFailed(91, "The server is shutting down")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        logger.warning("the command %s failed", name, exc_info=True)
        failure = CommandFailed(9, f"{name} cannot be understood: {type(error).__name__}: {error}")
    except sqlite3.Error as error:
        logger.error("the command %s failed in the store: %s", name, error)
        failure = CommandFailed(1, f"{name} failed in the store: {error}")
    return {"ok": 0.0, **failure.reply(), **server.clock()}


def serve(port: int, directory: Path, history: int) -> None:
    """Serves until SIGTERM or SIGINT. Raises StoreInUse, OSError or sqlite3.Error when it cannot start."""
    store = Store(directory, history)
    try:
        listener = Listener(port, store)
    except OSError:
        store.close()
        raise
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    logger.info("serving %s from %s", connection_string(listener.server_address[1]), directory)
    ended.wait()
    listener.shutdown()
    listener.server_close()
    listener.commands.stop()
    store.close()


def main() -> int:
    """The command line. Returns 0 after a signal, 1 when the server cannot start."""
    parser = argparse.ArgumentParser(prog="python -m embedded.mongodb", description="A MongoDB for one machine.")
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--directory", type=Path, required=True, help="where the documents are kept")
    parser.add_argument("--history", type=int, default=200_000, help="changes kept for streams that resume")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        serve(arguments.port, arguments.directory, arguments.history)
    except (StoreInUse, OSError, sqlite3.Error) as error:
        logger.error("cannot serve port %d from %s: %s", arguments.port, arguments.directory, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
