"""What text may be: the one rule for captions, prompts, names, users and trigger words, in the client and the services.

Any character that people write is allowed, whatever its script or width: no-break and ideographic spaces, joiners,
emoji, marks that turn the direction. Not allowed are control characters (Unicode category Cc), which no keyboard
writes and terminals obey, and lone surrogates (Cs), which UTF-8 cannot hold. Text of invisible characters alone is
empty.

It lies outside of the package so that the services' tensor code can import it without gRPC.
"""

import unicodedata

LINE_CHARACTERS = "\n\t"
"""Control characters that text of several lines may have."""
# Letters, marks and symbols that show nothing, by Unicode's property Default_Ignorable_Code_Point; and braille's blank.
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_UNSEEN_RANGES = ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0000, 0xE0FFF))
_UNSEEN_CATEGORIES = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})


def fault_of(text: str, *, lines: bool = False) -> str:
    """Return what is wrong with a text, such as `has the control character U+0007 at place 3`; empty if nothing is.

    With `lines` it may have line breaks and tabs.
    """
    for place, character in enumerate(text, 1):
        category = unicodedata.category(character)
        if category == "Cs":
            return f"has half a character (the lone surrogate U+{ord(character):04X}) at place {place}"
        if category == "Cc" and not (lines and character in LINE_CHARACTERS):
            return f"has the control character U+{ord(character):04X} at place {place}"
    return ""


def is_blank(text: str) -> bool:
    """Return whether nothing of a text can be seen: it is empty, or spaces and invisible characters alone."""
    return all(_is_unseen(character) for character in text)


def on_one_line(text: str) -> str:
    r"""Return a text for a terminal or a log: line breaks and what terminals obey are written as `\n` or `\x1b`."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _NOT_SHOWN else character
        for character in text
    )


_NOT_SHOWN = frozenset({"Cc", "Cs", "Zl", "Zp"})


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
