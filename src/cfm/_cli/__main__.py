"""``python -m cfm._cli`` is the command ``cfm``."""

import sys

from cfm._cli import main

if __name__ == "__main__":
    sys.exit(main())
