# Each target makes its own environment from the hashed lock file when it is absent.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.locked
DATA ?= ../shared/data
SETS := '[pneumoniamnist,breastmnist,breastmnist-0,sarscov2ct,sarscov2ct-covid,kvasirseg_patches]'

.PHONY: audit coverage demo docs pages scores test unit integration test-slow test-elsewhere results soak fuzz bench bench-quick bench-eyes bench-service bench-stranger lint lock clean

demo: $(STAMP)  ## DIA on generated images: train, score, report, in demo/
	$(BIN)/dia demo --out demo

# worksteal: other schedulers that keep a file together go by names, and schemathesis' tests share theirs
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal --durations=15

test: $(STAMP)  ## all tests but the slow ones: unit and integration in one run, some eight minutes on two cores
	$(PYTEST)

# whole programs (servers, a browser, Ray, torchrun, kills, notebooks), and what fits every method, runs grids or exports
WHOLE := tests/integration $(addprefix tests/,contract.py benchmark/test_ablation.py benchmark/test_protocol.py \
  benchmark/test_runner.py core/test_core_imports.py deploy/test_export.py detectors/peers/test_anomalib.py)

unit: $(STAMP)  ## the quick tests, some two and a half minutes on two cores
	$(PYTEST) $(addprefix --ignore=,$(WHOLE))

integration: $(STAMP)  ## the others
	$(PYTEST) $(WHOLE)

test-slow: $(STAMP)  ## the checks that take minutes each
	$(BIN)/python -m pytest -m slow --durations=15

coverage: $(STAMP)  ## which branches of src the tests outside tests/integration take (some 40 % slower)
	$(PYTEST) --ignore tests/integration --cov --cov-report=term:skip-covered

# files whose tests train or compare numbers
NUMERIC := $(addprefix tests/,contract.py amplify detectors dissolve evaluate benchmark/test_ablation.py cli/test_cli.py \
  core/test_tracking.py $(patsubst %,data/test_%.py,duplicates extremes lesions phantoms volumes) \
  $(patsubst %,deploy/test_%.py,anomalib_model export hub predictor privacy) report/test_method_figures.py \
  integration/test_fourteen.py integration/test_kills.py integration/test_pipelines.py)
OLDER := ONEDNN_MAX_CPU_ISA=SSE41,ATEN_CPU_CAPABILITY=default,MKL_CBWR=COMPATIBLE,OPENBLAS_CORETYPE=Nehalem
NO_AVX512 := ONEDNN_MAX_CPU_ISA=AVX2,ATEN_CPU_CAPABILITY=avx2,OPENBLAS_CORETYPE=Haswell

test-elsewhere: $(STAMP)  ## what trains or compares numbers, as on older processors, two threads, other seeds (some hour)
	for other in $(OLDER) $(NO_AVX512) OMP_NUM_THREADS=2 DIA_TEST_SEED=1 DIA_TEST_SEED=2; do echo $$other; \
	  env $$(echo $$other | tr , ' ') $(PYTEST) $(NUMERIC) || exit 1; done

lint: $(STAMP)  ## style, types, explained arguments, which folder may import which, and how many files a folder has
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/docstrings.py
	$(BIN)/lint-imports --no-cache
	find src/dia tests benchmarks -name '*.py' | sed 's|/[^/]*$$||' | sort | uniq -c | \
	  awk '$$1 > 13 { print $$2 ": " $$1 " Python files; a folder has at most 13"; many = 1 } END { exit many }'

docs: pages  ## the documentation into site/, strictly: no warning, no broken link, nothing from elsewhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

scores:  ## the raw scores of the ledgers' runs, which leave the tree, from this repository's history
	test -d results/scores || git archive $$(cat results/scores.commit) results/scores | tar -x

pages: $(STAMP)  ## the pages of the results, from the ledgers, with intervals where the raw scores are there
	-$(MAKE) --no-print-directory scores
	$(BIN)/dia report benchmark --data-root $(DATA) --datasets $(SETS)
	$(BIN)/dia report benchmark --data-root $(DATA) --grid grids/table.yaml --out results/table --title 'One fair table' $(FAIR)
	$(BIN)/dia report benchmark --data-root $(DATA) --grid grids/table.yaml --weights '[none]' --out results/table-none \
	  --title 'The same table without outside data' $(NONE)
	$(BIN)/dia ablate dissolver-masking --draw --datasets '[pneumoniamnist,breastmnist,breastmnist-0]'
	$(BIN)/dia ablate views --draw
	$(BIN)/dia ablate sizes --draw

results: $(STAMP)  ## what the grids of the README's table still lack (some six hours from nothing), and its report
	-$(MAKE) --no-print-directory scores
	$(BIN)/dia benchmark --config results/grid-directions.yaml --data-root $(DATA)
	$(BIN)/dia benchmark --config results/grid-sets.yaml --data-root $(DATA)
	$(BIN)/dia benchmark --config results/grid.yaml --data-root $(DATA) --readme '[README.md,docs/results.md]'
	$(MAKE) pages FAIR="--readme '[docs/findings.md,README.md]'" NONE="--readme '[docs/results.md]'"

bench: $(STAMP)  ## all benchmarks of speed but the peers', on an otherwise idle machine (about an hour and a half)
	for b in train_step dissolve score fit scale; do $(BIN)/python -m benchmarks.speed.$$b || exit 1; done
	$(BIN)/python -m benchmarks.speed.quick --keep
	$(BIN)/python -m benchmarks.speed.page

bench-quick: $(STAMP)  ## the ratios in under three minutes; fails where one fell
	$(BIN)/python -m benchmarks.speed.quick

bench-eyes: $(STAMP)  ## `dia+` beside PatchCore, and imgad where IMGAD=FOLDER has it, through the same network
	$(BIN)/python -m benchmarks.speed.eyes $(if $(IMGAD),--imgad $(IMGAD))
	$(BIN)/python -m benchmarks.speed.page

bench-service: $(STAMP)  ## `dia serve` under load, every answer compared: docs/reliability.md (ten minutes)
	$(BIN)/python -m benchmarks.robustness.service_load

bench-stranger: $(STAMP)  ## the tutorial's commands in an empty environment, from the built wheel to an open report
	$(BIN)/python -m benchmarks.robustness.stranger

soak: $(STAMP)  ## every stage killed fifty times and resumed, full and read-only disks: docs/reliability.md (an hour)
	$(BIN)/python -m benchmarks.robustness.soak

fuzz: $(STAMP)  ## every reader, file and endpoint with hostile input, 120,000 cases: docs/reliability.md (half an hour)
	$(BIN)/python -m benchmarks.robustness.fuzz

audit: $(STAMP) .audit-venv/.locked  ## vulnerabilities, licences and bill of materials of the locked packages; needs the network
	.audit-venv/bin/python audit/run.py --python $(BIN)/python

.audit-venv/.locked: audit/requirements.lock
	test -x .audit-venv/bin/python || $(PYTHON) -m venv .audit-venv
	.audit-venv/bin/python -m pip install -q --require-hashes -r audit/requirements.lock
	touch $@

lock:  ## renew requirements.lock (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --extra paper --extra backbones --extra cluster --extra peers --extra medical \
	  --extra serve --extra export --extra tables --extra tracking --extra docs --extra dev \
	  --no-header -q pyproject.toml -o requirements.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header -q audit/requirements.in -o audit/requirements.lock

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

clean:  ## everything the other targets made
	rm -rf .venv .audit-venv audit/out .work demo dist site .pytest_cache .coverage .mypy_cache .ruff_cache .hypothesis lightning_logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
