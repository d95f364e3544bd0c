# vpt: `make demo` and `make test` set everything up by themselves; `make setup` does nothing when that is done.
PY := .venv/bin/python
STAMP := .venv/.ready
UV := $(shell command -v uv 2>/dev/null || echo python3 -m uv)

# On a busy machine, threads that wait by spinning cost several times the work; sleeping ones cost nothing.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: setup demo test check lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@command -v uv >/dev/null 2>&1 || python3 -m uv --version >/dev/null 2>&1 || python3 -m pip install --quiet uv
	@test -x $(PY) || $(UV) venv --quiet --python ">=3.11" .venv
	$(UV) pip sync --quiet --python $(PY) requirements.lock
	$(UV) pip install --quiet --python $(PY) --no-deps --editable .
	@touch $@

demo: setup
	$(PY) -m vpt demo --out demo-out

# two processes of one thread each: the suite is thousands of small tests
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

lock:
	$(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --output-file requirements.lock

clean:
	rm -rf .venv demo-out .mypy_cache .ruff_cache .pytest_cache
