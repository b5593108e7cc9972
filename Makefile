# `make` alone prints the targets: the text behind two # signs on a target's line is what it prints.
PYTHON ?= python3
BIN := .venv/bin

FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test slow fuzz check docs proto clean ablation phantoms reports real bench gpu

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: .venv/installed ## install into .venv and run the whole path once (6 minutes after the install)
	$(BIN)/cxr demo

# Tests that watch the clock (marked alone) come after the others, one by one.
define TESTS
OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m 'not (slow or alone)'
$(BIN)/python -m pytest -m 'alone and not slow'
endef

# Needs no network. The variable turns off a notice about another version of mkdocs.
DOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

test: .venv/installed-dev ## install what the tests need and run them
	$(TESTS)

slow: .venv/installed-dev ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

fuzz: .venv/installed-dev ## broken images, reports and archives for FUZZ_SECONDS (60) each
	$(BIN)/python tests/fuzz/run.py image --seconds $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz/run.py text --seconds $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz/run.py archive --seconds $(FUZZ_SECONDS)

check: .venv/installed-dev ## what CI holds every change to: lint, format, types, import rules, documentation, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(DOCS)
	$(TESTS)

docs: .venv/installed-dev ## build the documentation into build/docs; a dead link ends it
	$(DOCS)

# Generated with the oldest protoc whose output runs on protobuf 4 to 6, so that it works beside any tritonclient.
proto: ## generate the stubs of the sidecar's protocol anew
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip install --quiet grpcio-tools==1.62.3 'setuptools<80'
	.venv-proto/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. contract/proto/retrieval.proto
	rm -rf .venv-proto

# Figures of docs/training.md. Each line is made once: an interrupted series goes on where it stopped.
RESULTS ?= results
REPORTS ?= ../shared/data/openi/NLMCXR_reports.tgz
NIH14 ?= ../shared/data/nih14
KERMANY ?= ../shared/data/kermany/chest_xray_224.tar
ROWS := bce focal contrastive queries dropout views
SEEDS := 0 1 2
CXR := $(BIN)/cxr
.PRECIOUS: $(RESULTS)/%/bundle/manifest.json $(RESULTS)/phantom.parquet $(RESULTS)/reports.parquet
.SECONDARY:

ablation: $(ROWS:%=$(RESULTS)/ablation/%/evaluated) ## draw 3,000 phantom studies, train the rows of the ablation, print the table (hours)
	$(CXR) train table $(ROWS:%=$(RESULTS)/ablation/%/bundle) --column 'image AUROC' --column 'two views AUROC' --column 'findings AUROC' \
		--column 'study AUROC' --column 'P@5 by image' --column 'report → image R@10'

phantoms: $(RESULTS)/phantoms/evaluated ## the same studies, the config that reads images best (hours)
	$(CXR) train table $(RESULTS)/phantoms/bundle

reports: $(SEEDS:%=$(RESULTS)/reports/%/evaluated) ## the real reports (REPORTS) on three splits, beside TF-IDF
	$(CXR) train table $(SEEDS:%=$(RESULTS)/reports/%/bundle)

real: $(foreach config,real-scratch real-nih,$(SEEDS:%=$(RESULTS)/real/$(config)/%/evaluated)) $(RESULTS)/real/elsewhere ## real radiographs (NIH14, KERMANY) beside controls of images (an hour)
	$(CXR) train table $(foreach config,real-scratch real-nih,$(SEEDS:%=$(RESULTS)/real/$(config)/%/bundle)) --column 'image AUROC' \
		--column 'pixels AUROC' --column 'HOG AUROC' --column 'AUROC - pixels' --column 'AUROC - HOG'

$(RESULTS)/phantom.parquet: | .venv/installed
	rm -rf $(RESULTS)/phantom && mkdir -p $(RESULTS)
	$(CXR) data draw $(RESULTS)/phantom --studies 3000 --seed 1
	$(CXR) data table $(RESULTS)/phantom --images $(RESULTS)/phantom --out $@

$(RESULTS)/cache/%: $(RESULTS)/phantom.parquet
	$(CXR) data cache $< --size $* --out $@

$(RESULTS)/reports.parquet: | .venv/installed
	mkdir -p $(RESULTS) && $(CXR) data table $(REPORTS) --out $@

$(RESULTS)/ablation/%/evaluated: $(RESULTS)/cache/112
	rm -rf $(@D)/bundle && $(CXR) train $(RESULTS)/phantom.parquet --config ablation/$* --cache $< --out $(@D)/bundle --resume
	$(CXR) evaluate $(RESULTS)/phantom.parquet --cache $< --bundle $(@D)/bundle && touch $@

$(RESULTS)/phantoms/evaluated: $(RESULTS)/cache/112
	rm -rf $(@D)/bundle && $(CXR) train $(RESULTS)/phantom.parquet --config phantoms --cache $< --out $(@D)/bundle --resume
	$(CXR) evaluate $(RESULTS)/phantom.parquet --cache $< --bundle $(@D)/bundle && touch $@

$(RESULTS)/reports/%/evaluated: $(RESULTS)/reports.parquet
	rm -rf $(@D)/bundle && $(CXR) train $< --config reports --seed $* --out $(@D)/bundle --resume
	$(CXR) evaluate $< --bundle $(@D)/bundle && touch $@

$(RESULTS)/real/kermany.parquet: | .venv/installed
	rm -rf $(@D)/kermany-images && mkdir -p $(@D)/kermany-images && tar -xf $(KERMANY) -C $(@D)/kermany-images
	$(CXR) data table $(@D)/kermany-images --format kermany --images $(@D)/kermany-images --out $@

$(RESULTS)/real/nih.parquet: | .venv/installed
	mkdir -p $(@D) && $(CXR) data table $(NIH14) --format nih14 --images $(NIH14)/images --out $@

$(RESULTS)/real/cache-%: $(RESULTS)/real/%.parquet
	$(CXR) data cache $< --size 112 --out $@

$(RESULTS)/real/kermany/evaluated: $(RESULTS)/real/cache-kermany
	rm -rf $(@D)/bundle && $(CXR) train $(RESULTS)/real/kermany.parquet --config real-kermany --cache $< --out $(@D)/bundle --resume
	$(CXR) evaluate $(RESULTS)/real/kermany.parquet --cache $< --bundle $(@D)/bundle && touch $@

$(RESULTS)/real/real-nih/%/evaluated: $(RESULTS)/real/cache-nih $(RESULTS)/real/kermany/evaluated
	rm -rf $(@D)/bundle && $(CXR) train $(RESULTS)/real/nih.parquet --config real-nih --from $(RESULTS)/real/kermany/bundle --seed $* --cache $< --out $(@D)/bundle --resume
	$(CXR) evaluate $(RESULTS)/real/nih.parquet --cache $< --bundle $(@D)/bundle && touch $@

$(RESULTS)/real/real-scratch/%/evaluated: $(RESULTS)/real/cache-nih
	rm -rf $(@D)/bundle && $(CXR) train $(RESULTS)/real/nih.parquet --config real-scratch --seed $* --cache $< --out $(@D)/bundle --resume
	$(CXR) evaluate $(RESULTS)/real/nih.parquet --cache $< --bundle $(@D)/bundle && touch $@

# Each model on the other collection, where the shortcuts of its own are of no use.
$(RESULTS)/real/elsewhere: $(RESULTS)/real/real-nih/0/evaluated
	$(CXR) evaluate $(RESULTS)/real/kermany.parquet --cache $(RESULTS)/real/cache-kermany --bundle $(<D)/bundle --external --out $(RESULTS)/real/nih-on-kermany
	$(CXR) evaluate $(RESULTS)/real/nih.parquet --cache $(RESULTS)/real/cache-nih --bundle $(RESULTS)/real/kermany/bundle --external --out $(RESULTS)/real/kermany-on-nih
	touch $@

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

# Figures of docs/benchmarks.md. Speed does not depend on what weights hold: the models train for one short epoch.
BENCH := $(RESULTS)/bench
BEST ?= --profile int8
SHORT := --set loop.epochs=1 --set loop.batch_size=8 --set loop.precision=fp32 --set weights.checkpointing=true

bench: $(foreach name,tiny/fp32 tiny/split tiny/fused base/fp32 base/fused,$(BENCH)/$(name)/.published.json) ## measure serving against its targets, with models of the published sizes (an hour)
	$(CXR) bench table $(BENCH)

$(BENCH)/studies.parquet: | .venv/installed
	rm -rf $(BENCH)/phantom && mkdir -p $(BENCH)
	$(CXR) data draw $(BENCH)/phantom --studies 60 --seed 3 --scale 1
	$(CXR) data table $(BENCH)/phantom --images $(BENCH)/phantom --out $@

$(BENCH)/%/bundle/manifest.json: $(BENCH)/studies.parquet
	rm -rf $(@D) && $(CXR) train $< --config $* $(SHORT) --out $(@D) --resume

$(BENCH)/%/fp32/.published.json: $(BENCH)/%/bundle/manifest.json
	$(CXR) export $(<D) --table $(BENCH)/studies.parquet --repository $(@D) --replace

$(BENCH)/%/split/.published.json: $(BENCH)/%/bundle/manifest.json
	$(CXR) export $(<D) --table $(BENCH)/studies.parquet --repository $(@D) --replace $(BEST)

$(BENCH)/%/fused/.published.json: $(BENCH)/%/bundle/manifest.json
	$(CXR) export $(<D) --table $(BENCH)/studies.parquet --repository $(@D) --replace $(BEST) --graphs fused

# No network, at most 8 minutes; the same again goes on where it stopped. WHEELS: a folder of packages that are missing.
GPU_OUT ?= $(RESULTS)/gpu
GPU ?=

gpu: ## measure one NVIDIA GPU (8 minutes; GPU='--device cpu --size demo' tries it without one)
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.gpu $(GPU_OUT) $(GPU) $(if $(WHEELS),--wheels $(WHEELS))
