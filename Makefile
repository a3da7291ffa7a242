# The project's commands. Each sets up what it needs: a fresh machine needs Python 3.11 to 3.13 and make.
.DEFAULT_GOAL := help
.PHONY: help venv format check lint unit unit-trainer unit-operator unit-system test demo crds docs docs-site lock intel benchmark bench bench-gpu images cluster-up cluster-down clean

# Python keeps what it compiles, whatever the environment says: to compile torch and transformers takes each process seconds.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/finetune-operator
MODELS := $(CACHE)/models
SLICE = $(shell git rev-list --count HEAD 2>/dev/null || echo 0)
QUICK := env HYPOTHESIS_EXAMPLES=30 SLICE=$(SLICE) $(BIN)/pytest -q -m 'not slow and not cluster and not benchmark'
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/ready ## Make the virtual environment, from hash-locked requirements

$(VENV)/ready: requirements/bootstrap.txt requirements/dev.txt requirements/torch-cpu.txt requirements/torch-pypi.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@$(BIN)/python requirements/install_torch.py
	$(UV) --require-hashes -r requirements/dev.txt
	$(UV) --no-build-isolation --editable .
	touch $@

format: venv ## Format the code and fix what ruff can fix
	$(BIN)/ruff format --quiet
	$(BIN)/ruff check --quiet --fix

check: venv ## Format, lint, types, layers and a slice of the quick tests, in about a minute and a half
	@$(MAKE) --no-print-directory -j 4 --output-sync=target lint unit-trainer unit-operator unit-system

lint: venv ## Format, lint, types and layers
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo | tail -n 2

unit: venv ## All quick tests, in three minutes
	@$(MAKE) --no-print-directory -j 4 --output-sync=target SLICE= unit-trainer unit-operator unit-system

# Only these import torch: by one process, as that takes each process seconds, and on one thread, as others run beside it. They take
# longest, so the others give way to them.
unit-trainer: venv
	OMP_NUM_THREADS=1 $(QUICK) tests/trainer

unit-operator: venv
	nice $(QUICK) tests/unit tests/packaging --numprocesses 2 --dist loadfile

# They mostly wait for each other's answers.
unit-system: venv
	nice $(QUICK) tests/system --numprocesses 4

test: venv ## Lint, all tests, and the end-to-end tests on a real cluster; tells how far it is
	$(BIN)/python -m tests.run

demo: venv ## Finetune a small real model here, from the manifest that kubectl would apply
	@$(BIN)/python examples/fetch_smollm2.py --output $(MODELS)/SmolLM2-135M-Instruct
	$(BIN)/finetune run --local -f config_samples/finetunejobs/demo.yaml --claim models=$(MODELS)

crds: venv ## Render the CRD from the models
	$(BIN)/python -m finetune_operator.api.crd crds/finetunejob.yaml charts/finetune-operator/files/finetunejob.yaml

docs: venv ## Render the reference and the pictures from the code
	$(BIN)/python -m finetune_operator.api.docs docs/reference
	$(BIN)/python docs/tools/messages.py docs/reference/messages.md
	$(BIN)/python docs/tools/llm_on_ray.py docs/reference/llm-on-ray.md
	$(BIN)/python docs/tools/pictures.py docs/pictures
	$(BIN)/python docs/tools/estimates.py docs/performance.md

# An environment of its own: what makes the site shares no versions with what is tested.
SITE := build/site-venv
docs-site: venv ## Make the documents a site, build/site; a link that leads nowhere is an error
	test -x $(SITE)/bin/python || $(PYTHON) -m venv --without-pip $(SITE)
	$(BIN)/uv pip sync --quiet --python $(SITE)/bin/python --require-hashes requirements/docs.txt
	$(BIN)/python docs/tools/lay_out.py build/pages
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/python -m mkdocs build --quiet

fuzz: venv ## Compare 20,000 generated jobs, and 5,000 round trips, with a real API server
	FUZZ_OBJECTS=10000 ROUND_TRIP_OBJECTS=5000 $(BIN)/pytest -s tests/api/test_fuzz.py tests/api/test_round_trip.py

images: venv ## Build both images and load them into the cluster of the end-to-end tests
	tests/cluster/cluster images

cluster-up: ## Start the cluster of the end-to-end tests; the last line is its KUBECONFIG
	tests/cluster/cluster up

cluster-down: ## Stop it
	tests/cluster/cluster down

benchmark: venv ## Compare with KubeRay's RayJob on the same cluster; writes docs/benchmarks
	$(BIN)/pytest -m benchmark tests/benchmarks -s

# An environment of its own: peers are never a dependency. What they share with the trainer, as torch, they take from its environment.
PEERS_VENV := build/peers-venv
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
bench: venv ## Finetune here on the CPU beside the HF Trainer, TRL and llm-on-ray's way, in 12 minutes; writes docs/benchmarks
	@$(BIN)/python examples/fetch_smollm2.py
	test -x $(PEERS_VENV)/bin/python || $(BIN)/python -m venv --without-pip $(PEERS_VENV)
	$(BIN)/uv pip sync --quiet --python $(PEERS_VENV)/bin/python --require-hashes requirements/peers-cpu.txt
	@echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > "$$($(PEERS_VENV)/bin/python $(PURELIB))/shared.pth"
	PYTHONPATH=operator:trainer_image:. $(BIN)/python -m tests.benchmarks.cpu_bench docs/benchmarks/cpu_step.json --peers $(PEERS_VENV)/bin/python $(BENCH)

# Not in the environment of the tests, which has torch for CPUs: PYTHON has torch for CUDA, and requirements/peers.in.
PEERS ?= all:8b-lora:logn:8192
bench-gpu: ## Compare with the trainers of transformers and TRL on one GPU, as PEERS says
	PYTHONPATH=operator:trainer_image:. $(PYTHON) -m tests.benchmarks.gpu_peers $(PEERS)

# The locks are the same wherever they are made: for all these platforms and versions of Python, each of which is tried.
PLATFORMS := x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin
PYTHONS := 3.11 3.12 3.13
LOCKED := $(foreach name,bootstrap torch-pypi operator trainer dev docs,-r requirements/$(name).txt)
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'
# torch's builds for the CPU and for CUDA differ in the CUDA libraries alone: torch and these stay out of the other locks.
TORCH := -c requirements/torch-pypi.txt $$(grep -oE '^(cuda|nvidia|torch|triton)[^=]*' requirements/torch-pypi.txt | sed 's/^/--no-emit-package /')

lock: venv ## Lock all requirements anew, with hashes
	$(LOCK) requirements/bootstrap.in -o requirements/bootstrap.txt
	$(LOCK) requirements/go.in -o requirements/go.txt
	$(LOCK) -c requirements/trainer.txt requirements/torch.in -o requirements/torch-pypi.txt
	$(LOCK) --extra operator pyproject.toml -o requirements/operator.txt
	$(LOCK) $(TORCH) --extra trainer pyproject.toml -o requirements/trainer.txt
	$(LOCK) $(TORCH) -c requirements/operator.txt -c requirements/trainer.txt --extra operator --extra trainer --extra dev pyproject.toml -o requirements/dev.txt
	$(LOCK) -c requirements/dev.txt requirements/docs.in -o requirements/docs.txt
	$(LOCK) --no-deps requirements/peers-cpu.in -o requirements/peers-cpu.txt
	$(LOCK) -c requirements/trainer.txt --extra trainer --extra intel --extra dev pyproject.toml -o requirements/intel.txt
	for platform in $(PLATFORMS); do for version in $(PYTHONS); do \
	  MACOSX_DEPLOYMENT_TARGET=14.0 $(UV) --dry-run --target build/locked --python-platform $$platform --python-version $$version \
	    --only-binary :all: --require-hashes $(LOCKED) || exit 1; done; done

# torch 2.8 for the CPU alone is not on the main package index: the build for CUDA, 3 GB, is installed, which runs on a CPU.
INTEL := build/intel-venv
intel: venv ## Run the trainer's tests with torch 2.8 and Intel's extension; downloads 3 GB
	test -x $(INTEL)/bin/python || $(PYTHON) -m venv --without-pip $(INTEL)
	$(BIN)/uv pip sync --quiet --python $(INTEL)/bin/python --require-hashes requirements/intel.txt
	PYTHONPATH=trainer_image:operator $(INTEL)/bin/python -m pytest -q -m 'not slow' $(addprefix tests/trainer/test_,intel.py training.py families.py checkpoints.py)

clean: ## Remove what was built here, but not the caches of the user
	rm -rf $(VENV) build dist finetune-output .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
