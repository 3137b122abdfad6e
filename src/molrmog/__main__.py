"""`python -m molrmog`: the command line, see `molrmog.interfaces.cli`."""

import sys

from molrmog.interfaces.cli import main

if __name__ == "__main__":  # processes that are spawned import this module, too
    sys.exit(main())
