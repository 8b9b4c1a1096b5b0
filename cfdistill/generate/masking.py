"""The words of a question, how much a rewrite changes them, and how some of them are masked."""

import random
import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

MASK = "[MASK]"
UNSPACED = re.compile(  # scripts without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese
    "([\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u1049\u1780-\u17d3\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff])"
)
PUNCTUATION = ".,;:!?…'\"‘’‚“”„«»`´()\\[\\]{}–—·、。，；：！？「」『』（）《》"
TOKEN = re.compile(rf"[\w']+|-(?=\s*\d)|[^\w\s{PUNCTUATION}\0-]")  # a word or a symbol
QUOTES = ("'’‘", '"“”„')  # typed one for another


def words(text: str) -> list[str]:
    """Return the lower-case words of a text, without punctuation; in UNSPACED scripts its characters."""
    return re.findall(r"[\w']+", _simple(text))


def normalize(text: str) -> str:
    """Return the form in which two questions count as the same: lower-case words and symbols."""
    return " ".join(TOKEN.findall(_simple(text)))


def edit_ratio(before: str, after: str) -> float:
    """Return the Levenshtein distance over the longer text's number of words, 0 to 1."""
    one, other = words(before), words(after)
    if one == other:  # symbols count, too: "3 < 5" and "3 > 5" differ by a third
        one, other = normalize(before).split(), normalize(after).split()
    return round(Levenshtein.normalized_distance(one, other), 4)


def find_span(stem: str, span: str) -> re.Match[str] | None:
    """Find a run of whole words in any case, spacing and style of quotes; places count in `_apart(stem)`."""
    pattern = r"\s+".join(map(re.escape, _apart(span).strip("\0").split()))
    for quotes in QUOTES:
        pattern = re.sub(f"[{quotes}]", f"[{quotes}]", pattern)
    return re.search(rf"(?<![\w\[]){pattern}(?![\w\]])", _apart(stem), re.IGNORECASE)


def mask_spans(stem: str, spans: Sequence[str]) -> str:
    """Replace each span by `[MASK]`; ValueError when one is not in the question, or nothing would be left."""
    for span in spans:
        found = find_span(stem, span)
        if not found or MASK in span:
            raise ValueError("span is not in the question")
        text = found.string
        stem = f"{text[: found.start()]}{MASK}{text[found.end() :]}".replace("\0", "")
    if not words(stem.replace(MASK, "")):
        raise ValueError("nothing of the question is left")
    return stem


def random_span(stem: str, seed: int) -> str:
    """Return a quarter of the words, from a place that stem and seed decide; "" if nothing would be left."""
    text = _apart(stem)
    found = list(re.finditer(r"(?<![\w\[])\w+(?![\w\]])", text))
    count = max(1, round(len(found) / 4))
    if count >= len(found):
        return ""
    first = random.Random(f"{seed}/{stem}").randrange(len(found) - count + 1)
    return text[found[first].start() : found[first + count - 1].end()].replace("\0", "")


def _apart(text: str) -> str:
    """Return a text with NUL around every character that is a word by itself."""
    return UNSPACED.sub("\0\\1\0", text)


def _simple(text: str) -> str:
    return _apart(re.sub(r"(?<=\w)’(?=\w)", "'", text.lower()))
