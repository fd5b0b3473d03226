"""Examples of each command: for its help and its manual page."""

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "dump": (
        ("The memory of a process, which runs on", "lazyrestore dump --pid 4711 state.lzr"),
        ("A virtual machine's memory", "lazyrestore dump --file vm.mem vm.lzr"),
        ("What another program writes", "gzip -dc vm.mem.gz | lazyrestore dump --file - vm.lzr"),
        ("A whole process, to be run again", "sudo lazyrestore dump --process 4711 app.lzr"),
    ),
    "restore": (
        ("Into a file, all of it", "lazyrestore restore vm.lzr --output vm.mem"),
        (
            "Touch 1000 pages in any order, and say how long each took",
            "lazyrestore restore --lazy --touch random --count 1000 state.lzr",
        ),
        ("For a program of your own", "lazyrestore restore --lazy state.lzr -- ./program"),
        ("Have processes run again", "sudo lazyrestore restore --lazy app.lzr"),
    ),
    "info": (
        ("What it is", "lazyrestore info state.lzr"),
        ("What is where in it", "lazyrestore info --map state.lzr"),
        ("The same as a picture", "lazyrestore info --svg state.svg state.lzr"),
        ("Its size, for a script", "lazyrestore info --json state.lzr | jq .stored_bytes"),
    ),
    "ls": (("Its regions", "lazyrestore ls state.lzr"),),
    "cat": (
        (
            "The first 256 bytes of a region",
            "lazyrestore cat state.lzr --region weights --length 256 | xxd",
        ),
    ),
    "verify": (("Is it sound?", "lazyrestore verify state.lzr && echo sound"),),
    "diff": (
        ("What changed between two dumps", "lazyrestore diff before.lzr after.lzr"),
        ("In a script", "lazyrestore diff --quiet before.lzr after.lzr && echo alike"),
    ),
    "optimize": (
        (
            "Record what a run touches, and put that at the front",
            "lazyrestore restore --lazy --record run.ws state.lzr -- ./program\n"
            "    lazyrestore optimize state.lzr --working-set run.ws --output fast.lzr",
        ),
    ),
    "serve": (
        (
            "For Firecracker, with the snapshot's memory back end set to Uffd",
            "lazyrestore serve vm.lzr --socket /run/vm.sock",
        ),
    ),
    "lazy-pages": (
        (
            "In the place of criu lazy-pages",
            "lazyrestore restore app.lzr --lazy --criu folder\n"
            "    lazyrestore lazy-pages --images-dir folder --image app.lzr &\n"
            "    criu restore --images-dir folder --lazy-pages",
        ),
    ),
    "top": (
        ("Look on", "lazyrestore top /run/vm.sock"),
        ("Once, for a script", "lazyrestore top --once --json /run/vm.sock"),
    ),
    "bench": (
        ("On data that is made for it", "lazyrestore bench --quick"),
        ("On an image of yours, as a picture", "lazyrestore bench state.lzr --plot bench.svg"),
        ("The least that a fault costs here", "lazyrestore bench hello"),
    ),
    "doctor": (
        ("Can restores be lazy here?", "lazyrestore doctor"),
        ("The same in a script", "lazyrestore doctor --quiet || echo eager only"),
    ),
    "demo": (
        ("A program is dumped and restored", "lazyrestore demo"),
        ("One fault after the other", "lazyrestore demo --walk 4"),
    ),
}
