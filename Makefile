# p4ferry: `make run` and `make test` are all that a new machine needs; both set up what is missing.
SHELL := /bin/bash
# What root makes in a checkout of another user is given to him.
AS_ROOT := scripts/as-root
PY := .venv/bin/python
ARGS ?=
CONTAINERS ?=
VM ?=
PLAN ?=
PROBE ?=
UPGRADE ?=
PACKAGES ?=
ENGINE ?= podman
export COMMAND ?=

.PHONY: fidelity help setup run demo-process demo-containers demo-pods demo-switch-container containers test fault-matrix vm-test vm-setup passengers passengers-setup zdtm unit bench images lock lint format doctor clean distclean

help:            ## this list
	@sed -n 's/^\([a-z-]*\): *[^#]*## /  make \1\t/p' Makefile | expand -t 30

setup:           ## packages, .venv, a working CRIU; idempotent (CONTAINERS=1: also Docker, Podman, runc; VM=1: for vm-test; PLAN=1: only says what)
	@CONTAINERS=$(CONTAINERS) VM=$(VM) PLAN=$(if $(filter setup,$(MAKECMDGOALS)),$(PLAN)) PROBE=$(PROBE) scripts/setup

lock:            ## write requirements.lock: the environment's packages and their hashes (UPGRADE=1: the newest)
	@UPGRADE=$(UPGRADE) scripts/lock

run: setup       ## the main program: network, controller, demo, Mininet CLI (ARGS="--help")
	@$(AS_ROOT) $(PY) topo/lb.py $(or $(ARGS),--demo echo)

demo-process: setup ## a program moves between process hosts, then the CLI (ARGS="--count 4")
	@$(AS_ROOT) $(PY) topo/lb.py --demo echo $(ARGS)

demo-containers: containers ## the same with containers in hosts that are pods (ENGINE=docker: needs scripts/dockerd)
	@scripts/images --only tcp-echo
	@$(AS_ROOT) $(PY) topo/lb.py --hosts $(ENGINE) --demo echo $(ARGS)

demo-pods: containers ## a pod of two containers moves as a whole (ENGINE=docker: needs scripts/dockerd)
	@scripts/images --only redis --only app
	@$(AS_ROOT) $(PY) topo/pods.py --engine $(ENGINE) $(ARGS)

demo-switch-container: containers ## a program moves while the switch runs in a container
	@$(AS_ROOT) $(PY) topo/lb.py --switch-container $(ENGINE) --demo echo $(ARGS)

containers:
	@CONTAINERS=1 scripts/setup

test: setup      ## the whole suite, as root (ARGS="-k name")
	@$(AS_ROOT) $(PY) -m pytest $(ARGS)

fault-matrix: setup ## every fault at every step of a migration, with a table at the end
	@$(AS_ROOT) env P4FERRY_FAULT_MATRIX=full $(PY) -m pytest -q tests/faults $(ARGS)

# As it was typed: make would take a $$ in it for one of its own variables.
vm-test: export VM_COMMAND := $(value COMMAND)
vm-test: vm-setup ## the project on other kernels, in virtual machines (KERNEL=6.1|6.12|PATH|all COMMAND="…" STEPS="…" REDUCED=1)
	@$(AS_ROOT) $(PY) -m tests.vm --kernel "$(or $(KERNEL),all)" --modules "$(MODULES)" --root "$(ROOT)" \
	    --command "$$VM_COMMAND" --steps "$(STEPS)" $(if $(filter-out 0,$(REDUCED)),--reduced) $(ARGS)

passengers: passengers-setup ## servers of the distribution move under load, 20 times each (REDUCED=1: three times)
	@$(AS_ROOT) env $(if $(filter-out 0,$(REDUCED)),,P4FERRY_PASSENGERS=full) $(if $(RANDOM),P4FERRY_RANDOM_MOVES=$(RANDOM)) \
	    $(PY) -m pytest -q tests/passengers $(ARGS)

fidelity: setup   ## what programs find in themselves, moved in every way, in containers, too (make test has some of it)
	@$(AS_ROOT) env P4FERRY_FIDELITY=full $(PY) -m pytest -q tests/migration/test_fidelity.py \
	    tests/migration/test_fidelity_runc.py tests/topo/containers/test_engine_fidelity.py $(ARGS)

# As it was typed, asterisks and all.
zdtm: export ZDTM_TESTS := $(value TESTS)
zdtm:            ## CRIU's own tests move (ZDTM=PATH of CRIU's sources, TESTS="env00 pipe*" MODES="stop lazy" MOVES=4 JUNIT=FILE)
	@[ -n "$(ZDTM)" ] || { echo "zdtm: ZDTM=PATH has to name a source tree of CRIU's, whose folder test/zdtm has the tests" >&2; exit 2; }
	@scripts/setup
	@$(AS_ROOT) $(PY) -m tests.zdtm --path "$(ZDTM)" --tests "$$ZDTM_TESTS" --modes "$(or $(MODES),stop lazy)" \
	    --moves "$(or $(MOVES),4)" $(if $(JUNIT),--junit "$(JUNIT)") $(ARGS)

passengers-setup:
	@PASSENGERS=$(if $(filter-out 0,$(REDUCED)),1,full) scripts/setup

vm-setup:
	@VM=1 scripts/setup

unit: setup      ## the fast tests that need no root
	@$(PY) -m pytest -m "not net" $(ARGS)

bench: setup     ## the benchmarks; results go to the terminal (ARGS="gap throughput …")
	@$(AS_ROOT) $(PY) -m bench $(ARGS)

images:          ## container images of the demos, from Debian's packages (ARGS="--load docker")
	@scripts/images $(ARGS)

lint: setup      ## ruff format, ruff, mypy --strict
	@.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy

format: setup    ## let ruff rewrite the sources
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

doctor: setup    ## what works on this machine, what to type (ARGS="--json" prints JSON, ARGS="--bundle FILE" for a bug report)
	@$(AS_ROOT) $(PY) topo/lb.py --doctor $(ARGS)

clean:           ## remove what crashed runs left behind: our hosts, links, programs, checkpoints
	@[ ! -x $(PY) ] || $(AS_ROOT) $(PY) topo/lb.py --clean

distclean: clean ## all that set-up has made; packages that it installed after asking (PACKAGES=1: without)
	@PACKAGES=$(PACKAGES) scripts/distclean
