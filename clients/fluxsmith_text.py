"""What text may be: the one rule for captions, prompts, names, users and trigger words, in the client and the services.

Any character that people write is allowed, whatever its script or width: no-break and ideographic spaces, joiners,
emoji, marks that turn the direction. Not allowed are control characters (Unicode category Cc), which no keyboard
writes and terminals obey, and lone surrogates (Cs), which UTF-8 cannot hold. Text of invisible characters alone is
empty.

It lies outside of the package so that the services' tensor code can import it without gRPC.
"""

import re
import unicodedata

# Cc but for line breaks and tabs, which text of several lines may have; Cs. As expressions, since texts may be long.
_NOT_IN_LINES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# The marks U+202A to U+202E and U+2066 to U+2069 turn or hold all that follows, beyond the text that they stand in.
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Letters, marks and symbols that show nothing, by Unicode's property Default_Ignorable_Code_Point; and braille's blank.
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0")
_UNSEEN_RANGES = ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF))
_UNSEEN_CATEGORIES = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})


def fault_of(text: str, *, lines: bool = False) -> str:
    """Return what is wrong with a text, such as `has the control character U+0007 at place 3`; empty if nothing is.

    With `lines` it may have line breaks and tabs.
    """
    found = (_NOT_IN_LINES if lines else _NOT_IN_A_LINE).search(text)
    if not found:
        return ""
    code, place = f"U+{ord(found[0]):04X}", found.start() + 1
    if unicodedata.category(found[0]) == "Cs":
        return f"has half a character (the lone surrogate {code}) at place {place}"
    return f"has the control character {code} at place {place}"


def is_blank(text: str) -> bool:
    """Return whether nothing of a text can be seen: it is empty, or spaces and invisible characters alone."""
    return all(map(_is_unseen, text))


def on_one_line(text: str) -> str:
    r"""Return a text for a terminal or a log: line breaks and what terminals obey are written as `\n` or `\x1b`.

    So are marks that turn the direction of what follows, `\u202e`: a name is not to change how the rest is read.
    """
    return _NOT_SHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _is_unseen(character: str) -> bool:
    number = ord(character)
    return (
        unicodedata.category(character) in _UNSEEN_CATEGORIES
        or character in _UNSEEN
        or any(first <= number <= last for first, last in _UNSEEN_RANGES)
    )


def quoted(text: str) -> str:
    """Return a text in quotes for an error, with emoji and spaces as they are, not as Python escapes them."""
    mark = '"' if "'" in text and '"' not in text else "'"
    return f"{mark}{on_one_line(text)}{mark}"
