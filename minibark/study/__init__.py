"""What happened in one generation, and the page that shows it."""

from .trace import Trace, trace

__all__ = ["Trace", "trace"]
