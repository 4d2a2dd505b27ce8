"""Print what an extra of the installed package asks for, one requirement a line: `python scripts/list_extra.py bench`."""

import sys
from importlib.metadata import requires

(extra,) = sys.argv[1:]
found = [line.partition(";")[0].strip() for line in requires("mm3dad") or () if f'extra == "{extra}"' in line]
if not found:
    sys.exit(f"list_extra: expected the name of an extra in setup.py, got {extra!r}; set up again if it is new there")
print("\n".join(found))
