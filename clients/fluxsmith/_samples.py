"""Names and captions of samples: what the encoder takes, names made of those of files, and texts out of files."""

import codecs
import unicodedata
from collections.abc import Sequence

from fluxsmith_text import fault_of, is_blank

MOST_NAME_CHARACTERS = 200
MOST_TRIGGER_CHARACTERS = 64
MOST_CAPTIONS = 16
MOST_CAPTION_BYTES = 32 * 1024
"""The most that an encoder can be set to take, in UTF-8; what it takes is often less, and for it to say."""
EMPTY_CAPTION = "the caption is empty"
LONG_CAPTION = "the caption is too long"
"""What is said of such captions begins so."""
_MOST_MADE_CHARACTERS = 190  # less what makes a name unique
_REPLACEMENT = "_"
# The mark of UTF-32 begins as that of UTF-16 does, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Without a mark: the high bytes of most letters are control characters elsewhere.
_WITHOUT_MARK = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_FEWEST_CONTROLS = 2
_SHARE_OF_CONTROLS = 0.3
_MOST_SCRIPTS = 3
_WRITTEN_TOGETHER = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO"})
_CONTROLS = frozenset(range(0x20)) - frozenset(b"\t\n\r")
_NO_TEXT = frozenset({"Cc", "Cn", "Co", "Cs"})
_BYTE_ORDER_MARK = "\ufeff"


class NotText(ValueError):
    """Bytes that are no text; the message, if there is one, says what they seem to be."""


def decoded(content: bytes) -> str:
    r"""Return text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; its lines end in `\n`.

    Raises `NotText`.
    """
    try:
        return with_plain_lines(content.decode(encoding_of(content)))
    except UnicodeDecodeError as error:
        raise NotText from error


def encoding_of(beginning: bytes) -> str:
    """Return the encoding of a text that begins so; raises `NotText` for UTF-16 or UTF-32 without a mark."""
    marked = next((name for mark, name in _MARKS if beginning.startswith(mark)), "")
    if not marked and (wide := _wide_encoding(beginning)):
        raise NotText(f"it looks like {wide} without a byte order mark")
    return marked or "utf-8"


def _wide_encoding(content: bytes) -> str:
    """Return `UTF-16` or `UTF-32` if the bytes, which have no mark, make sense as that alone; else nothing."""
    controls = sum(byte in _CONTROLS for byte in content)
    if controls < _FEWEST_CONTROLS:
        return ""
    if controls < _SHARE_OF_CONTROLS * len(content) and _begins_as(content, "utf-8") is not None:
        return ""  # UTF-8 with a few characters that no text may have
    return next((name[:6].upper() for name in _WITHOUT_MARK if _makes_sense(_begins_as(content, name))), "")


def _begins_as(content: bytes, encoding: str) -> str | None:
    """Return the beginning of a text, whose last character may be cut; None if it is of another encoding."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        text = decoder.decode(content)
    except UnicodeDecodeError:
        return None
    # A surrogate pair or a letter of UTF-8 may be cut where the beginning ends, but no unit of two or four bytes.
    unit = {"utf-16": 2, "utf-32": 4}.get(encoding[:6], 1)
    return None if len(content) % unit else text


def _makes_sense(text: str | None) -> bool:
    """Return whether it is letters of a few scripts, with nothing that no text may have or that Unicode lacks."""
    if not text or any(unicodedata.category(each) in _NO_TEXT and each not in "\t\n\r" for each in text):
        return False
    words = {unicodedata.name(each, "").partition(" ")[0] for each in text if each.isalpha()}
    scripts = {"CJK" if word in _WRITTEN_TOGETHER else word for word in words}
    return 1 <= len(scripts) <= _MOST_SCRIPTS


def with_plain_lines(text: str) -> str:
    r"""Return the text with `\n` for the line ends of Windows and of old Macs, and without byte order marks.

    Marks are left within texts by programs that join files.
    """
    return text.replace(_BYTE_ORDER_MARK, "").replace("\r\n", "\n").replace("\r", "\n")


def caption_fault(caption: str) -> str:
    """Return what is wrong with a caption, to be read after `the caption`; empty if nothing is."""
    if fault := length_fault(caption):
        return fault
    if is_blank(caption):
        return "is empty" if not caption.strip() else "is empty: it has invisible characters alone"
    return fault_of(caption, lines=True)


def length_fault(caption: str) -> str:
    """Return whether a caption is too long, to be read after `the caption`; empty if it is not.

    Costs nothing for the longest text: what a caption says is to be looked at afterwards only.
    """
    size = len(caption)
    if size <= MOST_CAPTION_BYTES:
        size = len(caption.encode(errors="surrogatepass"))
    return (
        f"is too long: it has at least {size} bytes; use {MOST_CAPTION_BYTES} at most"
        if size > MOST_CAPTION_BYTES
        else ""
    )


def name_fault(name: str, *, most: int = MOST_NAME_CHARACTERS) -> str:
    """Return what is wrong with a name that may be left out, to be read after it; empty if nothing is."""
    if len(name) > most:
        return f"has {len(name)} characters; use {most} at most"
    if not (fault := fault_of(name)) and name and is_blank(name):
        return "has spaces and invisible characters alone"
    return fault


def trigger_word_fault(word: str) -> str:
    """Return what is wrong with a trigger word, to be read after it; empty if nothing is."""
    return name_fault(word, most=MOST_TRIGGER_CHARACTERS) or (
        "begins or ends with a space" if word != word.strip() else ""
    )


def made_name(text: str, *, most: int = MOST_NAME_CHARACTERS) -> str:
    """Return the text as a name that can be sent: what no name may have is replaced, what is too long is cut.

    Empty if nothing of it can be seen.
    """
    whole = "".join(_REPLACEMENT if fault_of(character) else character for character in text)
    return "" if is_blank(whole) else whole[:most]


class SampleNames:
    """Gives each image a name of its own; the same files in the same order always get the same names."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}

    def of(self, file_name: str, number: int) -> str:
        """Return the name for an image by that of its file, or by its number where that is a suffix alone."""
        given = f"{number:06d}{file_name}" if file_name.startswith(".") or is_blank(file_name) else file_name
        # The end is kept, which has the suffix and, of numbered files, the number.
        first = name = made_name(given[-_MOST_MADE_CHARACTERS:]) or f"{number:06d}"
        count = self._counts.get(first, 1)  # not from 1 again: thousands of rows may share the name of their file
        while name in self._taken:
            count += 1
            stem, dot, suffix = first.rpartition(".")
            name = f"{stem or suffix}-{count}{dot}{suffix if stem else ''}"
        self._counts[first] = count
        self._taken.add(name)
        return name

    def claim(self, name: str) -> bool:
        """Note that a name is taken; return whether it was free."""
        free = name not in self._taken
        self._taken.add(name)
        return free


def sample_faults(name: str, captions: Sequence[str]) -> list[str]:
    """Return what is wrong with a sample that was named by the caller, a phrase each."""
    faults = [f"its name {fault}" for fault in [name_fault(name) if name else "is empty"] if fault]
    if not 1 <= len(captions) <= MOST_CAPTIONS:
        faults.append(f"it has {len(captions)} captions; give 1 to {MOST_CAPTIONS}")
    return faults + [f"the caption {fault}" for fault in map(caption_fault, captions) if fault]
