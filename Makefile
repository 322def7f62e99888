# Everything here sets itself up: a virtual environment of its own with the versions of requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KEDRO := $(BIN)/kedro
ARGS ?=

.PHONY: help run smoke test test-unit test-slow lint viz benchmark truth readouts goals ideas bench-sampling bench-speed bench-tuning faults lock clean

help:
	@echo "make run        collect episodes, train, extract a policy, evaluate it (ARGS='--params dataset.task=reach-v3')"
	@echo "make smoke      the same in seconds, to see that everything works"
	@echo "make test       all tests but the slow ones"
	@echo "make test-unit  the tests that do not run kedro"
	@echo "make test-slow  training killed at ten random moments, and other tests that take minutes"
	@echo "make lint       style, types and import contracts"
	@echo "make viz        the pipeline in kedro-viz, in a browser"
	@echo "make benchmark  the table of docs/benchmarks.md: CVL, BC and IQL on four tasks, three seeds (about an hour)"
	@echo "make truth      losses and readouts against exact values on finite MDPs (docs/truth.md, minutes)"
	@echo "make readouts   readouts at equal cost: error and microseconds a query (docs/truth.md, minutes)"
	@echo "make goals      one dynamics model, eight goals (docs/benchmarks.md, minutes)"
	@echo "make ideas      the effect of each idea for better action values (docs/tuning.md, hours)"
	@echo "make bench-sampling  segments per second from logs of 10^5 to 10^8 transitions (minutes, 12 GB of disk)"
	@echo "make bench-speed     training steps per second beside JAX and other libraries (half an hour; 5 GB in .venv-peers)"
	@echo "make bench-tuning    a study of 30 trials, then its best parameters beside the defaults (docs/studies.md, 40 minutes)"
	@echo "make faults     hundreds of faults in all stages, and what follows each (docs/reliability.md, 15 minutes)"
	@echo "make lock       rewrite requirements.lock with the newest versions that fit pyproject.toml"
	@echo "make clean      remove the virtual environment and caches; data stays"

# Installed again when, and only when, the lock or the package's metadata change.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit( \
		f"requirements.lock needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}; choose one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@# The tables of D4RL's datasets and scores; its own requirements (gym, mujoco_py) are of no use here.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps d4rl==1.1
	@touch $@

run: $(VENV)/installed
	$(KEDRO) run $(ARGS)

smoke: $(VENV)/installed
	$(KEDRO) run --env smoke $(ARGS)

# By file: what a file's tests share is made once.
test: $(VENV)/installed
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

test-unit: $(VENV)/installed
	$(BIN)/pytest -m "not integration and not slow" $(ARGS)

test-slow: $(VENV)/installed
	$(BIN)/pytest -m slow $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

viz: $(VENV)/installed
	$(KEDRO) viz run $(ARGS)

benchmark: $(VENV)/installed
	$(BIN)/python -m benchmarks.success $(ARGS)

truth readouts goals ideas: $(VENV)/installed
	$(BIN)/python -m benchmarks.$@ $(ARGS)

bench-tuning: $(VENV)/installed
	$(BIN)/python -m benchmarks.tuning $(ARGS)

# One thread: the arrays of a batch are too small to share.
bench-sampling: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.sampling $(ARGS)

bench-speed: $(VENV)/installed
	$(BIN)/python -m benchmarks.speed $(ARGS)

# One thread: a process with several cannot be forked.
faults: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(ARGS)

# One torch version for everyone: pip finds each platform's build of it.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 setuptools ".[metaworld,robotics,minari,s3,tuning,viz,dev]"
	( sed -n '/^#/p' requirements.lock; .venv-lock/bin/pip freeze --all --exclude cvl-pipeline --exclude pip \
		| sed -e 's/+cpu$$//' -e 's/^pgserver==.*/&; python_version < "3.13"/' ) > .venv-lock/requirements.lock
	mv .venv-lock/requirements.lock requirements.lock
	rm -rf .venv-lock build

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
