"""What is loaded ahead of touches: which options of that go together. Light to import."""

from __future__ import annotations


def conflict(prefetch: str | None, record: str | None, working_set: str | None) -> str | None:
    """Why these options do not go together, and which to leave out; None where they do."""
    if record is not None and (prefetch == "all" or working_set is not None):
        return (
            "--record cannot see touches of what was loaded ahead: leave out --prefetch and"
            " --working-set"
        )
    if working_set is not None and prefetch == "none":
        return "--prefetch none loads no working set: leave out one of the two"
    return None
