# `make` lists the targets. A clean clone needs make, git and Python 3.11 or newer; the rest is downloaded, after a message.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
export FINETUNE_CACHE ?= $(HOME)/.cache/finetune-operator
# The uv that `make venv` downloads if the machine has none.
export PATH := $(PATH):$(FINETUNE_CACHE)/uv/bin
# Some containers set it; every process that imports torch and transformers then takes 14 s of a core instead of 6.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv/bin
CHART := charts/finetune-operator
KUBERNETES = $(shell awk '$$1 == "k8s.io/kubernetes" { print $$2 }' hack/tools/go.mod)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- Demo ---

.PHONY: demo demo-down
demo: venv ## Run everything from this checkout to an answer of a tuned model, on a real cluster on this machine
	$(VENV)/python hack/demo

demo-down: ## Stop the demo; leaves no process, mount or network rule
	$(PYTHON) hack/demo down

# --- Develop ---

.PHONY: venv check test verify format crds dashboards lock
venv: .venv/.ready ## Make the Python environment .venv from requirements/dev.txt

.venv/.ready: requirements/dev.txt pyproject.toml hack/environment.py
	$(PYTHON) hack/environment.py

check: verify-format verify-lint verify-types verify-imports ## The checks to run every few minutes: format, lint, types, imports and the fast tests
	$(VENV)/python -m pytest -q -n auto --dist loadscope -m "not cluster and not e2e and not slow"

test: venv ## Run all tests, on a real control plane and a real node too; ARGS="tests/unit -k gate" for a part
	$(VENV)/python -m pytest $(or $(ARGS),-n auto --dist loadscope --durations 30 --durations-min 20)

verify: verify-format verify-lint verify-types verify-imports verify-words verify-generated verify-chart ## All static checks: format, lint, types, imports, retired words, generated files, chart

format: venv ## Format the code and apply the fixes of the linter
	$(VENV)/ruff format
	$(VENV)/ruff check --fix

crds: venv ## Write the CRDs and docs/reference from the models
	$(VENV)/python hack/generate

dashboards: venv ## Write the chart's Grafana dashboards
	$(VENV)/python hack/dashboards

lock: venv ## Choose the newest versions that pyproject.toml allows and write requirements/
	hack/lock.sh

.PHONY: verify-format verify-lint verify-types verify-imports verify-words verify-generated verify-chart
verify-format: venv
	$(VENV)/ruff format --check

verify-lint: venv
	$(VENV)/ruff check

verify-types: venv
	$(VENV)/mypy

verify-imports: venv
	$(VENV)/lint-imports

verify-words:
	$(PYTHON) hack/words.py

verify-generated: venv
	$(VENV)/python hack/generate --check
	$(VENV)/python -m tests.bench.trainer --check
	$(VENV)/python -m tests.bench.estimate --check
	$(VENV)/python -m tests.bench.evaluation --check
	$(VENV)/python -m tests.bench.judgement --check
	$(VENV)/python -m tests.bench.operator --check
	$(VENV)/python -m tests.chaos --check
	$(VENV)/python hack/dashboards --check

# Both check the values against the chart's schema; the rendered chart is tested in tests/chart.
verify-chart:
	helm=$$($(PYTHON) hack/localcluster binaries helm)/helm && \
	$$helm lint --strict --kube-version $(KUBERNETES) $(CHART) && \
	$$helm template finetune-operator $(CHART) --kube-version $(KUBERNETES) --include-crds > /dev/null

.PHONY: chaos
chaos: venv ## Inject 200 random faults into a fleet of jobs on a real node and check every job, an hour; ARGS="--rounds 20"
	$(VENV)/python -m tests.chaos $(ARGS)

# --- Measure: each writes its table below docs/benchmarks/ ---

.PHONY: bench-startup bench-checks bench-trainer bench-trainer-profile bench-estimate gpu-check gateway-check scale-check bench-evaluation bench-operator bench-gateway bench-pool bench-pool-base bench-pool-scale
bench-startup: venv ## Measure the time from exec to the first optimizer step
	$(VENV)/python tests/bench/startup.py

bench-checks: venv ## Measure the data checks on a million rows
	$(VENV)/python tests/bench/checks.py

bench-trainer: venv ## Compare the trainer with its peers, an hour on a quiet machine; ARGS="--workload short" for a part
	$(VENV)/python -m tests.bench.trainer $(ARGS)

bench-trainer-profile: venv ## Measure where a step of the trainer spends its time
	$(VENV)/python -m tests.bench.trainer.profile

gpu-check: venv ## On a machine with a GPU: check the trainer's passes there and measure them, about 10 minutes (not yet timed); without one, shrunk on the CPU
	$(VENV)/python -m tests.bench.gpu $(ARGS)

gateway-check: venv ## A real Gateway and Ingress controller in front of real servers on a real node: shares, rollouts, keys; 20 minutes
	$(VENV)/python -m tests.bench.routed $(ARGS)

scale-check: venv ## An HPA with a real prometheus-adapter, with ARGS="--keda" KEDA, scales a pool on a real control plane, 25 minutes; "--short" takes 7
	$(VENV)/python -m tests.bench.scale $(ARGS)

bench-estimate: venv ## Compare peak memory of training with the estimate; ARGS="--only short" for a part
	$(VENV)/python -m tests.bench.estimate $(ARGS)

bench-evaluation: venv ## Compare generation in the evaluation with transformers', a quarter of an hour on a quiet machine
	$(VENV)/python -m tests.bench.evaluation $(ARGS)

bench-judgement: venv ## Run jobs of six kinds of tasks on SmolLM2-135M: which method wins, and what the product says, hours; ARGS="--task intents10"
	$(VENV)/python -m tests.bench.judgement $(ARGS)

bench-pool: venv ## Many adapters on one pod of a ServingPool on a real node, under change and kills, half an hour
	$(VENV)/python tests/bench/pool $(ARGS)

bench-pool-base: venv ## What LoRA costs the requests for a pool's base model, on a real node; ARGS="--rounds 2" for a short run
	$(VENV)/python -m tests.bench.pool.base $(ARGS)

bench-pool-scale: venv ## A pool with a thousand models on a real API server, with a double of the engine, 10 minutes
	$(VENV)/python tests/bench/pool/scale.py $(ARGS)

bench-operator: venv ## Measure the operator at scale, compared with a floor, an earlier revision and Kubeflow Trainer, 25 minutes on a quiet machine; ARGS="--before REV"
	$(VENV)/python -m tests.bench.operator $(ARGS)

bench-gateway: venv ## Measure what the gateway of a pool adds to a request, 2 minutes on a quiet machine; ARGS="--litellm PYTHON" compares
	$(VENV)/python tests/bench/gateway.py $(ARGS)

# --- Clusters and images ---

.PHONY: cluster cluster-down images
cluster: ## Start a real one-node Kubernetes on this machine, with a registry and S3 (Linux, root, no Docker)
	$(PYTHON) hack/localcluster up

cluster-down: ## Stop it
	$(PYTHON) hack/localcluster down

images: ## Build the images and push them to REGISTRY=host:port, or else to the running cluster's
	registry=$${REGISTRY:-$$($(PYTHON) hack/localcluster env | sed -n 's/^export REGISTRY=//p')} && \
	$(PYTHON) hack/images build --registry "$$registry"

# --- Clean up ---

.PHONY: clean
clean: demo-down cluster-down ## Stop the clusters and remove everything that can be rebuilt from this checkout; the cache stays
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
