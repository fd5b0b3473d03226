"""`lazyrestore`, and `python -m lazyrestore`."""

import sys


def main() -> int:
    """Run the command line; the exit code."""
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
