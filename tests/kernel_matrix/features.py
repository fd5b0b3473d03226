"""Say which kernel this is, and make sure that it is one without what newer ones have.

Under a kernel that has everything the tests would take the same ways as anywhere else, and pass
without having tried a fallback. The argument is "old", or "any" if somebody chose the kernel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys


def main() -> int:
    command = [sys.executable, "-m", "lazyrestore", "doctor", "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120)
    found = json.loads(result.stdout)
    release = os.uname().release
    version = tuple(int(part) for part in release.split(".")[:2])
    print(f"Linux {release}, userfaultfd: {found['level']}")
    has_poison = None
    for feature in found["features"]:
        print(f"  {feature['name']} (Linux {feature['since']}): {feature['present']}")
        if feature["name"] == "POISON":
            has_poison = feature["present"]
    if has_poison is None:
        print("doctor says nothing of POISON")
        return 1
    if has_poison != (version >= (6, 6)):
        print("POISON came with Linux 6.6: doctor does not see this kernel as it is")
        return 1
    if has_poison and sys.argv[1:] != ["any"]:
        print("this kernel has POISON, so no fallback would be tested: choose an older one")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
