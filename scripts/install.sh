#!/usr/bin/env bash
# Make a virtual environment in .venv with this package and the versions that are tested.
# Usage: bash scripts/install.sh [EXTRAS] && source .venv/bin/activate
#        bash scripts/install.sh '[report,train]'    # with optional dependencies; others: peft, gguf,
#                                                    # quantization, datatrove, test
set -euo pipefail
case ${1:-} in
  "" | "["*"]") ;;
  *)
    sed -n '2,/^set/s/^# //p' "${BASH_SOURCE[0]}"
    exit $([[ $1 == -h || $1 == --help ]] && echo 0 || echo 2)
    ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=$(cat pyproject.toml constraints.txt scripts/install.sh | sha256sum | cut -c1-16)${1:-}
[ -f ".venv/installed-$stamp" ] && exit
echo "Installing into .venv (once; torch is large) ..."
python3 -m venv .venv
# torch by itself first, so that pip takes the pinned build and looks at no newer one.
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${1:-}"
touch ".venv/installed-$stamp"
echo "Installed. Next: source .venv/bin/activate"
