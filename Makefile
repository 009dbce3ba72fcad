# make demo    sample from the shipped weights, train a small model from nothing, sample from that too
# make test    all tests but the slow ones          make test-slow   those that take minutes
# make check   ruff and mypy                        make weights     train the shipped weights again
# make chaos   kill training and sampling, and damage every file, hundreds of times (an hour; docs/reliability.md)
# make fuzz    an hour of damaged input for every loader, guided by coverage (atheris)
# make bench   measure this machine's GPU, or CPU, against every peer, ten minutes; write docs/benchmark.md
# make bench-speed   time small sizes with pytest-benchmark (half a minute)
# make bench-compare BASE=HEAD~1   is the working tree slower than that revision? both built, timed in turn
# make gpu     on a machine with an NVIDIA GPU: all tests there, checks and the benchmark, one JSON in bench/results
# make compile-gate   compile every Triton kernel for every GPU, without one (a quarter of an hour), against the table
# make compile-table  compile those that have changed, bring the table up to date and write docs/gpu.md again
# Each does its own set-up in .venv, once.

PYTHON ?= python3
BASE ?= HEAD
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

CPU_TORCH := torch==2.13.0
# Triton as the CUDA build of that torch brings it; the compile gate's table is of this one.
CPU_TRITON := triton==3.7.1
CPU_INDEX := https://download.pytorch.org/whl/cpu
SOURCES := pyproject.toml setup.py $(wildcard kernels/cpu/*)

.PHONY: demo test test-slow chaos fuzz check weights bench bench-speed bench-compare gpu compile-gate compile-table clean

# A machine without an NVIDIA GPU gets torch's CPU build: a tenth of the download.
.venv/.torch:
	$(PYTHON) -m venv .venv
	@: > .venv/constraints.txt
	@if nvidia-smi -L >/dev/null 2>&1; then \
	    echo "$(BIN)/pip install 'torch>=2.11'"; $(BIN)/pip install -q 'torch>=2.11'; \
	else \
	    echo "$(BIN)/pip install $(CPU_TORCH) (CPU build)"; \
	    $(BIN)/pip install -q --retries 1 --extra-index-url $(CPU_INDEX) $(CPU_TORCH); \
	    echo "$(CPU_TRITON)" > .venv/constraints.txt; \
	fi
	@touch $@

.venv/.demo: .venv/.torch $(SOURCES)
	$(BIN)/pip install -q -e '.[render]'
	@touch $@

.venv/.dev: .venv/.torch $(SOURCES)
	@touch .venv/constraints.txt
	$(BIN)/pip install -q -c .venv/constraints.txt -e '.[dev]'
	@touch $@ .venv/.demo

demo: .venv/.demo
	@rm -rf demo && mkdir demo
	$(BIN)/fusedmdn sample kanji -n 64 --seed 0 --out demo/kanji.svg --out demo/kanji.png
	$(BIN)/fusedmdn train kanjivg --out demo/run --hidden 128 --mixtures 10 --batch-size 32 --lr 0.005 --epochs 8
	$(BIN)/fusedmdn sample demo/run -n 64 --seed 0 --bias 0.5 --out demo/small.svg --out demo/small.png
	@echo
	@echo "Open demo/kanji.svg: 64 characters drawn by the weights that ship with the package."
	@echo "Open demo/small.svg: the same from the small model that was trained just now (demo/run)."

test: .venv/.dev
	$(BIN)/python -m pytest -m "not slow and not chaos"

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

chaos: .venv/.dev
	$(BIN)/python -m pytest -m chaos -s

fuzz: .venv/.dev
	$(BIN)/pip install -q atheris
	$(BIN)/python -m tests.fuzz --minutes 60

.venv/.bench: .venv/.torch $(SOURCES)
	$(BIN)/pip install -q -e '.[bench]'
	@touch $@

bench: .venv/.bench
	$(BIN)/python -m bench; status=$$?; $(BIN)/python -m bench.report && exit $$status

bench-speed: .venv/.dev
	$(BIN)/python -m pytest bench

bench-compare: .venv/.dev
	$(BIN)/python -m bench.compare $(BASE)

gpu: .venv/.dev .venv/.bench
	$(BIN)/python -m bench.gpu; status=$$?; $(BIN)/python -m bench.report && exit $$status

compile-gate: .venv/.dev
	$(BIN)/python -m tests.compile_gate --check

compile-table: .venv/.dev
	$(BIN)/python -m tests.compile_gate --refresh
	$(BIN)/python -m bench.gpu_page

# About an hour on one core; then compare runs/kanji/best with fusedmdn/assets/kanji.
weights: .venv/.demo
	$(BIN)/fusedmdn train kanjivg --out runs/kanji --hidden 224 --layers 2 --skip --dropout 0.1 --epochs 120 \
	    --augment 0.07 --precision bf16 --validate-every 2 --threads 1
	$(BIN)/fusedmdn eval runs/kanji kanjivg

# mypy sees the tree as it is installed.
check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/typed && mkdir -p build/typed
	@cp -r fusedmdn build/typed/ && cp -r python build/typed/fusedmdn/ops && cp -r kernels/triton build/typed/fusedmdn/kernels
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p fusedmdn

clean:
	rm -rf .venv build demo *.egg-info fusedmdn/*.so
