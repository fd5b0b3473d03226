# lazyrestore. `make demo` and `make test` do all the set-up that they need; `make help` lists the rest.
#
# PYTHON=...        the interpreter to make .venv with (3.11 or later)
# PYTEST_ARGS=...   what to hand to pytest, as "-k native" or "tests/unit"
# DEMO_ARGS=...     what to hand to the demo, as "--walk 4"
# FUZZ_SECONDS=...  for how long to fuzz
# SOAK_SECONDS=...  for how long to soak; SOAK_SEED=... with which random numbers
# STRESS_SECONDS=.. for how long `make sanitize` runs the stress program, each time
# BENCH_ARGS=...    what to hand to the benchmarks, as "R3 R5 --repeats 7"
# WHEEL_ARGS=...    what to hand to packaging/wheel/build_wheels.py, as "--compiler gcc x86_64"
# PREFIX=... DESTDIR=...   where install-core puts the C library
# KERNEL=...        a Debian kernel package for kernel-matrix, as linux-image-6.12-amd64

.DEFAULT_GOAL := help
.PHONY: help test demo core install-core lint format native fuzz sanitize soak kernel-matrix bench bench-quick \
	bench-doc bench-tools docs wheel try-wheel criu criu-if-any check-python check-c check-sanitizers clean
# Two of these would be two pips in one venv.
.NOTPARALLEL:

ifeq ($(origin CC),default)
CC := gcc
endif
export CC
PYTHON ?= python3
PYTEST_ARGS ?=
DEMO_ARGS ?=
FUZZ_SECONDS ?= 1800
SOAK_SECONDS ?= 300
SOAK_SEED ?=
STRESS_SECONDS ?= 15
KERNEL ?=
BENCH_ARGS ?=
WHEEL_ARGS ?=
JOBS := $(shell nproc 2>/dev/null || echo 1)

venv := .venv
bin := $(venv)/bin
# The package alone, as a user has it; and what its tests, tools and benchmarks need besides.
stamp := $(venv)/installed
dev := $(venv)/installed-dev
wheel_tools := build/wheel-tools
wheel_stamp := $(wheel_tools)/installed
docs_venv := build/docs-venv
core := $(MAKE) --no-print-directory -C csrc -j$(JOBS)
c_files = $(wildcard csrc/*.[ch] tests/c/*.[ch] tests/fuzz/*.[ch] tests/stress/*.[ch] \
	tests/guests/*.[ch] tests/processes/*.[ch] examples/*.[ch] examples/*/*.[ch] benchmarks/*.[ch])

help:
	@echo "make demo     dump a live program and restore it lazily, with figures"
	@echo "make test     the tests of the C core and of the Python package"
	@echo "make core     build and test the C core alone, without Python"
	@echo "make install-core   the C library, its header, pkg-config file and manual page, under PREFIX (/usr/local)"
	@echo "make criu     CRIU of a newer Debian in build/criu, where this machine has none that works"
	@echo "make fuzz     try images that mean harm on the C core, for FUZZ_SECONDS ($(FUZZ_SECONDS))"
	@echo "make sanitize the C tests and the stress program under ASan and UBSan, and under TSan"
	@echo "make soak     random operations against a model of each byte, for SOAK_SECONDS ($(SOAK_SECONDS))"
	@echo "make kernel-matrix   the tests under Debian's own kernel, in QEMU"
	@echo "make bench    all figures beside those of what people would use instead: 15 minutes"
	@echo "make bench-quick   the same with less data and fewer turns: 3 minutes"
	@echo "make bench-doc     docs/performance.md from what the last make bench measured"
	@echo "make wheel    an sdist, and from it wheels for x86-64 and aarch64, in dist/"
	@echo "make try-wheel   install that wheel in a bare Debian 12, made for it, and use it there (root)"
	@echo "make docs     the documentation as a site, in build/site"
	@echo "make lint     ruff, mypy and clang-format"
	@echo "make format   let ruff and clang-format write the files anew"
	@echo "make native   build what the package needs in this tree, after a change in csrc/"
	@echo "make clean    remove what was built, and .venv"

test: $(dev) native criu-if-any
	@$(core) test
	$(bin)/python -m pytest $(PYTEST_ARGS)

# The tests of processes use it, and find it there. Without root they are skipped in any case.
criu:
	@if [ -x build/criu/bin/criu ]; then :; \
	elif $${CRIU:-criu} check >/dev/null 2>&1; then echo "CRIU: $$(command -v "$${CRIU:-criu}")"; \
	else packaging/criu/fetch-criu.sh build/criu; fi

criu-if-any:
	@[ "$$(id -u)" -ne 0 ] || $(MAKE) --no-print-directory criu \
		|| echo "no CRIU: what needs it will be skipped" >&2

demo: $(stamp) native
	@$(bin)/lazyrestore demo $(DEMO_ARGS)

core: check-c
	@$(core) test

# PREFIX, DESTDIR and the like go on by themselves where they are given.
install-core: check-c
	@$(core) install SANITIZE=

# With clang, which it installs where it may.
fuzz: check-c
	@tests/fuzz/run.sh $(FUZZ_SECONDS)

# No suppressions. LeakSanitizer is part of the first. Neither bears forks from many threads:
# AddressSanitizer's malloc hangs in a child that was forked while another thread was in it, and
# ThreadSanitizer takes a child's threads for its parent's; so one run with forks is of one thread.
# ThreadSanitizer wants addresses that are not spread over more than 28 bits.
asan := SANITIZE=address,undefined
tsan := SANITIZE=thread
no_aslr := $(shell [ "$$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 0)" -gt 28 ] \
	&& echo setarch --addr-no-randomize)
stress_args := --seconds $(STRESS_SECONDS) --hang 120
sanitize: check-c check-sanitizers
	@echo "AddressSanitizer, LeakSanitizer, UndefinedBehaviorSanitizer"
	@$(core) test TEST_TIMEOUT=1200 $(asan)
	@$(core) run-stress $(asan) STRESS_ARGS="$(stress_args) --no-fork"
	@$(core) run-stress $(asan) STRESS_ARGS="$(stress_args) --threads 1 --no-fill"
	@echo "ThreadSanitizer"
	@$(no_aslr) $(core) test TEST_TIMEOUT=1200 $(tsan)
	@$(no_aslr) $(core) run-stress $(tsan) STRESS_ARGS="$(stress_args) --no-fork"

soak: check-c
	@$(core) run-stress SANITIZE= STRESS_ARGS="--seconds $(SOAK_SECONDS) --hang 120 $(SOAK_SEED:%=--seed %)"

# The library and the binding lie in lazyrestore/, where the editable install finds them.
native: $(stamp)
	@$(core) all python SANITIZE= PYTHON="$(abspath $(bin))/python"

kernel-matrix: $(dev) native
	@$(core) all tests examples SANITIZE=
	@# 77: this machine cannot, and the reason was printed.
	@$(bin)/python tests/kernel_matrix/run.py $(KERNEL:%=--kernel %) || [ $$? -eq 77 ]

bench: $(dev) native bench-tools criu-if-any
	@$(bin)/python -m benchmarks $(BENCH_ARGS)

bench-quick: $(dev) native bench-tools criu-if-any
	@$(bin)/python -m benchmarks --quick $(BENCH_ARGS)

bench-doc: $(dev) native
	@$(bin)/python docs/make_performance.py --from build/bench

# In a venv of its own, which needs nothing of this package: the reference is read from the sources.
docs: | check-python
	@mkdir -p build && [ -x $(docs_venv)/bin/pip ] || $(PYTHON) -m venv $(docs_venv)
	@[ $(docs_venv)/installed -nt pyproject.toml ] || { $(PYTHON) -c 'import tomllib; print(*tomllib.load( \
		open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		> $(docs_venv)/wanted && $(docs_venv)/bin/pip install --quiet --disable-pip-version-check \
		-r $(docs_venv)/wanted && touch $(docs_venv)/installed; }
	@NO_MKDOCS_2_WARNING=1 $(docs_venv)/bin/mkdocs build --strict
	@$(docs_venv)/bin/python docs/site/check.py build/site
	@echo "build/site/index.html"

# Installed where that is allowed; without them some rows say that they were not measured.
bench-tools: $(dev)
	@missing=""; \
	for entry in zstd:zstd squashfs-tools:mksquashfs strace:strace; do \
		command -v "$${entry#*:}" >/dev/null 2>&1 || missing="$$missing $${entry%%:*}"; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "installing$$missing"; export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; } \
			>/dev/null || echo "could not install$$missing" >&2; fi
	@# The weights of a network, which that package has; of the others that it needs, nothing is used.
	@{ $(bin)/pip install --quiet --disable-pip-version-check 'blosc2>=3' \
		&& $(bin)/pip install --quiet --disable-pip-version-check --no-deps 'rapidocr-onnxruntime>=1.4,<2'; \
		} || echo "could not install blosc2 and rapidocr-onnxruntime" >&2

lint: $(dev) native
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(bin)/clang-format --dry-run -Werror $(c_files)
	@# clang-format leaves alone what it cannot break, such as a long line in a comment.
	@bad=; for file in $(c_files); do \
		if expand "$$file" | LC_ALL=C.UTF-8 grep -nE '^.{101}'; then \
			echo "$$file: longer than 100 columns"; bad=1; fi; \
	done; [ -z "$$bad" ]

format: $(dev)
	$(bin)/ruff check --fix
	$(bin)/ruff format
	$(bin)/clang-format -i $(c_files)

# In dist/: what an index of packages is given.
wheel: $(wheel_stamp)
	@$(wheel_tools)/bin/python packaging/wheel/build_wheels.py $(WHEEL_ARGS)

try-wheel: $(wheel_stamp)
	@PYTHON="$(abspath $(wheel_tools))/bin/python" packaging/wheel/try_wheel.sh \
		$(lastword $(sort $(wildcard dist/*_$(shell uname -m).whl)))

define make_venv
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf $(1) && $(PYTHON) -m venv $(1); }
endef
pip_install = $(bin)/python -m pip install --quiet --disable-pip-version-check

$(stamp): pyproject.toml csrc/build_hook.py | check-python check-c
	@echo "Setting up $(venv) ..."
	$(call make_venv,$(venv))
	@$(pip_install) --editable .
	@touch $@

$(dev): pyproject.toml csrc/build_hook.py | check-python check-c
	@echo "Setting up $(venv), with what the tests use ..."
	$(call make_venv,$(venv))
	@$(pip_install) --editable '.[dev]'
	@touch $(stamp) $@

$(wheel_stamp): packaging/wheel/requirements.txt | check-python
	@echo "Setting up $(wheel_tools) ..."
	$(call make_venv,$(wheel_tools))
	@$(wheel_tools)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# What a fresh Debian lacks is named at once, all of it, and as a command.
check-python:
	@missing=""; \
	if ! command -v $(PYTHON) >/dev/null 2>&1; then missing="python3 python3-venv"; \
	elif ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then missing="python3-venv"; fi; \
	$(find_missing_c); \
	$(report_missing)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"lazyrestore needs Python 3.11 or later, and $(PYTHON) is older: make PYTHON=..." >&2; exit 1; }

check-sanitizers:
	@for kind in address undefined thread; do \
		echo 'int main(void) { return 0; }' | $(CC) -fsanitize=$$kind -x c - -o /dev/null || { \
		echo "$(CC) cannot link -fsanitize=$$kind: apt-get install libasan8 libubsan1 libtsan2" >&2; \
		exit 1; }; done

check-c:
	@missing=""; \
	$(find_missing_c); \
	$(report_missing)

define find_missing_c
if ! command -v $(firstword $(CC)) >/dev/null 2>&1; then missing="$$missing gcc libc6-dev"; \
elif ! printf '\043include <%s>\n' stdio.h linux/userfaultfd.h | $(CC) -E -x c - >/dev/null 2>&1; \
	then missing="$$missing libc6-dev"; fi
endef
define report_missing
if [ -n "$$missing" ]; then \
	echo "Some packages are missing: apt-get install" $$missing >&2; exit 1; fi
endef

clean:
	rm -rf build dist $(venv) lazyrestore/liblazyrestore.so lazyrestore/_binding.py \
		lazyrestore/_binding.pyi .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
