#!/usr/bin/env bash
# Builds the documentation into build/site; open build/site/index.html, also without a server. Warnings are errors.
# Arguments go to `mkdocs build`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
prepare docs
export JAX_PLATFORMS=cpu NO_MKDOCS_2_WARNING=1
exec "$python" -m mkdocs build --strict --config-file scripts/mkdocs.yml "$@"
