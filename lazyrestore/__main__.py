"""`lazyrestore`, and `python -m lazyrestore`."""

import sys


def main() -> int:
    """Run the command line; the exit code."""
    from ._criu.early import begin

    daemon = begin(sys.argv[1:])
    try:
        from .cli import main

        return main(daemon=daemon)
    finally:
        if daemon is not None:
            daemon.discard()


if __name__ == "__main__":
    sys.exit(main())
