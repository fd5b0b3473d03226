"""What a service says of itself, on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import time


class Events:
    """Prints events: a line of text each, or of JSON."""

    def __init__(self, *, is_json: bool = False) -> None:
        self._is_json = is_json

    def emit(self, name: str, **fields: object) -> None:
        """Tell of one event."""
        if self._is_json:
            text = json.dumps({"event": name, "time": time.time(), **fields})
        else:
            text = f"lazyrestore: {name} " + " ".join(f"{k}={v!r}" for k, v in fields.items())
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace") + b"\n")
