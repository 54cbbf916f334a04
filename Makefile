# Every target makes its own environment on a fresh machine: Python 3.11 or newer is all it needs.
PYTHON ?= python3
TORCH ?= 2.13.0
VENV := .venv$(if $(filter-out 2.13.0,$(TORCH)),-$(TORCH))
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Beside `make bench`: what needs a GPU (two), an hour (reproduce, executed) or half a day (grid); and exams
# on inputs that nobody here wrote (--data, or PENSTOCK_DATA).
ALONE := benchmarks/gpu.py benchmarks/gpu_prediction.py benchmarks/reproduce.py benchmarks/grid.py \
	benchmarks/executed.py
EXAMS := benchmarks/chains.py benchmarks/g10.py benchmarks/harmony.py benchmarks/offsets.py

.PHONY: test demo test-gpu bench bench-prediction bench-grid bench-executed exams reproduce clean

# The tests' tensors are small: workers with one thread each are faster than one with more. Three on
# two cores: tests also wait, for disks and for other processes.
test: $(READY)
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist worksteal

demo: $(READY)
	$(BIN)/python examples/demo.py

test-gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py

# All of them, also after one that failed.
each = failed=0; for each in $(1); do echo "== $$each"; $(BIN)/python $$each || failed=1; done; exit $$failed

bench: $(READY)
	$(call each,$(filter-out $(ALONE) $(EXAMS),$(wildcard benchmarks/[!_]*.py)))

exams: $(READY)
	$(call each,$(EXAMS))

bench-prediction: $(READY)
	$(BIN)/python benchmarks/prediction.py

bench-executed: $(READY)
	$(BIN)/python benchmarks/executed.py --json benchmarks/results/executed-cpu.json

bench-grid: $(READY)
	$(BIN)/python benchmarks/grid.py

reproduce: $(READY)
	$(BIN)/python benchmarks/reproduce.py

# Torch first and alone, so that a failed download of the largest part is seen as what it is.
# Of what is installed little is imported: Python compiles that then, once, wherever it may write.
export PYTHONDONTWRITEBYTECODE :=
# The versions to install: another torch asks for another setuptools.
PINS := sed -e 's/^torch==.*/torch==$(TORCH)/' $(if $(filter-out 2.13.0,$(TORCH)),-e '/^setuptools==/d')
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PINS) constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -q --no-compile torch==$(TORCH) -c $(VENV)/constraints.txt
	$(BIN)/python -m pip install -q --no-compile -e '.[test]' -c $(VENV)/constraints.txt
	touch $@

clean:
	rm -rf .venv* out dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
