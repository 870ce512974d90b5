PYTHON ?= python3
BIN := .venv/bin

# The index that torch comes from; without one pip's own configuration counts. PyPI's build for Linux is CUDA's, several
# GB more than the CPU's: `make test TORCH_INDEX=https://download.pytorch.org/whl/cpu`.
TORCH_INDEX ?=

# The same numbers on every machine: no GPU unless the caller names one, no telemetry, a fixed hash seed.
export CUDA_VISIBLE_DEVICES ?=
export HF_HUB_DISABLE_TELEMETRY = 1
export PYTHONHASHSEED = 0
export TOKENIZERS_PARALLELISM = false

.PHONY: demo space test test-slow lint format benchmarks

demo: .venv/.installed  ## the whole recipe on drawn scenes, a few minutes on a CPU
	$(BIN)/python trainers/demo.py

PORT ?= 7860

space: .venv/.installed  ## the demo Space, with the model that `make demo` trained
	@test -e runs/demo/model/config.json || { echo "runs/demo/model: no model yet; run \`make demo\` first" >&2; exit 2; }
	$(BIN)/python spaces/app.py --model runs/demo/model --port $(PORT)

# Tiny models gain nothing from a second thread; a second worker halves the time.
WORKERS ?= 2

test: lint  ## what CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy modeling_cora

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: .venv/.installed
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

# The stamp is written last, so an interrupted installation starts again at the next `make`; an environment whose pip
# does not even answer is built anew. torch goes first and alone: while it resolves the other packages, pip may pick a
# CUDA build of another version.
.venv/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is not: make PYTHON=python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
