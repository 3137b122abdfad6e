"""All scripts of this folder, one after the other; the exit code is 1 where anything failed.

`--short` tries the first cases of each, the same on every machine, in a minute and a half on two cores.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from _trials import options

SHARES = {"kills": 0.4, "calls": 0.2, "files": 0.2, "words": 0.2}  # of the time
SHORT = {"kills": 12, "calls": 600, "files": 150, "words": 60}  # cases


def main() -> int:
    short = "--short" in sys.argv
    asked = options(__doc__, tries=10_000, minutes=16, argv=[word for word in sys.argv[1:] if word != "--short"])
    failed: list[str] = []
    for name, share in SHARES.items():
        print(f"-- {name}", flush=True)
        tries, minutes = (SHORT[name], 10.0) if short else (asked.tries, share * asked.minutes)
        script = Path(__file__).with_name(f"{name}.py")
        words = ["--tries", str(tries), "--minutes", str(minutes), "--seed", str(asked.seed)]
        words += ["--keep", str(asked.keep)] if asked.keep else []
        if subprocess.run([sys.executable, script, *words], check=False).returncode:
            failed.append(name)
    print(f"\nfailed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
