"""redis-server with a million keys."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from program_support import LIMIT_S, Program, needs, resident_bytes, until

KEYS, EXTRA = 1_000_000, 2000


class Client:
    """Speaks to a server at its socket, many commands at a time."""

    def __init__(self, program: Program) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(LIMIT_S)
        self._sock.connect(str(program.home / "socket"))
        self._file = self._sock.makefile("rb")

    def all(self, commands: Sequence[Sequence[object]]) -> list[object]:
        """What is answered to each."""
        parts = []
        for command in commands:
            words = [str(word).encode() for word in command]
            parts.append(b"*%d\r\n" % len(words))
            parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
        self._sock.sendall(b"".join(parts))
        return [self._read() for _ in commands]

    def one(self, *command: object) -> object:
        return self.all([command])[0]

    def _read(self) -> object:
        line = self._file.readline()
        kind, rest = line[:1], line[1:-2]
        assert kind in (b"+", b":", b"$", b"*"), line
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2].decode()
        return [self._read() for _ in range(int(rest))]

    def close(self, program: Program) -> None:
        """Until the server has closed its side too, and can be checkpointed."""
        self.one("QUIT")
        assert self._file.read() == b""
        self._file.close()
        self._sock.close()


def expect_right_answers(program: Program, *written: tuple[str, str]) -> None:
    """Keys all over, by a new client; some at once, the rest in one go."""
    client = Client(program)
    for number in (0, 1, KEYS // 2, KEYS - 1):
        assert client.one("GET", f"key:{number}") == f"value:{number}"
    numbers = [(7919 * n) % KEYS for n in range(5000)]
    found = client.all([("GET", f"key:{number}") for number in numbers])
    assert found == [f"value:{number}" for number in numbers]
    assert client.one("GET", f"key:{KEYS}") is None
    for key, value in written:
        assert client.one("GET", key) == value
    client.close(program)


def test_redis_lives_on(programs):
    """A client gets right answers straight after each restore; what it writes stays."""
    server = needs("redis-server", "redis-server")
    home = programs.folder / "redis"
    home.mkdir()
    options = f"--port 0 --unixsocket {home}/socket --dir {home} --enable-debug-command yes"
    program = programs.start_command([server, *options.split(), "--save", ""], home)
    client = Client(program)
    assert client.one("DEBUG", "POPULATE", KEYS) == "OK"
    assert client.one("DBSIZE") == KEYS
    client.close(program)
    image = program.dump(programs.image())

    program = programs.restore(image, home)
    expect_right_answers(program)
    client = Client(program)
    more = [("SET", f"more:{number}", f"written {number}") for number in range(EXTRA)]
    assert client.all(more) == ["OK"] * EXTRA
    assert client.one("INCRBY", "counter", 41) == 41
    assert client.one("DEL", "key:17") == 1
    client.close(program)
    program.wait_until_filled()
    image = program.dump(programs.image())

    program = programs.restore(image, home, "--prefetch", "none")
    before = resident_bytes(program.pid)
    expect_right_answers(program, ("more:1999", "written 1999"), ("counter", "41"))
    client = Client(program)
    assert client.one("GET", "key:17") is None
    assert client.one("DBSIZE") == KEYS - 1 + EXTRA + 1
    assert resident_bytes(program.pid) > before  # it had not been there
    # A child of the server's writes all of it to a file, from memory that nobody has touched.
    assert client.one("BGSAVE") == "Background saving started"
    info = str(client.one("INFO", "persistence"))
    assert "rdb_bgsave_in_progress:1" in info or "rdb_last_bgsave_status:ok" in info
    until("it is saved", lambda: "in_progress:0" in str(client.one("INFO", "persistence")))
    assert "rdb_last_bgsave_status:ok" in str(client.one("INFO", "persistence"))
    client.close(program)
    saved = (home / "dump.rdb").read_bytes()
    assert saved.startswith(b"REDIS")
    assert saved.count(b"value:") == KEYS - 1
    program.end()
