"""Threads that go on computing in arrays of numpy for ever: `arrays.py SOCKET THREADS MIB`.

Each has an array of MIB MiB of 64-bit words, the n-th of which begins as n + its number << 32, and
applies x * FACTOR + 1 to a slice of it at a time, over and over. Lines that it answers, each on a
connection of its own:

    check         "BAD STEPS": words that are not what so many steps make of them, and all steps
    sum THREAD    "STEPS SUM": all words of one array, and after how many steps
    grow MIB      one array more, of another thread
    exit CODE
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

import numpy as np

FACTOR = 6364136223846793005
SLICES = 8


def after(start: np.ndarray, steps: int) -> np.ndarray:
    """What so many steps make of these words."""
    mask = (1 << 64) - 1
    factor, addend = 1, 0
    for _ in range(steps):
        factor, addend = factor * FACTOR & mask, (addend * FACTOR + 1) & mask
    return start * np.uint64(factor) + np.uint64(addend)


def begin(number: int, words: int) -> np.ndarray:
    return np.arange(words, dtype=np.uint64) + np.uint64(number << 32)


class Worker(threading.Thread):
    """One thread with its array."""

    def __init__(self, number: int, mib: int) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.array = begin(number, mib << 17)
        self.steps = 0  # of slices, in turn
        self.lock = threading.Lock()

    def run(self) -> None:
        size = len(self.array) // SLICES
        while True:
            with self.lock:
                part = self.array[self.steps % SLICES * size :][:size]
                np.multiply(part, np.uint64(FACTOR), out=part)
                np.add(part, np.uint64(1), out=part)
                self.steps += 1
            time.sleep(0.01)

    def bad(self) -> int:
        """Compared slice by slice with what it began as."""
        with self.lock:
            size = len(self.array) // SLICES
            start = begin(self.number, len(self.array))
            bad = 0
            for index in range(SLICES):
                done = self.steps // SLICES + (index < self.steps % SLICES)
                part = slice(index * size, (index + 1) * size)
                bad += int((self.array[part] != after(start[part], done)).sum())
            return bad


def answer(line: str, workers: list[Worker]) -> str:
    word, *arguments = line.split()
    if word == "check":
        return f"{sum(worker.bad() for worker in workers)} {sum(one.steps for one in workers)}"
    if word == "sum":
        worker = workers[int(arguments[0])]
        with worker.lock:
            return f"{worker.steps} {int(worker.array.sum())}"
    if word == "grow":
        workers.append(Worker(len(workers), int(arguments[0])))
        workers[-1].start()
        return "done"
    if word == "exit":
        os._exit(int(arguments[0]))
    return "failed"


def main() -> None:
    path, threads, mib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    workers = [Worker(number, mib) for number in range(threads)]
    for worker in workers:
        worker.start()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as file:
            line = file.readline()
            if line:
                file.write(answer(line, workers))


if __name__ == "__main__":
    main()
