# p4ferry: `make run` and `make test` are all that a new machine needs; both set up what is missing.
SHELL := /bin/bash
SUDO := $(shell [ $$(id -u) = 0 ] || echo sudo)
PY := .venv/bin/python
ARGS ?=
CONTAINERS ?=

.PHONY: help setup run test fault-matrix unit bench images lint format doctor clean distclean

help:            ## this list
	@sed -n 's/^\([a-z-]*\): *[^#]*## /  make \1\t/p' Makefile | expand -t 20

setup:           ## packages, .venv, a working CRIU; idempotent (CONTAINERS=1: also Docker, Podman and runc)
	@CONTAINERS=$(CONTAINERS) scripts/setup

run: setup       ## the main program: network, controller, demo, Mininet CLI (ARGS="--help")
	@$(SUDO) $(PY) topo/lb.py $(or $(ARGS),--demo echo)

test: setup      ## the whole suite, as root (ARGS="-k name")
	@$(SUDO) $(PY) -m pytest $(ARGS)

fault-matrix: setup ## every fault at every step of a migration, with a table at the end
	@$(SUDO) env P4FERRY_FAULT_MATRIX=full $(PY) -m pytest -q tests/faults $(ARGS)

unit: setup      ## the fast tests that need no root
	@$(PY) -m pytest -m "not net" $(ARGS)

bench: setup     ## the benchmarks; results go to the terminal (ARGS="gap throughput …")
	@$(SUDO) $(PY) -m bench $(ARGS)

images:          ## container images of the demos, from Debian's packages (ARGS="--load docker")
	@scripts/images $(ARGS)

lint: setup      ## ruff format, ruff, mypy --strict
	@.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy

format: setup    ## let ruff rewrite the sources
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

doctor: setup    ## what works on this machine, what is missing, what to type
	@$(SUDO) $(PY) topo/lb.py --doctor

clean:           ## remove what crashed runs left behind: our hosts, links, programs, checkpoints
	@[ ! -x $(PY) ] || $(SUDO) $(PY) topo/lb.py --clean

distclean: clean ## also the environment and the private CRIU
	@$(SUDO) rm -rf .venv .p4ferry
