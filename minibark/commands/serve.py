"""`minibark serve`: the speech endpoint of OpenAI's clients, and a page."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import shown
from .shared import add_model, add_running, open_bark, tell, whole_number

if TYPE_CHECKING:
    from .shared import Commands

_KEY = "MINIBARK_API_KEY"


def add_to(commands: Commands, parent: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    serve = commands.add_parser(
        "serve", parents=[parent], help="speak to programs and a page, over HTTP"
    )
    serve.set_defaults(run=_run, parser=serve)
    add_model(serve)
    add_running(serve)
    add = serve.add_argument_group("how to serve").add_argument
    add("--host", default="127.0.0.1", help="where to listen (this machine alone: %(default)s)")
    add("--port", type=whole_number(0, 65535), default=8080, help="0: any (%(default)s)")
    add("--voice", metavar="NAME", help="who speaks where a request names no voice")
    add(
        "--max-batch",
        type=whole_number(1, 256),
        default=8,
        metavar="N",
        help="requests that are spoken together (%(default)s)",
    )
    add(
        "--queue",
        type=whole_number(0, 100_000),
        default=32,
        metavar="N",
        help="requests that may wait; more are refused at once (%(default)s)",
    )
    add(
        "--processes",
        type=whole_number(1, 64),
        default=1,
        metavar="N",
        help="of the model, on a CPU, which share requests and cores: for narrow models such as "
        "tiny, and for many cores (%(default)s)",
    )
    add("--api-key", metavar="KEY", help=f"which requests must bring (default: ${_KEY}, or none)")
    add(
        "--max-body",
        type=whole_number(1, 1 << 20),
        default=256,
        metavar="KIB",
        help="the largest request (%(default)s)",
    )
    add("--uploads", action="store_true", help="take voices, which are kept in memory")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which it may be called, such as that of a proxy before it; once for each",
    )
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of another place use it, such as http://localhost:3000; once for each",
    )


def _run(args: argparse.Namespace) -> None:
    try:
        _serve(args)
    except KeyboardInterrupt:  # before the loop had its handlers, or after
        tell("ended")
    os._exit(0)  # a thread may be inside the model; and another signal finds nothing to interrupt


def _serve(args: argparse.Namespace) -> None:
    try:
        from ..serve.door import checked_host, checked_origin
        from ..serve.server import Settings, run
    except ImportError as error:
        raise ValueError(
            f"the package {error.name} is missing; pip install 'minibark[serve]' brings it"
        ) from error
    key = args.api_key if args.api_key is not None else os.environ.get(_KEY)
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        args.parser.error("the key must be printable ASCII without spaces around it")
    if not args.host.strip():
        args.parser.error("--host is empty; 127.0.0.1 is this machine alone, 0.0.0.0 every address")
    try:
        names = tuple(map(checked_host, args.allow_host))
        origins = tuple(map(checked_origin, args.allow_origin))
    except ValueError as error:
        args.parser.error(str(error))
    settings = Settings(
        model=shown(Path(args.model).name if os.path.isdir(args.model) else args.model, 80),
        host=args.host,
        port=args.port,
        voice=args.voice,
        most_running=args.max_batch,
        most_waiting=args.queue,
        n_processes=args.processes,
        key=key,
        names=names,
        origins=origins,
        uploads=args.uploads,
        most_bytes=args.max_body << 10,
        is_quiet=args.quiet,
        is_debug=args.debug,
    )
    run(settings, lambda: open_bark(args), tell)
