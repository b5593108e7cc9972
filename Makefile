# make demo   install into .venv and run the whole path once
# make test   install what the tests need and run them
# make fuzz   hostile images, reports and archives for FUZZ_SECONDS (60) each
# make check  what CI holds every change to: lint, format, types, import rules, tests
PYTHON ?= python3
BIN := .venv/bin

FUZZ_SECONDS ?= 60

.PHONY: demo test slow fuzz check proto clean

demo: .venv/installed
	$(BIN)/cxr demo

test: .venv/installed-dev
	$(BIN)/python -m pytest

slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

fuzz: .venv/installed-dev
	$(BIN)/python tests/fuzz/run.py image --seconds $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz/run.py text --seconds $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz/run.py archive --seconds $(FUZZ_SECONDS)

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

# Generated with the oldest protoc whose output runs on protobuf 4 to 6, so that it works beside any tritonclient.
proto:
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip install --quiet grpcio-tools==1.62.3 'setuptools<80'
	.venv-proto/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. contract/proto/retrieval.proto
	rm -rf .venv-proto

clean:
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
