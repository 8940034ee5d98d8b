"""What happened in one generation, and the page that shows it."""

from .align import Alignment, Head, WordTime
from .document import numbers, save_numbers
from .draws import Draws
from .pages import page, save_page
from .tracing import Trace, trace
from .words import Word

__all__ = [
    "Alignment",
    "Draws",
    "Head",
    "Trace",
    "Word",
    "WordTime",
    "numbers",
    "page",
    "save_numbers",
    "save_page",
    "trace",
]
