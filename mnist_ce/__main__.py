"""`python -m mnist_ce` is the same as `mnist-ce`."""

from __future__ import annotations

import sys

from mnist_ce.cli import main

if __name__ == "__main__":
    sys.exit(main())
