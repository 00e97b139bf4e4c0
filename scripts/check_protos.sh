#!/bin/sh
# Lints the protos, refuses breaking changes against the last commit that changed them, and checks the committed stubs and docs.
set -eu
buf lint
before=$(git log -2 --format=%H -- protos 2>/dev/null | tail -n 1)
if [ -n "$before" ]; then
    buf breaking --against ".git#ref=$before"
fi
python scripts/generate_stubs.py --check
python scripts/generate_api_reference.py --check
