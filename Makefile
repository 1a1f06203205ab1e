# Two commands to know:  make demo   make test
# Both make the environment first: .venv, every version pinned by constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# A process for each processor, whole files to each: what the tests of a file share is made once. PARALLEL= for one.
PARALLEL ?= -n logical --maxprocesses 4 --dist loadfile

.PHONY: demo test lint slow matrix kits consumers places gpu-receipt bench-methods clean

demo: .venv/ready
	$(BIN)/edgeqaf demo

test: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The long runs: every test, slow ones too.
slow: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL)

# Hours: every runtime, in every configuration, on every model, as one page. It goes on where it was stopped. Runtimes
# elsewhere are those that `make places` has fetched; the models are made first, some of float models in MODELS. It exits
# with 4 where anything differs, as OpenVINO does, which is no reason for make to fail.
MODELS ?= ../shared/models
matrix: .venv/ready
	sh runtime_tests/matrix/make_models.sh $(BIN) matrix $(MODELS) demo > .venv/matrix-models
	-$(BIN)/edgeqaf verify $$(cat .venv/matrix-models) --matrix --places .venv/places -o matrix/matrix.html

# On a machine with a CUDA GPU: what needs one, as a dated receipt in docs/receipts.
gpu-receipt: .venv/ready
	$(BIN)/python -m runtime_tests.gpu_receipt -o docs/receipts $(if $(wildcard .venv/places),--places .venv/places)

# llama.cpp as its own project builds it, for x86, ARM and Vulkan: the part of the places that most tests want.
kits: .venv/ready
	sh runtime_tests/fetch_places.sh $(BIN)/python .venv/places llama.cpp

# What else loads our ONNX folders, each in an environment of its own: optimum needs an older transformers than edgeqaf.
consumers: .venv/optimum/ready .venv/genai/ready

.venv/optimum/ready: tests/consumers/optimum.txt
	$(PYTHON) -m venv .venv/optimum
	.venv/optimum/bin/pip install --disable-pip-version-check -q -c $< 'optimum-onnx[onnxruntime]'
	@touch $@

.venv/genai/ready: constraints.txt
	$(PYTHON) -m venv .venv/genai
	.venv/genai/bin/pip install --disable-pip-version-check -q -c $< onnxruntime-genai
	@touch $@

# ONNX Runtime and llama.cpp elsewhere: other versions, x86 and ARM levels, WebAssembly, Node, WebGPU, Vulkan, OpenVINO;
# 1.2 GB.
places: .venv/ready
	sh runtime_tests/fetch_places.sh $(BIN)/python .venv/places

# Hours: every tuning method on every task. It goes on from what is recorded, and where it was stopped.
bench-methods: .venv/ready
	$(BIN)/edgeqaf bench methods --from docs/benchmarks/methods.json
	$(BIN)/edgeqaf bench methods --report docs/benchmarks

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "edgeqaf needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt torch
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo matrix gpu-receipt
