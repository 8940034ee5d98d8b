"""`python -m minibark` and `minibark`: the command line, from its first moment on.

What it needs takes a second to import. Ctrl-C in that second is one line, too.
"""

from __future__ import annotations

import signal

from .commands import ends


def main() -> int:
    """Run the command that the process was given; what it returns is the exit status."""
    ends.plug_streams()
    with ends.ended_by(ends.leave):
        from .commands.main import main as run

        status = run()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to tidy up, or to tell
    return status


if __name__ == "__main__":
    raise SystemExit(main())
