"""Text that comes from data (names of classes, files, runs; errors), made safe to show."""

import html
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from urllib.parse import unquote

NUMBER = re.compile(r"[-+]?\d[\d.,]*( ?%)?( ± [\d.]+( ?%)?)?")  # such as 1,234 or 87.5% ± 2.0%
LONGEST = 300  # characters of an error's message
MARKDOWN = re.compile(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w)|^\s*[#+-](?=\s))")


def for_terminal(text: object) -> str:
    """Write out what is invisible or steers: control characters, marks of direction, surrogates."""
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else f"\\u{ord(character):04x}"
        for character in str(text)
    )


def for_markdown(text: object) -> str:
    """Escape text for a line or a table's cell of Markdown, where HTML and formulas are live."""
    text = html.escape(MARKDOWN.sub(r"\\\1", for_terminal(text)), quote=False)
    return text.replace("$", "<span>&#36;</span>")


def for_figure(text: object, longest: int = 60) -> str:
    """Escape text for matplotlib, which reads what stands between dollars as a formula."""
    return abridge(for_terminal(text), longest).replace("$", r"\$")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Write rows as a Markdown table: whole numbers with separators, numbers to the right."""
    texts = [[f"{x:,}" if isinstance(x, int) else str(x) for x in row] for row in rows]
    columns = zip(*texts, strict=True) if texts else [()] * len(header)
    numbers = [all(not text or NUMBER.fullmatch(text) for text in column) for column in columns]
    rule = ["---:" if number else ":---" for number in numbers]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *texts])


def abridge(text: str, longest: int) -> str:
    """Leave out the middle of a text that is too long."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[: longest - 1 - half]}…{text[-half:]}"


def reason(error: BaseException, longest: int = LONGEST) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    first = str(error).strip().partition("\n")[0].strip()
    return abridge(for_terminal(first or type(error).__name__), longest)


@cache
def say_once(text: str) -> None:
    """Print a line, but not again in this process."""
    print(text)


def without_secrets(text: object, address: str) -> str:
    """Blot out in a text all parts of a database's address but its kind, its host and its name."""
    scheme, separator, rest = address.partition("://")
    if not separator and "@" not in address:
        return str(text)  # a file
    account, _, place = rest.rpartition("@") if separator else address.rpartition("@")
    place, _, options = place.partition("?")
    if not account:  # without @, what stands for a host may be a password
        account, place = place, ""
    text = str(text).replace(address, f"{scheme}://***@{place}" if separator else "***")
    parts = re.split(r"[:/@?&=]+", f"{account}?{options}")
    for part in sorted({*parts, *map(unquote, parts)}, key=len, reverse=True):
        if len(part) > 2:
            text = text.replace(part, "***")
    return text
