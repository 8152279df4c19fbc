# Sourced by demo.sh and test.sh: a virtual environment in .venv with the pinned dependencies.
# Usage: source scripts/install.sh [EXTRAS], as in: source scripts/install.sh '[test]'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=$(cat pyproject.toml constraints.txt scripts/install.sh | sha256sum | cut -c1-16)${1:-}
if [ ! -f ".venv/installed-$stamp" ]; then
  echo "Installing into .venv (once; torch is large) ..."
  python3 -m venv .venv
  # torch by itself first, so that pip takes the pinned build and looks at no newer one.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${1:-}"
  touch ".venv/installed-$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
