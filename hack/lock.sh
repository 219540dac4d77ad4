#!/usr/bin/env bash
# Writes requirements/*.txt from pyproject.toml: one lock for development, one for each image, all of the same versions.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() { # lock file, then the flags of `uv pip compile`
  local out=$1; shift
  uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --python-version 3.11 "$@" pyproject.toml -o "$out"
}
compile requirements/dev.txt --extra dev
for image in operator fetch trainer; do
  compile "requirements/$image.txt" --extra "$image" --constraint requirements/dev.txt
done
