"""A process that may not use userfaultfd, by a filter of system calls as containers have it."""

from __future__ import annotations

# At the head of a script; a machine without seccomp makes it print "skip" and why, and end.
DENY = """
import ctypes, os, platform, struct, sys
def deny_userfaultfd(error, device=True):
    '''A seccomp filter that fails userfaultfd(2), as a container's does, and the device's ioctl.'''
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 323, "aarch64": 282}[platform.machine()]
    ioctl = {"x86_64": 16, "aarch64": 29}[platform.machine()]
    fail = 0x00050000 | error
    code = [
        (0x20, 0, 0, 0),             # load the number
        (0x15, 3, 0, number),        # userfaultfd: fail
        (0x15, 0, 3, ioctl),         # another: allow
        (0x20, 0, 0, 24),            # ioctl: load its request
        # USERFAULTFD_IOC_NEW: fail, or (to a request that there is not) allow
        (0x15, 0, 1, 0xAA00 if device else 0),
        (0x06, 0, 0, fail),
        (0x06, 0, 0, 0x7FFF0000),
    ]
    filters = b"".join(struct.pack("HBBI", *line) for line in code)
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.c_char_p)]
    program = Program(len(code), filters)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    if libc.prctl(22, 2, ctypes.byref(program)):
        print("skip", os.strerror(ctypes.get_errno()))
        sys.exit()
"""
