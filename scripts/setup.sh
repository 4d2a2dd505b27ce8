#!/usr/bin/env bash
# Makes .venv with the package, its libraries and the `mm3dad` command. Called by `make setup`; safe to run again, and only does what is missing.
#   PYTHON=/path/to/python3.12 make setup    chooses the interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
log=$venv/setup.log

say() { printf 'set-up: %s\n' "$*"; }
fail() { printf 'set-up failed: %s\n' "$*" >&2; exit 1; }

# install_debian PACKAGE...: as root by itself; any other user gets the command to type.
install_debian() {
    if ! command -v apt-get >/dev/null; then
        fail "system packages are missing and apt-get is not here; install what Debian calls: $*"
    elif [ "$(id -u)" -ne 0 ]; then
        fail "system packages are missing; type: sudo apt-get install -y $*   then make again"
    fi
    say "installing the system packages $*"
    local output
    if ! output=$(apt-get update -qq 2>&1 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" 2>&1); then
        fail "apt-get install $* ended with: $(tail -n 1 <<<"$output")"
    fi
}

# The tests look at the pages in a real Chromium. It is a convenience: without root, apt or a network those tests skip and say so.
install_browser() {
    local name
    for name in chromium chromium-browser google-chrome chrome; do
        command -v "$name" >/dev/null && return
    done
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        say "installing chromium, in which the tests look at the pages"
        apt-get update -qq >>"$log" 2>&1 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >>"$log" 2>&1 && return
    fi
    say "no Chromium, so the tests that look at pages will be skipped; to have them: sudo apt-get install -y chromium"
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "expected Python 3.11 or newer, found ${PYTHON:-$(python3 --version 2>/dev/null || echo none)}; install it or name one: make setup PYTHON=/path/to/python3.11"
}

# Prints the Debian packages that are missing: ensurepip, which Debian splits from python3 (venv then leaves an environment without pip),
# and the libraries that open3d's own library is linked to and that a machine without a desktop lacks.
missing_packages() {
    "$1" - <<'END'
import ctypes, importlib.util, sys

if not all(map(importlib.util.find_spec, ("ensurepip", "venv"))):
    print("python%d.%d-venv" % sys.version_info[:2])
libraries = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libidn2.so.0": "libidn2-0",
    "libudev.so.1": "libudev1",
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libX11.so.6": "libx11-6",
}
for library, package in libraries.items() if sys.platform == "linux" else ():
    try:
        ctypes.CDLL(library)
    except OSError:
        print(package)
END
}

make_environment() {
    local free
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free" -ge 10 ] || fail "expected 10 GB free for torch and the other libraries, found $free GB; free some space, then make again"
    say "creating $venv with $("$1" --version)"
    "$1" -m venv --clear "$venv"
}

# Runs pip into the log and says every 20 s how far it is: the downloads are about 3 GB, and silence for minutes looks like a hang.
install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" >>"$log" 2>&1 &
    local pip=$! seconds=0
    trap 'kill "$pip" 2>/dev/null || true' EXIT
    while kill -0 "$pip" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        if [ $((seconds % 20)) -eq 0 ]; then
            say "$((seconds / 60)) min $((seconds % 60)) s: $(tail -n 1 "$log" | sed 's/^ *//' | cut -c 1-90)"
        fi
    done
    trap - EXIT
    wait "$pip" || fail "pip ended with: $(grep -E '^ERROR' "$log" | tail -n 1 || tail -n 1 "$log"); the whole log is $log"
}

# Libraries first: the native kernels are compiled with the headers of the very torch that will load them, not with a second one in pip's
# isolated environment, which would double the download. Where the lock was made for another Python or machine the versions are the
# same and the files are not compared.
install_package() {
    local target
    target=$("$venv/bin/python" scripts/lock.py --target)
    say "installing mm3dad and its libraries (the first time 6.5 GB on disk, 2 to 15 minutes; the log is $log)"
    : >"$log"
    if [ "$(head -n 1 constraints.lock | cut -d : -f 1)" = "# $target" ]; then
        install --require-hashes --no-deps -r constraints.lock
        install --no-build-isolation --no-deps -e .
    else
        say "constraints.lock is not for $target, so the sha256 of the libraries are not compared; their versions are the tested ones"
        install -c constraints.txt torch setuptools
        install -c constraints.txt --no-build-isolation -e '.[dev]'
    fi
}

python=$venv/bin/python
if ! "$python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    is_new=yes
fi
packages=$(missing_packages "$python" | tr '\n' ' ')
# shellcheck disable=SC2086  # one word per package
[ -z "$packages" ] || install_debian $packages
[ -z "${is_new:-}" ] || make_environment "$python"
install_package
reason=$("$venv/bin/python" -c 'import open3d' 2>&1) || fail "open3d does not load: $(tail -n 1 <<<"$reason")"
# pip has built them already, or says in its log that it could not; then this says why.
reason=$("$venv/bin/python" extensions/build_kernels.py 2>&1 >/dev/null) || say "$(tail -n 1 <<<"$reason"); all works without them, only slower"
install_browser
say "done; the command is $venv/bin/mm3dad"
