"""Work on many threads, results in order, never much under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ._decode import default_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """Like `map`, on several threads.

    Items are taken as results are fetched, so that at most three for each thread are under way. The
    first exception, of an item or of a result, is raised in its place in the order; whatever was
    not begun then is not done. The same where the iterator is closed.
    """
    threads = threads or default_threads()
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="lazyrestore")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 3 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
