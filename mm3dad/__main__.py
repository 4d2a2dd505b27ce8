"""`python -m mm3dad`, which torchrun can start."""

import sys

from mm3dad.cli import main

if __name__ == "__main__":
    sys.exit(main())
