"""`lazyrestore`, and `python -m lazyrestore`."""

import sys


def main() -> int:
    """Run the command line; the exit code."""
    try:
        return _run()
    except KeyboardInterrupt:  # while what reads the arguments was imported
        print("lazyrestore: interrupted", file=sys.stderr)
        return 130


def _run() -> int:
    from ._criu.early import begin

    daemon = begin(sys.argv[1:])
    if daemon is None:
        from .cli import main

        return main()
    try:
        from .cli._process import run_command

        code = run_command(sys.argv[1:], daemon)
        if code is None:
            from .cli import main

            code = main(daemon=daemon)
        return code
    finally:
        daemon.discard()


if __name__ == "__main__":
    sys.exit(main())
