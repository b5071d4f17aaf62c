"""Text to terms: the one analysis that documents and queries share.

No language is detected: what is done to a word depends on its script alone, so a query always
agrees with the texts it looks for.

- Unicode NFKC, case folding; accents folded for Latin and Greek only (a kana dakuten or a
  Cyrillic й is a letter of its own, not an accent).
- Words are stemmed by the Snowball stemmer of their script's most frequent language.
- Identifiers (`GPT-3.5-turbo`, `foo_bar`, `getUserName`, `C++`, `.NET`, `1,000`) give a term for
  the whole and one for each part.
- Scripts that are written without spaces, and Hangul, give single characters and bigrams.
- English stop words are terms of documents but not of queries, so that a query of nothing but
  stop words ("to be or not to be", "IT") still finds what it names.
"""

from __future__ import annotations

import hashlib
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
import regex
import Stemmer

from kb.ports import Terms

MAX_TERM_CHARS = 64
"""Longer words are cut here on both sides; longer identifiers give their parts only."""

# Snowball's English list, https://snowballstem.org/algorithms/english/stop.txt
_ENGLISH = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she
    her hers herself it its itself they them their theirs themselves what which who whom this that
    these those am is are was were be been being have has had having do does did doing would should
    could ought i'm you're he's she's it's we're they're i've you've we've they've i'd you'd he'd
    she'd we'd they'd i'll you'll he'll she'll we'll they'll isn't aren't wasn't weren't hasn't
    haven't hadn't doesn't don't didn't won't wouldn't shan't shouldn't can't cannot couldn't
    mustn't let's that's who's what's here's there's when's where's why's how's a an the and but if
    or because as until while of at by for with about against between into through during before
    after above below to from up down in out on off over under again further then once here there
    when where why how all any both each few more most other some such no nor not only own same so
    than too very
"""
STOP_WORDS = frozenset(_ENGLISH.split())

_STEMMERS = {
    "LATIN": "english",
    "CYRILLIC": "russian",
    "GREEK": "greek",
    "ARABIC": "arabic",
    "DEVANAGARI": "hindi",
    "ARMENIAN": "armenian",
    "TAMIL": "tamil",
}
"""First word of a letter's Unicode name -> Snowball algorithm; other scripts are not stemmed."""

# Latin letters whose stroke or ligature Unicode does not decompose.
_FOLDED = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ı": "i", "ð": "d", "æ": "ae", "œ": "oe", "þ": "th"}
)

_NO_SPACE_SCRIPTS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Hangul}\p{Yi}"
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\u30FC\u3006"
)
_ANY = r"\p{L}\p{M}\p{N}"
_DENSE = rf"[[{_NO_SPACE_SCRIPTS}]&&[{_ANY}]]"
_WORD = rf"[[{_ANY}]--[{_NO_SPACE_SCRIPTS}]]"
_JOINT = r"(?:://|::|_+|\+{1,2}|[.\-/\\@:&'\#])"

_TOKEN = regex.compile(
    rf"""(?V1)
    (?P<dense>(?:{_DENSE}\p{{M}}*)+)
    | (?P<grouped>(?<![{_ANY}.,]) \p{{Nd}}{{1,3}} (?:,\p{{Nd}}{{3}}){{1,10}} (?:\.\p{{Nd}}+)?
                  (?![{_ANY}] | [.,]\p{{Nd}}))
    | (?P<word>(?:(?<![{_ANY}.])[.\#@](?={_WORD}))? (?:(?<!_)_++)?
               {_WORD}+ (?:{_JOINT}{_WORD}+)* (?:_+|\+{{1,2}}|\#)?)
    """,
    regex.VERBOSE,
)
_UNIT = regex.compile(r".\p{M}{0,8}", regex.DOTALL)
_MARK = regex.compile(r"\p{M}")
_INVISIBLE = regex.compile(r"[\p{Cf}\p{Variation_Selector}]")
_PIECES = regex.compile(rf"(?V1)://|::|[_\-/\\@:&']+|(?<={_WORD})[+\#]+(?={_WORD})")
_ATOMS = regex.compile(rf"(?V1){_WORD}+")
_CAMEL = regex.compile(
    r"(?V1)(?<=\p{Ll})(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll}{2})"
    r"|(?<=\p{Nd})(?=\p{L})|(?<=\p{L})(?=\p{Nd})"
)
_RUNS = regex.compile(r"\p{L}+|\p{Nd}+")
_PART = regex.compile(r"\p{L}{3,}|\p{Nd}{2,}")
_NUMBER = regex.compile(r"\p{N}")
_VERSION = regex.compile(r"[vV](\d+(?:\.\d+)+)")
_LATIN_OR_GREEK_ACCENT = regex.compile(r"(?<=[\p{Latin}\p{Greek}]\p{Mn}*)\p{Mn}")
_CYRILLIC_STRESS = regex.compile(r"(?<=\p{Cyrillic})[\u0300\u0301]")
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"))
_QUOTES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\uff07", "'"))
_PUNCTUATION = {**_DASHES, **_QUOTES}


def analyse(text: str) -> list[str]:
    """The terms of a text in text order, with repeats; stop words included.

    The count of these is the length that BM25 normalises by.
    """
    return [term for chunk in _chunks(text) for term in _cache[chunk][0]]


def analyse_query(text: str) -> list[str]:
    """As `analyse`, without English stop words, unless there is nothing else."""
    content = [term for chunk in _chunks(text) for term in _cache[chunk][1]]
    return content or analyse(text)


def terms_of_query(text: str) -> tuple[Terms, dict[int, str]]:
    """What to look for: weights are how often each term occurs in the query.

    Returns:
        The terms, and the readable term of each id for explanations.
    """
    counts: Counter[int] = Counter()
    names: dict[int, str] = {}
    for term in analyse_query(text):
        number = term_id(term)
        counts[number] += 1
        names.setdefault(number, term)
    ids = sorted(counts)
    weights = np.array([counts[i] for i in ids], dtype=np.float32)
    return Terms(np.array(ids, dtype=np.uint32), weights), names


@lru_cache(maxsize=1 << 18)
def term_id(term: str) -> int:
    """The term's number in the index: the first four bytes, big-endian, of BLAKE2b-32 (RFC 7693).

    It is stored in every index, so it never changes. A cryptographic hash has no structure that
    families of similar terms (serial numbers, dates) could collide by; of a million distinct
    terms about a hundred pairs share a number.
    """
    return int.from_bytes(hashlib.blake2b(term.encode(), digest_size=4).digest(), "big")


# -- from text to chunks between white space; nothing depends on a chunk's neighbours


def _chunks(text: str) -> list[str]:
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(_PUNCTUATION)
    return text.split()


_Analysed = tuple[tuple[str, ...], tuple[str, ...]]
"""All terms of a chunk, and those that are not stop words."""


class _Cache(dict[str, _Analysed]):
    """Chunk -> its terms. Full, it starts again: cheaper than keeping an order of use."""

    max_chunks = 200_000
    max_chars = 40  # longer chunks are rarely seen twice

    def __missing__(self, chunk: str) -> _Analysed:
        value = _analyse_chunk(chunk)
        if len(chunk) <= self.max_chars:
            if len(self) >= self.max_chunks:
                self.clear()
            self[chunk] = value
        return value


_cache = _Cache()


def _analyse_chunk(chunk: str) -> _Analysed:
    terms: list[str] = []
    content: list[str] = []
    for match in _TOKEN.finditer(chunk):
        if (dense := match["dense"]) is not None:
            found = _ngrams(dense)
        elif (number := match["grouped"]) is not None:
            number = _ascii_digits(number)
            found = [number.replace(",", ""), *number.split(",")]
        else:
            word = match["word"].removesuffix("'s").removesuffix("'S")
            if word.casefold() in STOP_WORDS:
                terms.append(_term(word))
                continue
            found = []
            for term, is_stop in _identifier(word):
                terms.append(term)
                if not is_stop:
                    content.append(term)
            continue
        terms += found
        content += found
    return tuple(terms), tuple(content)


def _ngrams(text: str) -> list[str]:
    """Characters, each with its marks, and pairs of neighbours, in text order."""
    units = _UNIT.findall(text) if _MARK.search(text) else text
    found = [term for first, second in pairwise(units) for term in (first, first + second)]
    found.append(units[-1])
    return found


def _identifier(text: str) -> Iterator[tuple[str, bool]]:
    """The terms of a word with or without joints: the whole, then ever smaller parts."""
    pieces = _PIECES.split(text)
    if len(pieces) > 1 and len(text) <= MAX_TERM_CHARS:
        yield _fold(text), False
    for piece in pieces:
        atoms = _ATOMS.findall(piece)
        if (len(atoms) > 1 or atoms != [piece]) and 0 < len(piece) <= MAX_TERM_CHARS:
            yield _fold(piece), False
        if version := _VERSION.fullmatch(piece):
            yield version[1], False
            yield version[1].partition(".")[0], False
        for atom in atoms:
            yield _term(atom), len(text) > len(atom) and atom.casefold() in STOP_WORDS
            yield from ((_term(part), False) for part in _inner_words(atom))


def _inner_words(word: str) -> list[str]:
    """`getUserName` -> get, User, Name; `COVID19` -> COVID, 19; `IL6` and `H1N1` stay whole."""
    if len(word) > MAX_TERM_CHARS or (word.isalpha() and word[1:].islower()):
        return []
    parts = [part for part in _CAMEL.split(word) if part]
    if len(parts) == 1:
        return []
    runs = _RUNS.findall(word)
    camel = [part for part in parts if part not in runs]
    return [part for part in [*runs, *camel] if part != word and _PART.fullmatch(part)]


def _term(word: str) -> str:
    """Folded, cut and, when it holds nothing but letters, stemmed."""
    word = _fold(word[:MAX_TERM_CHARS])
    stemmer = _STEMMERS.get(_script(word[:1]))
    if stemmer is None or _NUMBER.search(word):
        return word
    return _stemmers.of(stemmer).stemWord(word) or word


def _fold(word: str) -> str:
    word = word.casefold()
    if word.isascii():
        return word
    word = _LATIN_OR_GREEK_ACCENT.sub("", unicodedata.normalize("NFD", word)).translate(_FOLDED)
    word = _CYRILLIC_STRESS.sub("", unicodedata.normalize("NFC", word))
    return _ascii_digits(word)


def _ascii_digits(text: str) -> str:
    if text.isascii():
        return text
    return "".join(str(d) if (d := unicodedata.decimal(c, -1)) >= 0 else c for c in text)


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0] if letter else ""


class _Stemmers(threading.local):
    """One set per thread: a Snowball stemmer has inner state."""

    def __init__(self) -> None:
        self._made: dict[str, Stemmer.Stemmer] = {}

    def of(self, algorithm: str) -> Stemmer.Stemmer:
        if algorithm not in self._made:
            # No cache of its own: chunks are cached already.
            self._made[algorithm] = Stemmer.Stemmer(algorithm, 0)
        return self._made[algorithm]


_stemmers = _Stemmers()
