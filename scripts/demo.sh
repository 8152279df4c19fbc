#!/usr/bin/env bash
# See SelectIT work: rate a bundled sample dataset with a bundled tiny model, and keep the best fifth.
# Needs Python 3.11 or newer and a package index; no GPU, no login. Takes a minute after installation.
# Usage: bash scripts/demo.sh [flags of 'selectit demo']
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh
exec .venv/bin/selectit demo "$@"
