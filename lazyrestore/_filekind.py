"""What a file is that is not an image, for who gave the wrong one."""

from __future__ import annotations

import os

_HEAD_BYTES = 262
_WORKING_SET = b"\xb7lazyrestore working set"

# What files begin with, what they are, and what to do with them.
_KINDS = (
    (
        b"\x93NUMPY",
        "a numpy array (.npy)",
        "`lazyrestore dump --npy {path} {image}` makes an image",
    ),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it: zstd -d {path}"),
    (b"\x1f\x8b", "compressed by gzip", "decompress it: gzip -d {path}"),
    (b"\xfd7zXZ\0", "compressed by xz", "decompress it: xz -d {path}"),
    (b"BZh", "compressed by bzip2", "decompress it: bzip2 -d {path}"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "decompress it: lz4 -d {path}"),
    (b"hsqs", "a squashfs file system", "mount it, and give a file in it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "load its arrays, and dump these"),
    (b"PAR1", "a Parquet file", "load it, and dump its columns"),
    (b"ARROW1", "an Arrow file", "load it, and dump its columns"),
    (b"SQLite format 3\0", "an SQLite database", "give a file that `lazyrestore dump` made"),
)


def describe(path: str | bytes | os.PathLike[str]) -> str:
    """What it is instead, and what to do with it: "it is ...: ..."; "" where that is not known."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return ""
    import shlex

    name = os.fsdecode(path)
    image = os.path.splitext(os.path.basename(name))[0] + ".lzr"
    found = _look(head)
    if found is None:
        return ""
    what, remedy = found
    return f"it is {what}: {remedy.format(path=shlex.quote(name), image=shlex.quote(image))}"


def _look(head: bytes) -> tuple[str, str] | None:
    for start, what, remedy in _KINDS:
        if head.startswith(start):
            return what, remedy
    if head.startswith(b"PK\3\4"):
        return _look_into_zip(head)
    if head.startswith(b"\x7fELF"):
        if head[16:18] in (b"\4\0", b"\0\4"):
            return "a core file", "`lazyrestore dump --core {path} {image}` makes an image"
        return "a program or library", "give a file that `lazyrestore dump` made"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a pickle", "load it, and give the object to lazyrestore.dump_pickle()"
    if _is_safetensors(head):
        return (
            "a safetensors file",
            "`lazyrestore dump --safetensors {path} {image}` makes an image",
        )
    if head[1:].startswith(_WORKING_SET):
        return "a working set", "give the image that it belongs to"
    if head and _is_text(head):
        return "a text", "give a file that `lazyrestore dump` made"
    return None


def _look_into_zip(head: bytes) -> tuple[str, str]:
    """Arrays are members with names that end with .npy; PyTorch has its own."""
    length = int.from_bytes(head[26:28], "little")
    member = head[30 : 30 + length]
    if member.endswith(b".npy"):
        remedy = "`lazyrestore dump --npz {path} {image}` makes an image"
        return "an archive of arrays (.npz)", remedy
    if b"data.pkl" in member or b"/.format_version" in member or b"/byteorder" in member:
        return "a file of PyTorch's", "torch.load it, and give it to lazyrestore.dump_pickle()"
    return "a zip archive", "unpack it, and give a file that `lazyrestore dump` made"


def _is_safetensors(head: bytes) -> bool:
    """A length of 8 bytes, and JSON."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a letter is cut at the end
            return False
        text = head[: error.start].decode()
    return all(letter.isprintable() or letter in "\t\n\r\f" for letter in text)
