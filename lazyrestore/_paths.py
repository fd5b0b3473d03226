"""Paths as they are given, from wherever the program will be by then."""

from __future__ import annotations

import os


def absolute(path: str, folder: str = "") -> str:
    """A path that begins at the root, and leads where the kernel would have gone.

    `os.path.abspath` takes ".." for the folder whose name stands before it. Behind a symbolic link
    that is another one, and what is found there may be another file of the same name.

    Args:
        path: a path.
        folder: from which it leads where it does not begin at the root; "": the current one.
    """
    whole = os.path.join(folder, path)
    if ".." not in whole.split("/"):
        return os.path.abspath(whole)
    return os.path.join("" if whole.startswith("/") else os.getcwd(), whole).rstrip("/")
