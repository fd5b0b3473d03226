"""The background fill, as Python sees it: all bytes right, whatever happens beside it."""

from __future__ import annotations

import random
import textwrap

import pytest
from restore_support import run_in_child

from lazyrestore.writer import ImageWriter

MIB = 1 << 20
LENGTH = 24 * MIB


@pytest.fixture(scope="module")
def expected() -> bytes:
    """Text-like data, with a span of zeros and a stretch of single zero pages."""
    chance = random.Random(4)
    words = [chance.randbytes(chance.randrange(3, 12)) for _ in range(500)]
    data = bytearray()
    while len(data) < LENGTH:
        data += b" ".join(chance.choices(words, k=20000))
    del data[LENGTH:]
    data[5 * MIB : 11 * MIB] = bytes(6 * MIB)
    for page in range(0, 512, 2):
        data[14 * MIB + page * 4096 : 14 * MIB + (page + 1) * 4096] = bytes(4096)
    return bytes(data)


@pytest.fixture(scope="module")
def image(tmp_path_factory, expected):
    path = tmp_path_factory.mktemp("fill") / "memory.lzr"
    with ImageWriter(path) as writer:
        writer.add_region("memory")
        writer.write(expected)
    return path


PREAMBLE = '''
import mmap, os, random, sys, threading
import lazyrestore
MIB = 1 << 20
LENGTH = 24 * MIB
path = sys.argv[1]
with lazyrestore.open(path) as opened:
    expected = opened.read("memory")

def restored():
    return lazyrestore.restore(path, lazy=True, prefetch="all")

def vm_flags(address: int) -> list[str]:
    """Of the mapping that an address is in."""
    is_here = False
    with open("/proc/self/smaps", encoding="utf-8") as smaps:
        for line in smaps:
            first = line.split(maxsplit=1)[0]
            if "-" in first and not first.endswith(":"):
                start, end = (int(part, 16) for part in first.split("-"))
                is_here = start <= address < end
            elif is_here and first == "VmFlags:":
                return line.split()[1:]
    raise AssertionError(f"nothing is mapped at {address:#x}")
'''


def child(image, script):
    """What hangs must not hang the suite."""
    run_in_child(PREAMBLE + textwrap.dedent(script), image, timeout=60)


def test_afterwards_it_is_plain_memory(image):
    child(
        image,
        """
        with restored() as session:
            region = session["memory"]
            assert session.wait()
            assert "um" not in vm_flags(region.address)
            assert "dc" not in vm_flags(region.address)  # children have it
            assert bytes(region) == expected
            assert session.stats().faults == 0
            region.populate()
            region.madvise(mmap.MADV_DONTNEED, 0, MIB)
            assert region[:MIB] == bytes(MIB)
            assert region[MIB:] == expected[MIB:]
        """,
    )


def test_zeros_take_no_memory(image):
    child(
        image,
        """
        with restored() as session:
            assert session.wait()
            resident = session.stats().resident_bytes
            zeros = expected.count(bytes(4096))
            assert bytes(session["memory"]) == expected
            data = LENGTH - 6 * MIB - MIB
            assert zeros >= 6 * MIB // 4096
            assert data - 64 * 4096 <= resident <= data + MIB
            # Reading zeros brought none either.
            assert session.stats().resident_bytes <= data + MIB
        """,
    )


def test_touched_from_all_sides(image):
    child(
        image,
        """
        for turn in range(4):
            with restored() as session:
                region = session["memory"]
                wrong = []

                def touch(seed: int, region=region, wrong=wrong) -> None:
                    chance = random.Random(seed)
                    step = 4096 * chance.choice((1, 7, 64))
                    begin = chance.randrange(LENGTH)
                    for i in range(600):
                        at = (begin + i * step) % (LENGTH - 8)
                        if region[at : at + 8] != expected[at : at + 8]:
                            wrong.append(at)

                threads = [threading.Thread(target=touch, args=(4 * turn + i,)) for i in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert not wrong
                assert session.wait()
                assert bytes(region) == expected
        """,
    )


def test_what_is_written_and_given_up_meanwhile_stays_so(image):
    child(
        image,
        """
        with restored() as session:
            region = session["memory"]
            now = bytearray(expected)
            chance = random.Random(7)
            for _ in range(300):
                at = chance.randrange(LENGTH // 4096) * 4096
                if chance.random() < 0.5:
                    region[at : at + 4] = now[at : at + 4] = b"mine"
                else:
                    length = min(chance.choice((1, 5, 600)) * 4096, LENGTH - at)
                    region.madvise(mmap.MADV_DONTNEED, at, length)
                    now[at : at + length] = bytes(length)
            assert session.wait()
            assert bytes(region) == now
        """,
    )


def test_children_of_a_complete_session(image):
    """They have the memory without a userfaultfd that would have to be made."""
    child(
        image,
        """
        with restored() as session:
            assert session.wait()
            region = session["memory"]
            child = os.fork()
            if child == 0:
                os._exit(0 if bytes(region) == expected else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            region[:4] = b"mine"
            assert region[: 2 * MIB] == b"mine" + expected[4 : 2 * MIB]
        """,
    )
