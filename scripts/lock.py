"""Write constraints.lock, each file that `make setup` installs with its sha256: `.venv/bin/python scripts/lock.py`.

To be run after constraints.txt changed. pip chooses the files as for a new environment, so the lock fits this Python and this kind of
machine, which its first line names.
"""

import json
import platform
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor} {sys.platform} {platform.machine()}"


def main() -> None:
    """Resolve what the package and its tests need under constraints.txt and write what pip would take."""
    if sys.argv[1:] == ["--target"]:
        print(TARGET)
        return
    wanted = [line for line in requires("mm3dad") or () if "extra ==" not in line or 'extra == "dev"' in line]
    wanted = [re.sub(r'\s*(;|and)\s*extra == "dev"', "", line) for line in wanted]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    found = subprocess.run(
        [*command, "-c", str(ROOT / "constraints.txt"), "setuptools", *wanted], check=True, capture_output=True, text=True
    ).stdout
    lines = []
    for item in json.loads(found)["install"]:
        name, version, file = item["metadata"]["name"], item["metadata"]["version"], item["download_info"]
        if not file["url"].endswith(".whl"):
            sys.exit(f"lock: expected a wheel of {name} {version}, pip would take {file['url']}; pin a version that has one")
        lines.append(f"{name}=={version} --hash=sha256:{file['archive_info']['hashes']['sha256']}")
    head = f"# {TARGET}: made of constraints.txt by scripts/lock.py, for 'make setup'."
    (ROOT / "constraints.lock").write_text("\n".join([head, *sorted(lines, key=str.lower)]) + "\n")
    print(f"wrote constraints.lock: {len(lines)} files")


if __name__ == "__main__":
    main()
