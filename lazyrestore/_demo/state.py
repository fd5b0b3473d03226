"""The program that the demo dumps: a small search service, with its state in memory.

    python -m lazyrestore._demo.state BYTES

Standard library only. It builds log text, an index of it, records of users, series of numbers, a
sparse table and a cache that was cleared, says "ready", and then answers questions, one JSON object
a line on stdin and stdout, until stdin ends. A thread goes on counting all the while: whoever stops
this process can be seen to have let it run again.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import hashlib
import itertools
import json
import mmap
import os
import random
import signal
import sys
import threading
import time
from typing import Any

from lazyrestore._demo import text

_SEED = 20
_USER_BYTES = 700  # what one record of a user costs, about
_SAMPLES = 2000
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class State:
    """Everything that the program has in memory.

    Attributes:
        lines: log text, one line after another.
        buffers: name → what the demo compares byte by byte: nothing changes it once it is built.
        digests: those that are known without reading the memory.
        templates_of: word → numbers of the messages that have it.
        lines_of: number of a message → numbers of the lines that have it.
        users: records, as a program keeps them: dicts of strings, numbers and lists.
        beats: how often the counting thread woke up; also in memory, in `counters`.
    """

    def __init__(self, nbytes: int) -> None:
        self.beats = 0
        self.counters = mmap.mmap(-1, mmap.PAGESIZE)
        self.vocabulary = [word.encode() for word in text.words(_SEED)]
        self.buffers: dict[str, mmap.mmap | array.array[Any]] = {}
        self.digests: dict[str, str] = {}
        self.lines_of: list[array.array[int]] = []
        self.templates_of: dict[bytes, array.array[int]] = {}
        self._write_log(nbytes * 30 // 100)
        self._make_numbers(nbytes * 24 // 100)
        self._make_users(nbytes * 10 // 100)
        self._make_sparse_table(nbytes * 20 // 100)
        self._make_cleared_cache(nbytes * 16 // 100)

    def _write_log(self, nbytes: int) -> None:
        words = [word.decode() for word in self.vocabulary]
        made = text.templates(_SEED, words)
        messages = [" ".join(words[rank] for rank in ranks) for ranks in made]
        self.lines_of = [array.array("I") for _ in messages]
        postings: dict[bytes, list[int]] = {}
        for number, ranks in enumerate(made):
            for rank in set(ranks):
                postings.setdefault(self.vocabulary[rank], []).append(number)
        self.templates_of = {word: array.array("I", found) for word, found in postings.items()}
        log = mmap.mmap(-1, _whole_pages(nbytes))  # shared, as between a service's workers
        line = 0
        for chosen, piece in text.log_lines(_SEED, messages):
            for number in chosen:
                self.lines_of[number].append(line)
                line += 1
            room = len(log) - log.tell()
            log.write(piece[:room])
            if len(piece) >= room:
                break
        self.buffers["log text"] = log

    def _make_numbers(self, nbytes: int) -> None:
        chance = random.Random(_SEED)
        count = nbytes // 16
        # Ids are sorted with gaps; loads wander, and are known to a hundredth.
        gaps = chance.choices((1, 1, 1, 2, 2, 3, 7, 40), k=count)
        self.buffers["sorted ids"] = array.array("q", itertools.accumulate(gaps, initial=10**9))
        steps = chance.choices((-0.25, -0.0625, 0.0, 0.0, 0.0625, 0.25), k=count)
        self.buffers["load series"] = array.array("d", itertools.accumulate(steps, initial=50.0))

    def _make_users(self, nbytes: int) -> None:
        chance = random.Random(_SEED)
        weights = text.zipf_weights(len(self.vocabulary))
        count = nbytes // _USER_BYTES
        names = chance.choices(self.vocabulary, cum_weights=weights, k=3 * count)
        self.users = [
            {
                "id": number,
                "name": f"{names[3 * number].decode()}.{number}",
                "seen": 1_700_000_000.0 + number * 0.75,
                "visits": number * 7919 % 5000,
                "searches": names[3 * number + 1 : 3 * number + 3],
            }
            for number in range(count)
        ]

    def _make_sparse_table(self, nbytes: int) -> None:
        """One slot in 50 is in use: most pages were never touched."""
        table = mmap.mmap(-1, _whole_pages(nbytes), flags=_PRIVATE)
        # A huge page for every slot would make the table dense: who keeps such a table says so.
        with contextlib.suppress(OSError):
            table.madvise(mmap.MADV_NOHUGEPAGE)
        chance = random.Random(_SEED)
        pages = len(table) // mmap.PAGESIZE
        used = set(chance.sample(range(pages), pages // 50 + 1))
        contents = hashlib.blake2b()
        unused = bytes(mmap.PAGESIZE)
        for page in range(pages):
            start = page * mmap.PAGESIZE
            if page in used:
                record = b"%016d" % page + chance.choice(self.vocabulary)
                offset = start + 64 * (page % 32)
                table[offset : offset + len(record)] = record
                contents.update(table[start : start + mmap.PAGESIZE])
            else:
                contents.update(unused)  # reading the table would put pages there
        self.digests["sparse table"] = contents.hexdigest()
        self.buffers["sparse table"] = table

    def _make_cleared_cache(self, nbytes: int) -> None:
        """It was full of text once; what is left is zeros in pages that are there."""
        cache = mmap.mmap(-1, _whole_pages(nbytes), flags=_PRIVATE)
        log = self.buffers["log text"]
        step = 1 << 20
        for offset in range(0, len(cache), step):
            piece = memoryview(log)[: min(step, len(cache) - offset)]
            cache[offset : offset + len(piece)] = piece[: len(cache) - offset]
        zeros = bytes(step)
        for offset in range(0, len(cache), step):
            cache[offset : offset + step] = zeros[: len(cache) - offset]
        self.buffers["cleared cache"] = cache

    def beat(self) -> None:
        """Count, for ever: the sign that this process runs."""
        while True:
            self.beats += 1
            self.counters[:8] = self.beats.to_bytes(8, "little")
            time.sleep(0.001)

    def describe(self) -> dict[str, object]:
        """Where its memory is, and what is in it, for who compares."""
        buffers = []
        for name, buffer in self.buffers.items():
            address, length = _place(buffer)
            digest = self.digests.get(name)
            if digest is None:
                with memoryview(buffer) as view, view.cast("B") as data:
                    digest = hashlib.blake2b(data).hexdigest()
            buffers.append({"name": name, "address": address, "length": length, "digest": digest})
        return {"buffers": buffers, "objects": self._sample_objects(), **self.answer("")}

    def _sample_objects(self) -> dict[str, object]:
        """Places of some of its small objects: bytes that lie all over the interpreter's heap."""
        chosen = random.Random(_SEED).sample(self.vocabulary, min(_SAMPLES, len(self.vocabulary)))
        # CPython keeps the bytes of an object at the end of its header, and a NUL behind them.
        header = bytes.__basicsize__ - 1
        places = [(id(word) + header, len(word)) for word in chosen]
        return {"places": places, "digest": hashlib.blake2b(b"".join(chosen)).hexdigest()}

    def answer(self, word: str) -> dict[str, object]:
        """In how many lines a word is, by the index; and how far the counting came."""
        found = self.templates_of.get(word.encode(), ())
        count = sum(len(self.lines_of[number]) for number in found)
        counted = int.from_bytes(self.counters[:8], "little")
        return {"word": word, "lines": count, "users": len(self.users), "beats": counted}


def _whole_pages(nbytes: int) -> int:
    return max(1, nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _place(buffer: mmap.mmap | array.array[Any]) -> tuple[int, int]:
    if isinstance(buffer, array.array):
        address, count = buffer.buffer_info()
        return address, count * buffer.itemsize
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer)


def _say(message: dict[str, object]) -> None:
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(0)  # the demo has ended: nobody asks any more, and a flush would fail again


def main() -> None:
    """Build the state, say so, and answer."""
    # Ctrl-C goes to the whole terminal: the demo ends this program, by closing its stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begun = time.perf_counter()
    state = State(int(sys.argv[1]))
    _say({"ready": True, "build_seconds": time.perf_counter() - begun})
    threading.Thread(target=state.beat, daemon=True).start()
    for line in sys.stdin:
        question = json.loads(line)
        _say(state.describe() if question.get("describe") else state.answer(question["word"]))


if __name__ == "__main__":
    main()
