"""`python -m mm3dad` is the `mm3dad` command."""

import sys

from mm3dad.cli import main

if __name__ == "__main__":
    sys.exit(main())
