"""Escaping of names of files, classes and settings for terminals, Markdown and figures."""

from __future__ import annotations

import re
import unicodedata

# They join letters of some scripts, and emoji sequences.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    r"""Escape control codes, bidi marks, lone surrogates and other invisible characters.

    Examples:
        >>> printable("caf\u00e9 \x1b[31m\a|")
        'café \\x1b[31m\\x07|'
        >>> printable("\u202egnp.exe"), printable("no\u00a0break"), printable("\udcff.png")
        ('\\u202egnp.exe', 'no break', '\\udcff.png')
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def in_markdown(text: str) -> str:
    r"""Escape a text for Markdown, tables included, so that it holds no markup, HTML or entities.

    Examples:
        >>> print(in_markdown("a|b <img src=x> [x](y) mean_teacher _x_ &amp;"))
        a\|b &lt;img src=x&gt; \[x\](y) mean_teacher \_x\_ &amp;amp;
    """
    text = re.sub(r"[\\`*|~$\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def in_code(text: str) -> str:
    r"""Format a text as Markdown code that also works in tables.

    Examples:
        >>> print(in_code("a|`b`"))
        ``a\|`b` ``
    """
    text = printable(text).replace("|", r"\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    around = [" " if text[place] == "`" else "" for place in (0, -1)] if text else ["", ""]
    return f"{fence}{around[0]}{text}{around[1]}{fence}"


def in_figure(text: str) -> str:
    r"""Escape a text for matplotlib, which reads formulas between dollars and hides labels that begin with `_`.

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
