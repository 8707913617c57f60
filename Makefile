# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set themselves up.
SHELL := /bin/bash
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo
INSTALL_SLURM := DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends munge slurm-wlm
TOY := -c configs/data/toy.yaml -c configs/trainer/cpu.yaml

.PHONY: help setup demo test test-slow test-pages test-slurm test-minimum golden bench lint typecheck docs format toy-clip toy-table toy-ablation light-grid clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

setup: $(VENV)/.installed ## virtual environment in .venv with ovsl and its tools

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ovsl needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -e '.[dev,export]'
	touch $@

demo: setup ## train on the seen classes of the toy world, test on all of them, beside a training-free method
	@echo "== 1/4 train the patch-text baseline on the seen classes of the toy world"
	$(BIN)/ovsl fit -c configs/methods/patch_text.yaml $(TOY) --run_dir $(DEMO)/patch_text
	@echo "== 2/4 test it on all classes"
	$(BIN)/ovsl test -c $(DEMO)/patch_text/config.yaml
	@echo "== 3/4 test MaskCLIP, which trains nothing"
	$(BIN)/ovsl test -c configs/methods/maskclip.yaml $(TOY) --run_dir $(DEMO)/maskclip
	@echo "== 4/4 one table of both"
	@$(BIN)/ovsl report $(DEMO) --stage test --chart $(DEMO)/per-class-iou.png
	@echo "pictures     $(DEMO)/*/pictures/test-toy.png"
	@echo "checkpoint   $(DEMO)/patch_text/checkpoints/last.ckpt"
	@echo "TensorBoard  $(BIN)/tensorboard --logdir $(DEMO)"

test: setup ## the test suite (without the slow ones)
	$(BIN)/python -m pytest -n auto -m "not slow and not gpu and not slurm" $(PYTEST)

test-slow: setup ## tests that take minutes
	$(BIN)/python -m pytest -m slow $(PYTEST)

test-pages: setup ## tests of the pages in a headless Chromium, where there is one
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	$(BIN)/python -m pytest tests/demo tests/results $(PYTEST)

test-slurm: setup ## tests in a private SLURM of two nodes on this machine; installs it from Debian where it can
	@command -v slurmctld >/dev/null || [ -x /usr/sbin/slurmctld ] || $(INSTALL_SLURM) || \
		{ apt-get update && $(INSTALL_SLURM); } || echo "install munge and slurm-wlm first: the tests are skipped"
	$(BIN)/python -m pytest tests/cluster -m slurm $(PYTEST)

golden: setup ## golden cases alone, also those in the folder OVSL_GOLDEN; PYTEST="-k zegclip" selects
	$(BIN)/python -m pytest tests/golden -rA --no-header -q -s $(PYTEST)

bench: setup ## forms before against forms of the package, in one table with the machine (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python experiments/benchmarks/run.py

test-minimum: ## the test suite with the oldest versions that pyproject.toml allows, in .venv-minimum
	$(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python tests/minimum_versions.py > .venv-minimum/oldest.txt
	.venv-minimum/bin/python -m pip install --quiet -c .venv-minimum/oldest.txt -e '.[dev]'
	.venv-minimum/bin/python -m pytest -n auto -m "not slow and not gpu and not slurm" $(PYTEST)

lint: setup ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: setup ## mypy
	$(BIN)/mypy

docs: setup ## the documentation in build/site; warnings and dead links are errors
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: setup ## let ruff format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

toy-clip: setup ## train the two toy CLIPs again (half an hour on 2 cores) and put them in ovsl/clip/toy
	OMP_NUM_THREADS=2 $(BIN)/python -m ovsl.pretraining fit -c configs/clip/toy_vit.yaml
	OMP_NUM_THREADS=2 $(BIN)/python -m ovsl.pretraining fit -c configs/clip/toy_convnext.yaml
	install -m 644 runs/toy_clip/toy_*.json runs/toy_clip/toy_*.safetensors ovsl/clip/toy/

toy-table: setup ## every method on the toy world, three seeds each, as docs/toy_table.md (hours on 2 cores)
	$(BIN)/ovsl study experiments/toy/study.yaml

toy-ablation: setup ## the ablation of ZegCLIP on the toy world, three seeds, as docs/zegclip_*.md (hours)
	PATH="$(abspath $(BIN)):$$PATH" ovsl study experiments/zegclip/toy_ablation/study.yaml

light-grid: setup ## the grid of light backbones on the toy world and on CamVid, as docs/light_grid_*.md (hours)
	$(BIN)/ovsl study experiments/clip_lightweight/study_toy.yaml
	$(BIN)/ovsl study experiments/clip_lightweight/study_camvid.yaml

clean: ## remove the environment and caches, keep runs
	rm -rf $(VENV) .venv-minimum .mypy_cache .ruff_cache .pytest_cache
