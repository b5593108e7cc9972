# The figures of docs/training.md, docs/evaluation.md and docs/benchmarks.md, each from one command. `make` lists them.
# RESULTS is where models and tables go. Each is made once, so an interrupted series continues.
.PHONY: ablation phantoms reports real bench bench-retrieval chaos gpu

RESULTS ?= results
REPORTS ?= ../shared/data/openi/NLMCXR_reports.tgz
NIH14 ?= ../shared/data/nih14
KERMANY ?= ../shared/data/kermany/chest_xray_224.tar
ROWS := bce focal contrastive queries dropout views
SEEDS := 0 1 2
CXR := $(BIN)/cxr
.PRECIOUS: $(RESULTS)/%/bundle/manifest.json $(RESULTS)/phantom.parquet $(RESULTS)/reports.parquet
.SECONDARY:

ablation: $(ROWS:%=$(RESULTS)/ablation/%/evaluated) ## train every row of the ablation on 3,000 phantom studies and print the table (hours)
	$(CXR) train table $(ROWS:%=$(RESULTS)/ablation/%/bundle) --column 'image AUROC' --column 'two views AUROC' --column 'findings AUROC' \
		--column 'study AUROC' --column 'P@5 by image' --column 'report → image R@10'

phantoms: $(RESULTS)/phantoms/evaluated $(RESULTS)/phantoms-fusion/evaluated ## train the configs phantoms and phantoms-fusion on the same studies, with images (an hour)
	$(CXR) train table $(RESULTS)/phantoms/bundle $(RESULTS)/phantoms-fusion/bundle

reports: $(SEEDS:%=$(RESULTS)/reports/%/evaluated) ## train on the real reports (REPORTS), three splits, beside TF-IDF (an hour)
	$(CXR) train table $(SEEDS:%=$(RESULTS)/reports/%/bundle)

real: $(foreach config,real-scratch real-nih,$(SEEDS:%=$(RESULTS)/real/$(config)/%/evaluated)) $(RESULTS)/real/elsewhere ## train on real radiographs (NIH14, KERMANY), beside controls of images (hours)
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

$(RESULTS)/phantoms-fusion/evaluated: $(RESULTS)/phantoms/evaluated
	rm -rf $(@D)/bundle && $(CXR) train $(RESULTS)/phantom.parquet --config phantoms-fusion --from $(<D)/bundle --cache $(RESULTS)/cache/112 --out $(@D)/bundle --resume
	$(CXR) evaluate $(RESULTS)/phantom.parquet --cache $(RESULTS)/cache/112 --bundle $(@D)/bundle && touch $@

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

# Figures of docs/benchmarks.md. Speed does not depend on what weights hold: the models train for one short epoch.
BENCH := $(RESULTS)/bench
BEST ?= --profile int8
SHORT := --set loop.epochs=1 --set loop.batch_size=8 --set loop.precision=fp32 --set weights.checkpointing=true

bench: $(foreach name,tiny/fp32 tiny/split tiny/fused published/fp32 published/fused,$(BENCH)/$(name)/.published.json) ## measure serving against its targets, with models of the published sizes (an hour)
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

CASES ?= 100000

bench-retrieval: | .venv/installed ## measure the sidecar against raw FAISS and the disk (CASES=100000; 10 minutes)
	$(CXR) bench retrieval $(RESULTS)/retrieval --cases $(CASES)

MINUTES ?= 0

chaos: $(BENCH)/demo/fp32/.published.json ## kill, stop, fill, cut and overload a server while clients check it (MINUTES=60 repeats)
	$(CXR) bench soak $(<D) --bundle $(BENCH)/demo/bundle --minutes $(MINUTES) --out $(RESULTS)/chaos

# No network, at most 8 minutes; the same again goes on where it stopped. WHEELS: a folder of packages that are missing.
GPU_OUT ?= $(RESULTS)/gpu
GPU ?=

gpu: ## measure one NVIDIA GPU (8 minutes; GPU='--device cpu --size demo' tries it without one)
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.gpu $(GPU_OUT) $(GPU) $(if $(WHEELS),--wheels $(WHEELS))
