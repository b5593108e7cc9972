# `make` alone prints the targets: the text behind two # signs on a target's line is what it prints.
PYTHON ?= python3
BIN := .venv/bin

FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test slow fuzz check audit sbom docs proto clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed ## install into .venv and run the whole path once (6 to 11 minutes after the install)
	$(BIN)/cxr demo

# Tests that watch the clock (marked alone) come after the others, one by one. Only the files that hold them are read.
# Both runs find the models that the first of them made.
define TESTS
rm -rf build/made-once
OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ONCE) -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m 'not (slow or alone)'
$(BIN)/python -m pytest $(ONCE) -m 'alone and not slow' $$(grep -rl --include='test_*.py' 'mark\.alone' tests)
endef
ONCE := --made-once=build/made-once

# Needs no network. The variable turns off a notice about another version of mkdocs.
DOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

test: .venv/installed-dev ## install what the tests need and run them
	$(TESTS)

slow: .venv/installed-dev ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

fuzz: .venv/installed-dev ## read broken images, reports and archives, FUZZ_SECONDS (60) of each
	$(BIN)/python tests/fuzz/run.py image --seconds $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz/run.py text --seconds $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz/run.py archive --seconds $(FUZZ_SECONDS)

check: .venv/installed-dev ## run what every change must pass: lint, format, types, import rules, documentation, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(DOCS)
	$(TESTS)

# Tests hold hashes and false secrets on purpose. A secretName is the name of an object in Kubernetes.
audit: .venv/installed-audit ## look for secrets in the files, and for known holes in the installed packages (needs a network)
	git ls-files -z | grep -zEv '^tests/|_pb2' | xargs -0 $(BIN)/detect-secrets-hook --no-verify --exclude-lines 'secretName:'
	$(BIN)/pip-audit --skip-editable

sbom: .venv/installed-audit ## write the installed packages into build/sbom.json (CycloneDX)
	mkdir -p build
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-format JSON --output-file build/sbom.json $(BIN)/python

docs: .venv/installed-dev ## build the documentation into build/docs; a dead link ends it
	$(DOCS)

# Generated with the oldest protoc whose output runs on protobuf 4 to 6, so that it works beside any tritonclient.
proto: ## generate the stubs of the sidecar's protocol anew
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip install --quiet grpcio-tools==1.62.3 'setuptools<80'
	.venv-proto/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. contract/proto/retrieval.proto
	rm -rf .venv-proto

clean: ## remove .venv, demo-output and what builds leave
	rm -rf .venv demo-output build dist *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Python 3.11 or newer is needed; set PYTHON=python3.x.'; exit 2; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo 'Install the venv module first: apt-get install python3-venv'; exit 2; }
	@$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: pyproject.toml | .venv/bin/python
	@echo 'Installing into .venv (PyTorch, ONNX Runtime, Triton, FAISS: several GB, a few minutes) ...'
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	@echo 'Installing into .venv with the tools for tests ...'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ .venv/installed

.venv/installed-audit: .venv/installed-dev
	$(BIN)/python -m pip install --quiet 'pip-audit>=2.7' 'cyclonedx-bom>=6' 'detect-secrets>=1.5'
	@touch $@

# The targets that make the figures of the documentation.
include results.mk
