"""Progress bars: tqdm's own in a terminal, in a notebook a line that leaves a clean page."""

import sys

from tqdm import std


class tqdm(std.tqdm):  # noqa: N801  (a drop-in)
    """tqdm, which in a notebook shows one line of text and takes it away at the end.

    Its own notebook bar is a widget, of which a saved page keeps "0%".
    """

    def __init__(self, *args, **options):
        if _in_notebook() and not options.get("disable"):
            options |= {"file": _Line(), "disable": False, "leave": False}
        super().__init__(*args, **options)


class _Line:
    """An output of a notebook's cell, written to as to a terminal's line."""

    def __init__(self):
        self.shown = None

    def write(self, text: str) -> None:
        content = {"text/plain": text.strip("\r\n ")}
        if self.shown:
            self.shown.update(content, raw=True)
        elif content["text/plain"]:
            from IPython.display import display  # noqa: PLC0415  (there in a notebook)

            self.shown = display(content, raw=True, display_id=True)

    def flush(self) -> None:
        """Do nothing: an output is shown at once."""


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")
