# Every target first installs the versions of requirements.lock into a virtual environment: what a run needs for the
# targets of a first hour, and everything for the others.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extras of pyproject.toml that run, smoke, viz and suite install; the docs name those of other commands.
EXTRAS ?= metaworld,robotics,suites,tuning,videos,viz
# uv installs faster than pip. UV= takes pip although there is uv.
UV ?= $(shell command -v uv)
# Modules are compiled at their first import: most never are.
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/pip install --disable-pip-version-check --no-compile)
# PyPI's build of PyTorch for Linux brings several GB of CUDA, so machines without an NVIDIA driver take the one for CPUs.
DEVICE ?= $(shell test "$$(uname)" = Linux && ! command -v nvidia-smi > /dev/null && echo cpu || echo cuda)
CPU_TORCH = $(if $(UV),--torch-backend cpu,--index-url https://download.pytorch.org/whl/cpu)
TORCH_FROM_PYPI := echo "PyTorch's own index cannot be used; PyPI's build is installed instead."
KEDRO := $(BIN)/kedro
VENV_DOCS := .venv-docs
# What README and docs link to.
PAGES := LICENSE '*.md' '*.ipynb' '*.png' '*.svg' '*.webp' '*.css' examples 'src/*.py' tests/test_examples.py \
	benchmarks/results/deploy.json benchmarks/results/deploy_success.json benchmarks/results/judging.json
ARGS ?=

.PHONY: help run smoke test test-unit test-slow lint viz docs notebooks benchmark baselines suite rivals truth truth-simulators truth-methods readouts goals ideas judging bench-sampling bench-reading bench-large-log bench-speed bench-gpu bench-tuning bench-deploy bench-door faults wheel lock clean

help:
	@echo "make run        the whole pipeline: collect, train, evaluate (ARGS='--params dataset.task=reach-v3')"
	@echo "make smoke      the same, much smaller, to check the installation (under a minute)"
	@echo "make test       all tests except the slow ones"
	@echo "make test-unit  tests that do not run kedro"
	@echo "make test-slow  tests that take minutes, such as training that is killed at random times"
	@echo "make lint       check style, types and import contracts"
	@echo "make viz        open the pipeline in Kedro-Viz in a browser"
	@echo "make docs       README and docs as a site, in build/site"
	@echo "make notebooks  run the notebooks and write them with their outputs (minutes; ARGS=quick_start: one)"
	@echo "make benchmark  CVL, BC and IQL on four tasks with three seeds (docs/benchmarks.md, about an hour)"
	@echo "make baselines  all methods on one task (15 minutes with two cores)"
	@echo "make suite      five methods on two tasks, in minutes (docs/suites.md)"
	@echo "make rivals     all methods on six tasks and six kinds of data (docs/benchmarks.md, long; run it again to go on)"
	@echo "make truth      compare values with exact ones in random MDPs and linear worlds (docs/truth.md, 15 minutes)"
	@echo "make truth-simulators  compare critics with returns of tried actions in Meta-World and a maze (25 minutes)"
	@echo "make truth-methods  the same worlds and tasks for all methods that learn Q, logs of 10^3 to 10^6 (hours; run it again to go on)"
	@echo "make readouts   error of readouts at equal cost per query (docs/truth.md, minutes)"
	@echo "make judging    order policies from the log alone, compare with true values (docs/deploy.md, minutes)"
	@echo "make goals      one dynamics model, eight goals (docs/benchmarks.md, minutes)"
	@echo "make ideas      the effect of each idea for better action values (docs/tuning.md, hours)"
	@echo "make bench-sampling  segments per second from 10^5 to 10^8 transitions (minutes, 12 GB of disk)"
	@echo "make bench-reading   memory and rows per second of every source that reads a log (half an hour, 12 GB of disk)"
	@echo "make bench-large-log training steps per second with a log in a mapped file (minutes, 6 GB of disk with a GPU)"
	@echo "make bench-speed     training steps per second, compared with JAX and other libraries (half an hour, 5 GB in .venv-peers)"
	@echo "make bench-gpu       the same on a GPU, beside JAX (less than eight minutes)"
	@echo "make bench-tuning    a study of 30 trials; compare its best parameters with the defaults (docs/studies.md, 40 minutes)"
	@echo "make bench-deploy    exported policies beside torch, and served by MLServer (docs/deploy.md, less than ten minutes)"
	@echo "make bench-door      an exported policy in an environment without torch: the same success (docs/deploy.md, minutes)"
	@echo "make faults     inject hundreds of faults in all stages and check the outcomes (docs/reliability.md, 15 minutes)"
	@echo "make wheel      build the package into dist/ and check it"
	@echo "make lock       update requirements.lock to the newest versions that pyproject.toml allows"
	@echo "make clean      delete the virtual environment and caches, but no data"

# Reinstalled if requirements.lock or pyproject.toml changes. What cannot be had from PyTorch's index comes from PyPI.
$(VENV)/installed-to-run: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit( \
		f"requirements.lock needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}; choose one: make PYTHON=python3.11 ...")'
	@echo "Installing into $(VENV) what a run needs; this takes a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --quiet "$$(grep '^setuptools==' requirements.lock)"
ifeq ($(DEVICE),cpu)
	@echo "PyTorch is its build for CPUs, because there is no NVIDIA driver. For a GPU: make clean, then make DEVICE=cuda ..."
	$(INSTALL) --no-deps $(CPU_TORCH) "$$(grep '^torch==' requirements.lock)" || $(TORCH_FROM_PYPI)
endif
	$(INSTALL) --no-build-isolation --constraint requirements.lock --editable ".[$(EXTRAS)]"
	@touch $@

$(VENV)/installed: $(VENV)/installed-to-run
	@echo "Installing into $(VENV) what the other targets need, such as tests; this takes a few minutes, once."
	$(INSTALL) --requirement requirements.lock
	@# For D4RL's tables of datasets and scores; its own requirements (gym, mujoco_py) are not needed.
	$(INSTALL) --quiet --no-deps d4rl==1.1
	@touch $@

run: $(VENV)/installed-to-run
	$(KEDRO) run $(ARGS)

smoke: $(VENV)/installed-to-run
	$(KEDRO) run --env smoke $(ARGS)

# One process per file, because tests of a file share fixtures. After 40 minutes it ends with the failures so far.
test: $(VENV)/installed
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --session-timeout 2400 $(ARGS)

test-unit: $(VENV)/installed
	$(BIN)/pytest -m "not integration and not slow" $(ARGS)

test-slow: $(VENV)/installed
	$(BIN)/pytest -m slow --timeout 7200 $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

viz: $(VENV)/installed-to-run
	$(KEDRO) viz run $(ARGS)

$(VENV_DOCS)/installed: docs/requirements.txt
	$(PYTHON) -m venv $(VENV_DOCS)
	$(VENV_DOCS)/bin/pip install --quiet --disable-pip-version-check --requirement docs/requirements.txt
	@touch $@

# Pages keep their places, so links work on the site as in the repository. Zensical builds it first, to see that it can:
# Material for MkDocs ends in 2027.
docs: $(VENV_DOCS)/installed
	rm -rf build/pages build/site && mkdir -p build/pages
	git ls-files -z --cached --others --exclude-standard $(PAGES) | xargs -0 tar -c | tar -x -C build/pages
	@# Neither of them reads notebooks, so these become pages of Markdown, and links lead to the pages.
	cd build/pages/notebooks && $(CURDIR)/$(VENV_DOCS)/bin/jupyter nbconvert --log-level=WARN --to markdown *.ipynb
	find build/pages -name '*.md' -exec sed -i.links 's/\.ipynb)/.md)/g' {} + && find build/pages -name '*.links' -delete
	$(VENV_DOCS)/bin/zensical build --strict --clean
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --strict
	@echo "The site: build/site/index.html"

notebooks: $(VENV)/installed
	$(BIN)/python -m notebooks.execute $(ARGS)

benchmark: $(VENV)/installed
	$(BIN)/python -m benchmarks.success $(ARGS)

suite: $(VENV)/installed-to-run
	$(KEDRO) suite run quick $(ARGS)

# Records and data of its own, so that all methods run here. A step of cql with its 10 samples takes as long as those of
# all other methods together.
baselines: $(VENV)/installed
	$(KEDRO) suite run rivals --tasks door-open-v3 --presets mixed --seeds 0 --threads 2 \
		--records data/baselines --data-root data/baselines --params baselines.cql.samples=4 $(ARGS)

rivals: $(VENV)/installed
	$(KEDRO) suite run rivals $(ARGS)

truth readouts goals ideas judging: $(VENV)/installed
	$(BIN)/python -m benchmarks.$@ $(ARGS)

# One thread: two processes simulate and train.
truth-simulators: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.simulators $(ARGS)

# One thread: the networks are small.
truth-methods: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.truth_methods $(ARGS)

bench-tuning: $(VENV)/installed
	$(BIN)/python -m benchmarks.tuning $(ARGS)

# One thread: a robot has other work for the rest.
bench-deploy: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.deploy $(ARGS)

bench-door: $(VENV)/installed
	$(BIN)/python -m benchmarks.door_open $(ARGS)

# One thread: batches are too small for several.
bench-sampling: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.sampling $(ARGS)

bench-reading: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reading $(ARGS)

bench-large-log: $(VENV)/installed
	$(BIN)/python -m benchmarks.large_log $(ARGS)

bench-speed: $(VENV)/installed
	$(BIN)/python -m benchmarks.speed $(ARGS)

bench-gpu: $(VENV)/installed
	$(BIN)/python -m benchmarks.gpu $(ARGS)

# One thread: a process with several threads cannot be forked.
faults: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(ARGS)

# The wheel is built from the sdist, so both are complete. twine is not in requirements.lock: nothing else needs it.
wheel: $(VENV)/installed
	rm -rf dist && $(BIN)/python -m build --no-isolation
	$(PYTHON) -m venv .venv-wheel && .venv-wheel/bin/pip install --quiet --disable-pip-version-check twine
	.venv-wheel/bin/twine check --strict dist/*
	rm -rf .venv-wheel

# One torch version without a build tag and without the CUDA packages of one of its builds: each platform has its own.
lock: BIN := .venv-lock/bin
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	$(INSTALL) --quiet --no-deps $(CPU_TORCH) torch==2.13.0 || $(TORCH_FROM_PYPI)
	$(INSTALL) torch==2.13.0 setuptools ".[export,lerobot,metaworld,robotics,minari,ogbench,s3,suites,tuning,videos,viz,dev]"
	( sed -n '/^#/p' requirements.lock; $(BIN)/pip freeze --all --exclude cvl-pipeline --exclude pip | LC_ALL=C sort -f \
		| sed -e 's/+cpu$$//' -e '/^\(cuda\|nvidia\|triton\)/d' \
			-e '/^\(dm[-_]\|labmaze=\|lxml=\|ogbench=\|pgserver=\)/s/$$/; python_version < "3.13"/' ) > .venv-lock/requirements.lock
	mv .venv-lock/requirements.lock requirements.lock
	rm -rf .venv-lock build

clean:
	rm -rf $(VENV) $(VENV_DOCS) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
