"""Names of files, classes and settings as they are shown: no terminal, browser or picture obeys them."""

from __future__ import annotations

import re
import unicodedata

# Letters of some scripts, and families of emoji, are joined by them.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """Show what a terminal would obey, or nobody would see, as an escape: control codes, bidi marks, lone surrogates.

    Examples:
        >>> printable("caf\u00e9 \\x1b[31m\\a|")
        'caf\u00e9 \\\\x1b[31m\\\\x07|'
        >>> printable("\\u202egnp.exe"), printable("no\\u00a0break"), printable("\\udcff.png")
        ('\\\\u202egnp.exe', 'no break', '\\\\udcff.png')
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def in_markdown(text: str) -> str:
    """Show a text as it is inside of Markdown, in tables and elsewhere: no markup, HTML or entity of its own.

    Examples:
        >>> print(in_markdown("a|b <img src=x> [x](y) mean_teacher _x_ &amp;"))
        a\\|b &lt;img src=x&gt; \\[x\\](y) mean_teacher \\_x\\_ &amp;amp;
    """
    text = re.sub(r"[\\`*|~$\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def in_code(text: str) -> str:
    """Show a text as Markdown code, in tables as well.

    Examples:
        >>> print(in_code("a|`b`"))
        ``a\\|`b` ``
    """
    text = printable(text).replace("|", r"\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    around = [" " if text[place] == "`" else "" for place in (0, -1)] if text else ["", ""]
    return f"{fence}{around[0]}{text}{around[1]}{fence}"


def in_figure(text: str) -> str:
    r"""Show a text as it is in matplotlib, which reads formulas between dollars and hides what begins with `_`.

    Examples:
        >>> in_figure("$x^2$"), in_figure("_void")
        ('\\$x^2\\$', ' _void')
    """
    text = printable(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _shown(char: str) -> str:
    if char.isprintable() or char in _JOINERS:
        return char
    return " " if unicodedata.category(char) == "Zs" else ascii(char)[1:-1]
