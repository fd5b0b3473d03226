"""CRIU's tasks when processes of the service are killed: right bytes, or a dead task; never zeros,
never one that waits for good.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from process_support import in_child
from serve_support import eventually
from warden_support import Daemon, Task, TaskImage, kill_all

ROLES = ("pager", "keeper", "warden", "second")
ROUNDS = int(os.environ.get("WARDEN_ROUNDS", "1"))
TAKEOVERS = 6


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> TaskImage:
    return TaskImage(tmp_path_factory.mktemp("image"))


def _pauses(seed: int) -> list[float]:
    chosen = random.Random(seed)
    return [chosen.random() * 0.2, chosen.random() * 0.002]


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize(
    ("roles", "may_die"),
    [
        (("pager",), False),
        (("keeper",), False),
        (("warden",), False),
        (("pager", "keeper"), True),
        (("pager", "warden"), False),
        (("second", "pager"), False),
        (("keeper", "warden", "second"), False),
        (("warden", "keeper", "pager"), True),
    ],
)
@in_child(120)
def test_some_are_killed(
    image: TaskImage, tmp_path: Path, roles: tuple[str, ...], may_die: bool, seed: int
) -> None:
    """While a task reads and forks"""
    before_s, between_s = _pauses(seed)
    with Daemon(image, tmp_path / "work") as daemon, Task(daemon) as task:
        eventually("all are there", lambda: daemon.is_whole)
        time.sleep(before_s)
        kill_all([daemon.pid_of(role) for role in roles], between_s)
        if {"pager", "keeper"} <= set(roles):
            # Unless the keeper was the pager already, and had one of its own.
            eventually("it is dead, or served", lambda: task.is_dead or daemon.is_whole)
        else:
            eventually("all are there", lambda: daemon.is_whole)
        time.sleep(0.1)
        killed = task.finish()
        assert killed == 0 or may_die
        daemon.wait_until_all_ended()


@pytest.mark.parametrize("seed", range(ROUNDS))
@in_child(120)
def test_all_but_one_are_killed_again_and_again(
    image: TaskImage, tmp_path: Path, seed: int
) -> None:
    """In any order, at any moment"""
    chosen = random.Random(seed)
    with Daemon(image, tmp_path / "work") as daemon, Task(daemon) as task:
        eventually("all are there", lambda: daemon.is_whole)
        for _ in range(6):
            roles = chosen.sample(ROLES, chosen.choice((1, 1, 2, 3)))
            if "keeper" not in roles and len(roles) == 3:
                continue  # all who have what the kernel has just given
            time.sleep(chosen.random() * 0.1)
            kill_all([daemon.pid_of(role) for role in roles], chosen.random() * 0.02)
            eventually("all are there again", lambda: task.is_dead or daemon.is_whole)
            if task.is_dead:
                break
        task.finish()
        daemon.wait_until_all_ended()


@in_child(120)
def test_a_task_that_nobody_serves_is_fenced(image: TaskImage, tmp_path: Path) -> None:
    """With --on-error poison it is not killed: a touch gives SIGBUS"""
    with (
        Daemon(image, tmp_path / "work", "--on-error", "poison") as daemon,
        Task(daemon) as task,
    ):
        eventually("all are there", lambda: daemon.is_whole)
        kill_all([daemon.keeper, daemon.server])
        assert task.process.wait(60) == -signal.SIGBUS
        task.finish()


@in_child(120)
def test_another_daemon_takes_over(image: TaskImage, tmp_path: Path) -> None:
    """Again and again, while a task forks: nobody is ended, whoever had its children"""
    work = tmp_path / "work"
    with contextlib.ExitStack() as opened:
        daemon = opened.enter_context(Daemon(image, work))
        task = opened.enter_context(Task(daemon))
        daemon.wait("restored")
        for _ in range(TAKEOVERS):
            before, daemon = daemon, opened.enter_context(Daemon(image, work, "--takeover"))
            daemon.wait("inherited", **{"from": before.pid})
            assert before.process.wait(60) == 0
            time.sleep(0.1)
            assert not daemon.find("error")
        assert task.finish() == 0
        daemon.wait_until_all_ended()
        assert not daemon.find("error")


@in_child(120)
def test_children_that_end_at_once(image: TaskImage, tmp_path: Path) -> None:
    """There is room for a few that nobody serves yet: they do not take it for good"""
    with Daemon(image, tmp_path / "work") as daemon, Task(daemon, 300) as task:
        task.hear("forked")
        assert task.finish() == 0
        daemon.wait_until_all_ended()


@in_child(120)
def test_nothing_is_left(image: TaskImage, tmp_path: Path) -> None:
    """Once it has ended in good order: whoever reads what it says sees the end"""
    with Daemon(image, tmp_path / "work") as daemon:
        eventually("all are there", lambda: daemon.is_whole)
        with Task(daemon) as task:
            assert task.finish() == 0
        daemon.wait_until_all_ended()
        assert daemon.process.wait(60) == 0
        assert daemon.find("stopped")
