"""A small tree of processes to be dumped: python tree_target.py STATUS [MIB].

The root has private memory, shared memory, a thread, a pipe with something in it, a child in a
session of its own, and a child that has ended and is not waited for. Each counts, and looks at its
memory again and again; STATUS has the four counters: root, child, thread, and what was found wrong.
"""

import hashlib
import mmap
import os
import random
import struct
import sys
import threading
import time

STATUS = struct.Struct("<4Q")
ROOT, CHILD, THREAD, WRONG = range(4)
IN_THE_PIPE = b"in the pipe"


def main() -> None:
    status = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
    nbytes = (int(sys.argv[2]) if len(sys.argv) > 2 else 4) << 20
    private = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    private[: nbytes // 2] = random.Random(1).randbytes(nbytes // 2)
    shared = mmap.mmap(-1, 1 << 20)
    shared[4096:] = random.Random(2).randbytes(len(shared) - 4096)
    wanted = digest(private, shared)
    read_end, write_end = os.pipe()
    os.write(write_end, IN_THE_PIPE)

    if os.fork() == 0:
        os._exit(7)  # and is not waited for
    if os.fork() == 0:
        os.setsid()
        count(shared, CHILD, private, wanted, None)
    threading.Thread(target=count, args=(shared, THREAD, private, wanted, None)).start()
    count(shared, ROOT, private, wanted, (read_end, write_end, status))


def digest(private, shared) -> bytes:
    found = hashlib.blake2b(private)
    found.update(memoryview(shared)[4096:])
    return found.digest()


def count(shared, place, private, wanted, ends) -> None:
    numbers = memoryview(shared)[:32].cast("Q")
    while True:
        if digest(private, shared) != wanted:
            numbers[WRONG] += 1
        numbers[place] += 1
        if ends:
            read_end, write_end, status = ends
            if os.read(read_end, 64) != IN_THE_PIPE:
                numbers[WRONG] += 1
            os.write(write_end, IN_THE_PIPE)
            os.pwrite(status, numbers.tobytes(), 0)
        time.sleep(0.01)


main()
