# Everything starts here: `make demo` and `make test` set up what they need.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long lint bench docs synthetic results reproduce figures clean

BIN := .venv/bin
STAMP := .venv/.set-up
OUT ?= demo
PYTEST_ARGS ?=
RECORDINGS ?= $(or $(MM3DAD_DATA),../shared/data)
SYNTHETIC ?= data/synthetic
ROAD ?= $(RECORDINGS)/road_stereo
TIRE ?= $(RECORDINGS)/mvtec3d_rgb
RESULTS ?= results
BACKBONE ?= published
DEVICE ?= cpu
PART ?=
BENCH_ARGS ?=
BUDGET ?= 120

help:
	@echo 'make demo       make synthetic parts, find their defects, write a report to $(OUT)/ (OUT=folder for another place)'
	@echo 'make test       check the code and run the tests (PYTEST_ARGS="-k bank" for some of them)'
	@echo 'make test-long  fuzz, kill and soak for BUDGET=120 minutes, write docs/reliability.md'
	@echo 'make lint       check the code only'
	@echo 'make results    evaluate all methods on synthetic parts, road and tire, write docs/results.md (PART="--methods duet,rad" for some)'
	@echo 'make reproduce  MVTEC=DIR EYECANDIES=DIR: the published protocol on the real data sets (BACKBONE=default: embedded weights)'
	@echo 'make figures    draw the pictures of docs/methods'
	@echo 'make bench      measure speed beside public peers, write docs/benchmarks.md (BENCH_ARGS="--rows aupro" for some rows)'
	@echo 'make docs       build the documentation with the reference into site/'
	@echo 'make setup      create .venv with all libraries and the mm3dad command; demo and test do it themselves'
	@echo 'make clean      remove $(OUT)/ and caches; .venv stays'

setup: $(STAMP)

# In .venv, so that a deleted environment is set up again.
$(STAMP): setup.py pyproject.toml constraints.txt constraints.lock scripts/setup.sh scripts/lock.py $(wildcard extensions/*.py extensions/csrc/*)
	@bash scripts/setup.sh
	@touch $@

demo: $(STAMP)
	@$(BIN)/mm3dad demo --out $(OUT)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

# Two workers with one thread each: torch's own threads on top of two workers are slower on two cores.
# --dist loadscope keeps a file's fixtures in one worker, so that a fitted model is fitted once.
test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope $(PYTEST_ARGS)

# Within the budget, whatever it is; what was reached stands on the page.
test-long: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.long --budget $(BUDGET)

# The peers are no dependencies: they come here, and only here. By name and not as '.[bench]', since the package itself is built without
# build isolation and some peers need theirs.
bench: $(STAMP)
	@$(BIN)/python scripts/list_extra.py bench > .venv/bench.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r .venv/bench.txt
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: $(STAMP)
	@$(BIN)/python scripts/list_extra.py docs > .venv/docs.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r .venv/docs.txt
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo 'pages: site/index.html'

# Makes the synthetic parts, or completes them.
synthetic: $(STAMP)
	@$(BIN)/mm3dad prepare synthetic --out $(SYNTHETIC)

# Both go on where they were interrupted; RESULTS=folder keeps runs and features.
results: synthetic
	@$(BIN)/python -m benchmarks.results --synthetic $(SYNTHETIC) --road $(ROAD) --tire $(TIRE) --out $(RESULTS) --device $(DEVICE) $(PART)

reproduce: $(STAMP)
	@$(BIN)/python -m benchmarks.reproduce $(if $(MVTEC),--mvtec3d $(MVTEC)) $(if $(EYECANDIES),--eyecandies $(EYECANDIES)) \
		--backbone $(BACKBONE) --out $(RESULTS) --device $(DEVICE) $(PART)

figures: synthetic
	@$(BIN)/python -m benchmarks.figures --root $(SYNTHETIC)

clean:
	@rm -rf $(OUT) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find mm3dad tests -name __pycache__ -prune -exec rm -rf {} +
