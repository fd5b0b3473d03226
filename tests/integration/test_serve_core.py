"""`Core.serve`: another process's faults, as Python sees them. More is in tests/c/test_serve*.c."""

from __future__ import annotations

from restore_support import run_in_child, write_image

PREAMBLE = """
import os, sys
import lazyrestore
from lazyrestore._core import Core, PeerRange, serve_state
from peer_support import PAGE, Peer
path = sys.argv[1]
PAGES = 64
image = lazyrestore.open(path)
expected = image.read("memory")
try:
    peer = Peer(PAGES)
except OSError as error:
    sys.exit(f"no userfaultfd here: {error}")
whole = [PeerRange(peer.address, PAGES * PAGE)]
"""


def run(tmp_path, script: str) -> None:
    path = tmp_path / "memory.lzr"
    write_image(path, {"memory": "ddrzh" * 12 + "dddd"})
    run_in_child(PREAMBLE + script, path)


def test_serves_fills_and_goes_on(tmp_path):
    run(
        tmp_path,
        """
state = serve_state(image)
core = Core.serve(image, uffd=peer.uffd, state=state, pid=peer.pid, ranges=whole, record=True)
assert peer.ask("memory[20 * 4096 : 21 * 4096]") == expected[20 * PAGE : 21 * PAGE]
stats = core.stats()
assert (stats.faults, stats.pages_total, stats.is_gone) == (1, PAGES, 0), stats.faults
assert 0 < stats.pages_missing < PAGES
assert list(core.touched()[0]) == [20 * PAGE // image.cluster_size]
core.close()
peer.order("memory[:]")
bell = os.eventfd(0)
core = Core.serve(image, uffd=peer.uffd, state=state, event_fd=bell, ranges=[])
assert peer.result() == expected
core.fill()
assert core.wait(None)
assert os.eventfd_read(bell) >= 1
assert core.stats().pages_missing == 0
core.close()
peer.close()
""",
    )


def test_says_what_cannot_be_served(tmp_path):
    run(
        tmp_path,
        """
def refused(error, **changes):
    try:
        Core.serve(image, **{"uffd": peer.uffd, "ranges": whole, **changes})
    except error as found:
        print(found)
    else:
        raise AssertionError(changes)

refused(ValueError, uffd=0)
refused(ValueError, uffd=-1)
refused(ValueError, ranges=[])
refused(ValueError, ranges=[PeerRange(peer.address, PAGE, offset=(1 << 64) - PAGE)])
refused(ValueError, on_error="abort")
refused(lazyrestore.RemoteError, state=os.open("/dev/null", os.O_RDWR))
peer.close()
""",
    )


def test_a_state_that_its_owner_holds_a_lease_of(tmp_path):
    """He has the kernel make others wait until he has given it back, for as long as it lets him."""
    run(
        tmp_path,
        """
import fcntl, signal
signal.signal(signal.SIGIO, signal.SIG_IGN)  # he is asked for it
first = serve_state(image)
state = os.open(f"/proc/self/fd/{first}", os.O_RDWR)
os.close(first)
fcntl.fcntl(state, fcntl.F_SETLEASE, fcntl.F_WRLCK)
try:
    Core.serve(image, uffd=peer.uffd, ranges=whole, state=state)
except lazyrestore.KernelError as found:
    print(found)
else:
    raise AssertionError("it was waited for")
fcntl.fcntl(state, fcntl.F_SETLEASE, fcntl.F_UNLCK)
core = Core.serve(image, uffd=peer.uffd, ranges=whole, state=state)
assert peer.ask("memory[:]") == expected
core.close()
peer.close()
""",
    )
