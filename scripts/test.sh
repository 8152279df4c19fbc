#!/usr/bin/env bash
# Install what the tests need and run every check: ruff, mypy --strict and pytest.
# Usage: bash scripts/test.sh [pytest flags]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh '[test]'
PATH="$PWD/.venv/bin:$PATH" exec scripts/check "$@"
