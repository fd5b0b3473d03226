"""Prints how many states there are, or the way to a bad one."""

from __future__ import annotations

import argparse

from .page_model import REMEDIES, Rules
from .settings import SETTINGS, check, describe, find_wrong, without


def main() -> int:
    parser = argparse.ArgumentParser(description="What can happen to a lazily restored page.")
    parser.add_argument("--mutant", choices=REMEDIES, help="take this remedy away")
    options = parser.parse_args()
    rules = without(options.mutant) if options.mutant else Rules()
    if options.mutant:
        bad = find_wrong(rules)
        if bad:
            setting, found = bad
            programs = "; ".join(
                f"{n}: {p}" for n, p in zip("ABC", SETTINGS[setting], strict=False)
            )
            print(f'"{setting}"   {programs}\n{describe(found)}')
        else:
            print("nothing goes wrong")
        return 0
    for setting in SETTINGS:
        found = check(setting, rules)
        print(f"{setting:34}{found.states:8} states  {found.wrong or 'all good'}")
        if found.wrong:
            print(describe(found))
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
