#!/usr/bin/env bash
# Install what the tests need and run every check: ruff, mypy --strict and pytest.
# Usage: bash scripts/test.sh [pytest flags]
source "$(dirname "${BASH_SOURCE[0]}")/install.sh" '[test]'
exec scripts/check "$@"
