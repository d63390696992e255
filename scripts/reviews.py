"""The labelled movie reviews that data sets are made of, as plain text and as excerpts of whole sentences."""

import csv
import hashlib
import html
import re
from dataclasses import dataclass
from pathlib import Path

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9*])")
RATING = re.compile(
    r"\d\s*/\s*\d|\bout of (\d|five|ten|four)|\*|\bstars\b|\b(rating|grade|vote|score)\s*[:=-]", re.IGNORECASE
)
ENDS_CLEANLY = re.compile(r"[.!?][\"')\]]*$")


@dataclass(frozen=True)
class Review:
    """One human-labelled review."""

    text: str
    label: int
    """1 = positive, 0 = negative."""
    source: str
    """imdb or rotten_tomatoes."""
    excerpt: str
    """A few whole sentences of `text`; empty when none fit the bounds."""

    def key(self, seed: int) -> str:
        """A number in hex that depends on text and seed only: decides part and order."""
        return hashlib.sha256(f"{seed}:{self.text.casefold()}".encode()).hexdigest()


def clean(text: str) -> str:
    """Plain text on one line: no markup, no entities, Windows-1252 punctuation as ASCII."""
    text = html.unescape(re.sub(r"<br\s*/?>|</?\w+[^<>]*>", " ", text))
    text = text.translate({0x85: "...", 0x91: "'", 0x92: "'", 0x93: '"', 0x94: '"', 0x96: " - ", 0x97: " - "})
    text = text.translate({ord(a): b for a, b in zip("‘’´`“”", "''''\"\"", strict=True)})
    text = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)
    return " ".join(text.split())


def untokenise(text: str) -> str:
    """Undo the spacing and lower case of the Rotten Tomatoes corpus, so that it reads like a review."""
    text = re.sub(r"\. \. \.(?: \.)*", "...", text)
    text = re.sub(r" ([.,;:!?)\]]|n't\b|'(?:s|re|ve|ll|d|m)\b)", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r'" ([^"]*?) ?"', r'"\1"', text)
    text = re.sub(r"^(?:\.\.\.|[.,;:\s])+", "", text)
    text = re.sub(r"\bi\b(?=$|['\s,.])", "I", text)
    return re.sub(r"(^[\"'(\[]*|(?<!\.\.)[.!?][\"')]* [\"'(]*)([a-z])", lambda m: m[1] + m[2].upper(), text)


def closing_sentences(text: str, shortest: int, longest: int) -> str:
    """As many whole sentences from the end of `text` as stay within the bounds (words), or ''."""
    starts = [0, *(match.end() for match in SENTENCE_END.finditer(text))]
    fitting = [text[start:] for start in starts if shortest <= len(text[start:].split()) <= longest]
    return acceptable(fitting[0]) if fitting else ""


def acceptable(excerpt: str) -> str:
    """`excerpt`, or '' when it does not start and end like a sentence, or states its label as a rating."""
    usable = excerpt[0].isupper() and ENDS_CLEANLY.search(excerpt) and not RATING.search(excerpt)
    return excerpt if usable else ""


def read_reviews(path: Path, shortest: int, longest: int) -> list[Review]:
    """All reviews of the CSV file, cleaned, without repeated texts or repeated excerpts."""
    reviews, seen = [], set()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = clean(row["text"])
            if row["source"] == "imdb":
                excerpt = closing_sentences(text, shortest, longest)
            else:
                text = untokenise(text)
                excerpt = acceptable(text) if shortest <= len(text.split()) <= longest else ""
            keys = {text.casefold(), excerpt.casefold()} - {""}
            if keys and not keys & seen:
                seen |= keys
                reviews.append(Review(text, int(row["label"]), row["source"], excerpt))
    return reviews


def length(text: str) -> int:
    """Words."""
    return len(text.split())
