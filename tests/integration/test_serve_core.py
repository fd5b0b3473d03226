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


def test_children_of_a_whole_process(tmp_path):
    """They are served by what their parent's session tells of them, here and in a successor."""
    run(
        tmp_path,
        """
import threading, time
from lazyrestore._core import Child, state_children, state_set_child
from peer_support import EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP
peer.close()
try:
    peer = Peer(PAGES, 2 | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP)
except OSError as error:
    sys.exit(f"no userfaultfd that tells of forks here: {error}")
whole = [PeerRange(peer.address, PAGES * PAGE)]
whole_process = {"zero_outside": True, "children": True}
try:
    Core.serve(image, uffd=peer.uffd, ranges=whole, **whole_process)
except ValueError as found:
    print(found)
else:
    raise AssertionError("children without a state")
state, bell = serve_state(image), os.eventfd(0)
core = Core.serve(
    image, uffd=peer.uffd, state=state, event_fd=bell, ranges=whole, **whole_process
)
try:
    core.fill()
except lazyrestore.KernelError as found:
    print(found)
else:
    raise AssertionError("a fill before all is mapped")
core.settle()
assert core.next_child() is None
in_child = "(lambda p: os._exit(%s) if p == 0 else os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))"
peer.order((in_child % "memory[:1] != memory[63 * 4096 : 63 * 4096 + 1]") + "(os.fork())")
os.eventfd_read(bell)
child = core.next_child()
assert child.number == 1 and core.next_child() is None
core.close()
assert state_children(state) == [child]
state_set_child(state, Child(os.dup(child.uffd), child.state, 1))
try:
    state_set_child(state, Child(child.uffd, child.state, 2))
except ValueError as found:
    print(found)
os.close(child.uffd)
core = Core.serve(image, uffd=peer.uffd, state=state, ranges=[], **whole_process)
child = core.next_child()
served = Core.serve(image, uffd=child.uffd, state=child.state, ranges=[], **whole_process)
core.child_is_kept(child.number)
assert state_children(state) == []
assert peer.result() == int(expected[0] != expected[63 * PAGE])
served.close()
core.fill()
assert core.wait(None)
assert peer.ask("memory[:]") == expected
core.close()
peer.close()
""",
    )
