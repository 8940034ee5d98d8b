"""What happened in one generation, and the page that shows it."""

from .align import Alignment, Head, WordTime
from .document import numbers, save_numbers
from .draws import Draws
from .pages import page, save_page
from .tracing import Trace, read_text, trace
from .words import ReadText, Word

__all__ = [
    "Alignment",
    "Draws",
    "Head",
    "ReadText",
    "Trace",
    "Word",
    "WordTime",
    "numbers",
    "page",
    "read_text",
    "save_numbers",
    "save_page",
    "trace",
]
