#!/bin/sh
# Used by the Dockerfiles: installs a lock file into /opt/venv, by a uv that is gone afterwards and leaves no layer.
#   install.sh LOCK
# The secret `ca`, where the build has it, holds the certificates of a machine behind a private authority.
set -eu
ca=/run/secrets/ca.crt
if [ -s "$ca" ]; then export PIP_CERT="$ca" SSL_CERT_FILE="$ca"; fi
# Compiled here, since a read-only root cannot keep bytecode: importing torch takes half the time.
export UV_SYSTEM_CERTS=true UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
python3 -m venv /tmp/uv
/tmp/uv/bin/pip install --quiet --no-cache-dir --no-deps --require-hashes -r "$(dirname "$0")/uv.txt"
[ -d /opt/venv ] || /tmp/uv/bin/uv venv --no-project --python python3 /opt/venv
/tmp/uv/bin/uv pip install --python /opt/venv --require-hashes --no-deps -r "$1"
rm -rf /tmp/uv
