# p4ferry: `make run` and `make test` are all that a new machine needs; both set up what is missing.
SHELL := /bin/bash
# What root makes in a checkout of another user is given to him.
AS_ROOT := scripts/as-root
# Runs a command with the words of ARGS at its end.
WITH_ARGS := scripts/with-args
PY := .venv/bin/python

TARGETS := long engines fidelity help setup run demo-process demo-containers demo-pods demo-switch-container containers test fault-matrix vm-test vm-setup passengers passengers-setup zdtm unit bench images lock lint format doctor clean distclean
.PHONY: $(TARGETS) plan

# What is given reaches a program as it was typed, $, quotes and all: make takes it as it is, and recipes name $$GIVEN_… in
# quotes, never $(…), which the shell would read. It does not reach the Makefiles of others.
GIVEN := ARGS COMMAND CONTAINERS ENGINE JUNIT KERNEL MODES MODULES MOVES PACKAGES PLAN PROBE RANDOM REDUCED ROOT STEPS TESTS \
         UPGRADE VM ZDTM
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name)))$(eval export GIVEN_$(name) := $$(value $(name))))
unexport $(GIVEN)
MAKEOVERRIDES :=
wanted = $(filter-out 0,$($(1)))

# What recipes share.
engine := "$${GIVEN_ENGINE:-podman}"
run := $(if $(strip $(ARGS)),,--demo echo)
passengers := $(if $(call wanted,REDUCED),1,full)
vm-test := tests.vm --kernel="$${GIVEN_KERNEL:-all}" --modules="$$GIVEN_MODULES" --root="$$GIVEN_ROOT" \
    --command="$$GIVEN_COMMAND" --steps="$$GIVEN_STEPS" $(if $(call wanted,REDUCED),--reduced)
zdtm := tests.zdtm --path="$$GIVEN_ZDTM" --tests="$$GIVEN_TESTS" --modes="$${GIVEN_MODES:-stop lazy}" \
    --moves="$${GIVEN_MOVES:-4}" $(if $(JUNIT),--junit="$$GIVEN_JUNIT")

unknown := $(strip $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
unknown := $(filter-out SHELL AS_ROOT PY,$(unknown))
$(if $(unknown),$(error $(firstword $(unknown))=…: there is no such variable; there are $(strip $(GIVEN))))
unknown := $(filter-out $(TARGETS),$(MAKECMDGOALS))
$(if $(filter-out docker podman,$(ENGINE)),$(error ENGINE=$(ENGINE) is neither docker nor podman))
$(if $(unknown),$(error there is no target $(firstword $(unknown)); `make help` lists them))

ifneq ($(call wanted,PLAN),)
# Whatever the target, say what set-up would do for it, and do nothing.
$(or $(MAKECMDGOALS),help): plan
	@:

plan:
	@PLAN=1 PROBE="$$GIVEN_PROBE" \
	    CONTAINERS="$(if $(filter containers engines demo-containers demo-pods demo-switch-container,$(MAKECMDGOALS)),1,$$GIVEN_CONTAINERS)" \
	    VM="$(if $(filter vm-test vm-setup,$(MAKECMDGOALS)),1,$$GIVEN_VM)" \
	    PASSENGERS="$(if $(filter passengers passengers-setup,$(MAKECMDGOALS)),$(passengers))" scripts/setup
else

help:            ## this list
	@sed -n 's/^\([a-z-]*\): *[^#]*## /  make \1\t/p' Makefile | expand -t 30

setup:           ## packages, .venv, a working CRIU; idempotent (CONTAINERS=1: also Docker, Podman, runc; VM=1: for vm-test; PLAN=1: only says what)
	@CONTAINERS="$$GIVEN_CONTAINERS" VM="$$GIVEN_VM" PROBE="$$GIVEN_PROBE" scripts/setup

lock:            ## write requirements.lock: the environment's packages and their hashes (UPGRADE=1: the newest)
	@UPGRADE="$$GIVEN_UPGRADE" scripts/lock

run:             ## the main program: network, controller, demo, Mininet CLI (ARGS="--help")
	@$(WITH_ARGS) scripts/setup --for topo.main $(run)
	@$(WITH_ARGS) $(AS_ROOT) $(PY) topo/lb.py $(run)

demo-process:    ## a program moves between process hosts, then the CLI (ARGS="--count 4")
	@$(WITH_ARGS) scripts/setup --for topo.main --demo echo
	@$(WITH_ARGS) $(AS_ROOT) $(PY) topo/lb.py --demo echo

demo-containers: ## the same with containers in hosts that are pods (ENGINE=docker: needs scripts/dockerd)
	@CONTAINERS=1 $(WITH_ARGS) scripts/setup --for topo.main --hosts $(engine) --demo echo
	@scripts/images --only tcp-echo
	@$(WITH_ARGS) $(AS_ROOT) $(PY) topo/lb.py --hosts $(engine) --demo echo

demo-pods:       ## a pod of two containers moves as a whole (ENGINE=docker: needs scripts/dockerd)
	@CONTAINERS=1 $(WITH_ARGS) scripts/setup --for topo.main --demo pod --hosts $(engine)
	@scripts/images --only redis --only app
	@$(WITH_ARGS) $(AS_ROOT) $(PY) topo/pods.py --engine $(engine)

demo-switch-container: ## a program moves while the switch runs in a container
	@CONTAINERS=1 $(WITH_ARGS) scripts/setup --for topo.main --switch-container $(engine) --demo echo
	@$(WITH_ARGS) $(AS_ROOT) $(PY) topo/lb.py --switch-container $(engine) --demo echo

containers:
	@CONTAINERS=1 scripts/setup

test: setup      ## all tests but those of the targets below, as root (ARGS="-k name")
	@$(WITH_ARGS) $(AS_ROOT) $(PY) -m pytest

engines: containers ## real engines and images: Docker, Podman, hosts, pods and switches in their containers, demos
	@$(WITH_ARGS) $(AS_ROOT) $(PY) -m pytest -q -m engines tests/containers tests/topo

long: setup      ## long runs: a hundred moves leak nothing, streams at full speed, twenty programs at once
	@$(WITH_ARGS) $(AS_ROOT) $(PY) -m pytest -q -m long tests/bench tests/topo tests/zdtm

fault-matrix: setup ## every fault at every step of a migration, with a table at the end
	@$(WITH_ARGS) $(AS_ROOT) env P4FERRY_FAULT_MATRIX=full $(PY) -m pytest -q tests/faults

vm-test:         ## the project on other kernels, in virtual machines (KERNEL=6.1|6.12|PATH|all COMMAND="…" STEPS="…" REDUCED=1)
	@VM=1 $(WITH_ARGS) scripts/setup --for $(vm-test)
	@$(WITH_ARGS) $(AS_ROOT) $(PY) -m $(vm-test)

passengers:      ## servers of the distribution move under load, 20 times each (REDUCED=1: three times; RANDOM=MOVES)
	@[[ -z $$GIVEN_RANDOM || $$GIVEN_RANDOM =~ ^[1-9][0-9]*$$ ]] || \
	    { echo "passengers: RANDOM=$$GIVEN_RANDOM is no number of moves: give 1 or more" >&2; exit 2; }
	@PASSENGERS=$(passengers) scripts/setup
	@$(WITH_ARGS) $(AS_ROOT) env $(if $(call wanted,REDUCED),,P4FERRY_PASSENGERS=full) \
	    $(if $(RANDOM),P4FERRY_RANDOM_MOVES="$$GIVEN_RANDOM") $(PY) -m pytest -q tests/passengers

fidelity: setup   ## what programs find in themselves, moved in every way, in containers, too (make test has some of it)
	@$(WITH_ARGS) $(AS_ROOT) env P4FERRY_FIDELITY=full $(PY) -m pytest -q tests/migration/test_fidelity.py \
	    tests/migration/test_fidelity_runc.py tests/topo/containers/test_engine_fidelity.py

zdtm:            ## CRIU's own tests move (ZDTM=PATH of CRIU's sources, TESTS="env00 pipe*" MODES="stop lazy" MOVES=4 JUNIT=FILE)
	@$(WITH_ARGS) scripts/setup --for $(zdtm)
	@$(WITH_ARGS) $(AS_ROOT) $(PY) -m $(zdtm)

passengers-setup:
	@PASSENGERS=$(passengers) scripts/setup

vm-setup:
	@VM=1 scripts/setup

unit: setup      ## the fast tests that need no root
	@$(WITH_ARGS) $(PY) -m pytest -m "not net"

bench: setup     ## the benchmarks; results go to the terminal (ARGS="gap throughput …")
	@$(WITH_ARGS) $(AS_ROOT) $(PY) -m bench

images:          ## container images of the demos, from Debian's packages (ARGS="--load docker")
	@$(WITH_ARGS) scripts/images

lint: setup      ## ruff format, ruff, mypy --strict
	@.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy

format: setup    ## let ruff rewrite the sources
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

doctor:          ## what works on this machine, what to type (ARGS="--json" prints JSON, ARGS="--bundle FILE" for a bug report)
	@$(WITH_ARGS) scripts/setup --for topo.main --doctor >&2
	@$(WITH_ARGS) $(AS_ROOT) $(PY) topo/lb.py --doctor

clean:           ## remove what crashed runs left behind: our hosts, links, programs, checkpoints
	@[ ! -x $(PY) ] || $(AS_ROOT) $(PY) topo/lb.py --clean

distclean: clean ## all that set-up has made; packages that it installed after asking (PACKAGES=1: without)
	@PACKAGES="$$GIVEN_PACKAGES" scripts/distclean
endif
