"""Which options CRIU may be given for a dump."""

from __future__ import annotations

import pytest

from lazyrestore._criu.dumpoptions import DumpOptions


def test_options_go_to_criu_as_they_are():
    given = ["--shell-job", "--ghost-limit=1G", "-l", "--external=dev[5/2]:tty", "--no-tcp-close"]
    assert DumpOptions.of(given) == (tuple(given), 2)


@pytest.mark.parametrize(
    ("option", "level"),
    [("-v", 1), ("-vv", 2), ("-vvvvvv", 4), ("-v4", 4), ("-v0", 0), ("--verbosity=3", 3)],
)
def test_how_much_it_logs(option, level):
    assert DumpOptions.of([option]) == ((), level)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--track-mem", "complete in itself"),
        ("--prev-images-dir=/tmp", "complete in itself"),
        ("--auto-dedup", "complete in itself"),
        ("--prev", "complete in itself"),  # CRIU understands abbreviations
        ("--page-server", "into the image"),
        ("--lazy-pages", "restore --lazy"),
        ("--lazy", "restore --lazy"),
        ("--action-script=/bin/true", "only after"),
        ("--leave-running", "without --criu-opt"),
        ("-R", "without --criu-opt"),
        ("-D/tmp", "sets that itself"),
        ("--images-dir=/tmp", "sets that itself"),
        ("-t1", "sets that itself"),
        ("-o", "log is kept"),
        ("--stream", "into the image"),
    ],
)
def test_an_option_that_would_take_the_pages_or_the_end_elsewhere(option, why):
    with pytest.raises(ValueError, match=why) as caught:
        DumpOptions.of(["--shell-job", option])
    assert option in str(caught.value)


@pytest.mark.parametrize("option", ["restore", "", "-", "--", "4", "--root=\0"])
def test_what_is_no_option(option):
    with pytest.raises(ValueError, match="not an option"):
        DumpOptions.of([option])


def test_one_string_is_not_several():
    with pytest.raises(ValueError, match="several strings"):
        DumpOptions.of("--shell-job")
