# What a newcomer needs; `make` alone lists it. The scripts under tools/ do what is more than a command.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Parts of a target run in the order in which they are named, whatever -j says: cargo uses all cores itself.
.NOTPARALLEL:

export CARGO_TARGET_DIR ?= $(CURDIR)/target
rudder := $(CARGO_TARGET_DIR)/release/rudder
scripts := .ci/run slurm/submit slurm/rank slurm/address slurm/dgl_process slurm/paper/submit $(wildcard tools/*.sh tests/vm/*.sh tests/slurm/*.sh slurm/*.sbatch slurm/*.sh)
# Transports whose libraries are loaded at run time. That over libfabric is built where its headers are.
fabric := $(shell cc -E -include rdma/fabric.h -x c /dev/null >/dev/null 2>&1 && echo ,rudder/fabric)
transports := rudder/verbs$(fabric)
# Recorded in the documents that the rudder command writes.
commit := $(shell git describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null)

.PHONY: help
help: ## List these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: setup
setup: ## Check the tools that all targets need; as root, install what Debian packages can give
	@tools/setup.sh all

.PHONY: build
build: ## Build the libraries for Rust and C, and target/release/rudder
	@tools/setup.sh --check build
	@[[ -n '$(fabric)' ]] || echo "make build: libfabric's headers are missing (Debian: libfabric-dev), so the transport fabric is left out"
	RUDDER_COMMIT='$(commit)' cargo build --release --locked --workspace --features '$(transports)'

.PHONY: install
install: ## Install header, librudder.so, librudder.a and rudder.pc, after `make build`; PREFIX=, LIBDIR=, DESTDIR=
	@PREFIX='$(PREFIX)' LIBDIR='$(LIBDIR)' DESTDIR='$(DESTDIR)' tools/install.sh $(CARGO_TARGET_DIR)/release

.PHONY: demo
demo: ## Set up, build, fetch the model if possible, and compare the main set-ups on a real graph
	@tools/setup.sh demo
	@$(MAKE) --no-print-directory build
	@[[ -n "$${RUDDER_MODEL:-}" ]] || tools/model.sh || \
		echo "make demo: the rows of the language model are left out; once the cause above is cured, 'make model' fetches it"
	$(rudder) demo

.PHONY: test
test: model-for-tests lint doc ## Check everything: format, lints, documentation, all tests
	tools/test.sh

.PHONY: test-nomodel
test-nomodel: lint doc ## The same without the tests of the language model, which must be fetched first
	tools/test.sh --without-model

.PHONY: test-fabric
test-fabric: ## Hold the transport over libfabric against its software providers and a fake one, and build with hwloc
	@tools/setup.sh --check fabric
	cargo clippy --package rudder --package rudder-native --no-default-features --features rudder/fabric,rudder/hwloc \
		--all-targets --locked -- -D warnings
	tools/test.sh --fabric

.PHONY: test-capi
test-capi: ## Test the C interface: an installation, programs in C11 and C++17, misuse; under valgrind
	@tools/setup.sh --check capi
	tools/capi.sh

.PHONY: test-demo
test-demo: ## Train on a small graph with two ranks, and check the document that comes out
	tools/smoke.sh

.PHONY: test-verbs
test-verbs: ## Test reads by RDMA devices, also through libfabric, in a virtual machine with Soft-RoCE (no root, no device)
	@tools/setup.sh --check verbs
	tools/test-verbs.sh

.PHONY: rates-verbs
rates-verbs: ## Measure those reads beside ib_read_bw, in the same virtual machine, into target/bench/
	@tools/setup.sh --check verbs
	tools/test-verbs.sh --rates

.PHONY: test-mpi
test-mpi: ## Check the MPI transport with MPICH and with Open MPI, 2 to 4 ranks each; `tools/setup.sh mpi` installs both
	@tools/setup.sh --check mpi
	tools/mpi.sh mpich openmpi

.PHONY: test-bench-mpi
test-bench-mpi: ## Run all MPI benchmarks at small size with both, and look at what they leave
	@tools/setup.sh --check mpi
	tools/bench-mpi.sh --check mpich openmpi

.PHONY: bench-mpi
bench-mpi: ## Measure gets beside raw MPI_Get with MPICH and with Open MPI, into target/bench/; QUICK=1, MPI=mpich
	@tools/setup.sh --check mpi
	RUDDER_COMMIT='$(commit)' tools/bench-mpi.sh $(if $(QUICK),--small) $(or $(MPI),mpich openmpi)

.PHONY: test-slurm
test-slurm: ## Submit the job templates to a real Slurm of four virtual nodes, MPI's with both MPIs, as root; `tools/setup.sh slurm` and `dgl` install what it takes
	@tools/setup.sh --check slurm
	@tools/setup.sh --check dgl
	tools/test-slurm.sh

.PHONY: test-dgl
test-dgl: ## Test the DistDGL adapter with DistDGL 2.1.0 on 2 and 4 machines, which are namespaces; `tools/setup.sh dgl` installs the tools
	@tools/setup.sh --check dgl
	tools/test-dgl.sh

.PHONY: bench-dgl
bench-dgl: wheel ## Measure the DistDGL adapter beside DistDGL on shaped links; QUICK=1, JSON=FILE; docs/dgl.md names its parts
	@tools/setup.sh --check dgl
	RUDDER_COMMIT='$(commit)' tools/bench-dgl.sh "$(CARGO_TARGET_DIR)"/wheels/rudder_dgl-*.whl $(if $(JSON),--json "$(JSON)") \
		$(if $(QUICK),--quick) $(if $(ALONE),--alone) $(if $(PART_CONFIG),--part-config "$(PART_CONFIG)") \
		$(foreach part,GRAPHS LINKS DIMS MACHINES MODELS SYSTEMS ROUNDS,$(if $($(part)),--$(shell echo $(part) | tr A-Z a-z) "$($(part))"))

.PHONY: pilot
pilot: build ## Make the controller pilot's model anew, and hold it against the others on the frozen list, into target/pilot (some four hours)
	tools/pilot.sh $(rudder) $(CARGO_TARGET_DIR)/pilot

.PHONY: wheel
wheel: build ## Make the wheel of the DistDGL adapter, with the library in it, in target/wheels
	tools/wheel.sh "$(CARGO_TARGET_DIR)/release/librudder.so" "$(CARGO_TARGET_DIR)/wheels"

.PHONY: lint
lint: ## Check format, clippy's lints and the shell scripts
	@tools/setup.sh --check test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --package rudder --no-default-features --features verbs --all-targets --locked -- -D warnings
	shellcheck --external-sources $(scripts)

.PHONY: doc
doc: ## Build the library's documentation without warnings, and run its examples
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --lib --no-deps --locked
	cargo test --workspace --doc --locked

.PHONY: model
model: ## Fetch the small language model (98 MB) into ~/.cache/rudder
	@tools/setup.sh model
	@tools/model.sh

# The tests know this model's tokens: another one, named in RUDDER_MODEL, would fail them.
.PHONY: model-for-tests
model-for-tests:
	@tools/model.sh || { \
		echo "make test: the tests of the language model (tests/llm.rs) cannot run without it, so nothing was run." >&2; \
		echo "make test: 'make test-nomodel' runs everything else." >&2; \
		exit 1; }

.PHONY: bench
bench: build ## Time the buffer, and gets beside their baselines, into target/bench/
	cargo bench --locked --package rudder-bench --bench '*'
	mkdir -p $(CARGO_TARGET_DIR)/bench
	$(rudder) get --csv $(CARGO_TARGET_DIR)/bench/get.csv --json $(CARGO_TARGET_DIR)/bench/get.json

.PHONY: clean
clean: ## Remove all that was built; the fetched model stays
	cargo clean
