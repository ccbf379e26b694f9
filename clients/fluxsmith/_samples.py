"""Names and captions of samples: what the encoder takes, names made of those of files, and texts out of files."""

import codecs
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
_SHARE_OF_ZEROS = 0.3
_WITHOUT_MARK = "it looks like UTF-16 without a byte order mark"


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
    """Return the encoding of a text that begins so; raises `NotText` for UTF-16 without a mark."""
    encoding = next((name for mark, name in _MARKS if beginning.startswith(mark)), "utf-8")
    if encoding == "utf-8" and _is_half_zeros(beginning):
        raise NotText(_WITHOUT_MARK)
    return encoding


def _is_half_zeros(content: bytes) -> bool:
    """Whether every other byte is zero, nearly: Latin letters in UTF-16."""
    shares = [half.count(0) / len(half) for half in (content[::2], content[1::2]) if half]
    return bool(shares) and max(shares) > _SHARE_OF_ZEROS > min(shares)


def with_plain_lines(text: str) -> str:
    r"""Return the text with `\n` for the line ends of Windows and of old Macs."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


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
