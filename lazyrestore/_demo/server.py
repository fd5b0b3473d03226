"""The program that `demo --process` dumps where there is no redis-server: a small one of that kind.

    python -m lazyrestore._demo.server SOCKET

Standard library only. It keeps values by their keys in a dict, and answers SET, GET and DBSIZE at a
unix socket, in Redis's protocol, one client after another.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import BinaryIO


def main() -> None:
    """Listen, and answer for ever."""
    path = sys.argv[1]
    values: dict[bytes, bytes] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o077)
        listener.bind(path)
        os.umask(before)
        listener.listen(16)
        while True:
            client, _ = listener.accept()
            with client, client.makefile("rwb", buffering=1 << 16) as stream:
                try:
                    serve(stream, values)  # type: ignore[arg-type]
                except (OSError, ValueError):
                    continue


def serve(stream: BinaryIO, values: dict[bytes, bytes]) -> None:
    """Answer one client until it hangs up."""
    while (command := read_command(stream)) is not None:
        name = command[0].upper()
        if name == b"SET":
            values[command[1]] = command[2]
            stream.write(b"+OK\r\n")
        elif name == b"GET":
            value = values.get(command[1])
            stream.write(b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value))
        elif name == b"DBSIZE":
            stream.write(b":%d\r\n" % len(values))
        else:
            stream.write(b"-ERR unknown command\r\n")
        stream.flush()


def read_command(stream: BinaryIO) -> list[bytes] | None:
    """An array of strings; None at the end of file."""
    head = stream.readline()
    if not head:
        return None
    if not head.startswith(b"*"):
        raise ValueError("no array")
    parts = []
    for _ in range(int(head[1:])):
        length = int(stream.readline()[1:])
        parts.append(stream.read(length))
        stream.read(2)
    return parts


if __name__ == "__main__":
    main()
