"""Log text as services write it: words by Zipf's law, sorted times, counters.

Standard library only. It compresses as such text does: neither random bytes, nor one line a million
times. The same seed gives the same bytes.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Iterator

_STARTS = "b bl br c ch d dr f fl g gr h k l m n p pl qu r s sh sl st t th tr v w".split()
_VOWELS = "a e i o u ai ea ee io ou".split()
_ENDS = ["", "n", "r", "s", "t", "l", "nd", "st", "m", "ck"]
_LEVELS = ["INFO", "DEBUG", "INFO", "WARN", "INFO", "INFO", "ERROR", "INFO"]
_HOSTS = [f"{place}-{number:02}" for place in ("ams", "fra", "sin") for number in range(1, 13)]

WORDS = 8000
TEMPLATES = 20_000


def words(seed: int, count: int = WORDS) -> list[str]:
    """`count` different words, the most frequent (and shortest) first."""
    chance = random.Random(seed)
    found: set[str] = set()
    while len(found) < count:
        parts = chance.choices((1, 2, 3), (2, 5, 3))[0]
        found.add(
            "".join(chance.choice(_STARTS) + chance.choice(_VOWELS) for _ in range(parts))
            + chance.choice(_ENDS)
        )
    return sorted(found, key=lambda word: (len(word), word))


def zipf_weights(count: int) -> list[float]:
    """Cumulated weights of ranks 1 to `count`: a word's frequency falls with its rank."""
    return list(itertools.accumulate(1 / (rank + 2.7) for rank in range(1, count + 1)))


def templates(seed: int, vocabulary: list[str], count: int = TEMPLATES) -> list[list[int]]:
    """Messages of 5 to 14 words, as numbers of words."""
    chance = random.Random(seed + 1)
    weights = zipf_weights(len(vocabulary))
    ranks = range(len(vocabulary))
    return [
        chance.choices(ranks, cum_weights=weights, k=chance.randint(5, 14)) for _ in range(count)
    ]


def log_lines(seed: int, messages: list[str]) -> Iterator[tuple[list[int], bytes]]:
    """Log lines without end, 4096 at a time, with the numbers of the messages in them."""
    chance = random.Random(seed + 2)
    weights = zipf_weights(len(messages))
    now_ms = 1_700_000_000_000
    request = 4_000_000
    while True:
        chosen = chance.choices(range(len(messages)), cum_weights=weights, k=4096)
        hosts = chance.choices(_HOSTS, k=4096)
        levels = chance.choices(_LEVELS, k=4096)
        steps = chance.choices(range(40), k=4096)
        sizes = chance.choices(range(200, 90_000), k=4096)
        lines = []
        for number, host, level, step, size in zip(
            chosen, hosts, levels, steps, sizes, strict=True
        ):
            now_ms += step
            request += 1 + (step & 3)
            lines.append(
                f"{now_ms} {host} {level} request={request} {messages[number]}"
                f" bytes={size} ms={step * 3}\n"
            )
        yield chosen, "".join(lines).encode("ascii")


def log_text(nbytes: int, seed: int = 1) -> bytes:
    """`nbytes` of log text; about 60 MB/s."""
    vocabulary = words(seed)
    messages = [
        " ".join(vocabulary[rank] for rank in ranks) for ranks in templates(seed, vocabulary)
    ]
    pieces, have = [], 0
    for _, piece in log_lines(seed, messages):
        pieces.append(piece)
        have += len(piece)
        if have >= nbytes:
            break
    return b"".join(pieces)[:nbytes]


def varied(text: bytes, variant: int) -> bytes:
    """The same text in another cipher of the alphabet: as compressible, yet no cluster is equal.

    For large images that must be there within seconds; about 1 GB/s.
    """
    if not variant:
        return text
    chance = random.Random(variant)
    plain = string.ascii_lowercase + string.digits
    letters = chance.sample(string.ascii_lowercase, 26)
    digits = chance.sample(string.digits, 10)
    cipher = "".join(letters + digits)
    return text.translate(bytes.maketrans(plain.encode(), cipher.encode()))
