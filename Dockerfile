# The image of the quick-start agent, and the base of your own:
#
#   docker build --tag litestar-agentcore .                                     for this machine
#   docker buildx build --platform linux/arm64 --tag litestar-agentcore .       for Amazon Bedrock AgentCore
#
# Nothing below depends on the architecture: every locked dependency comes as a wheel for arm64 and for amd64.

# A digest pins the base to its bytes: --build-arg PYTHON_IMAGE=python:3.13-slim@sha256:...
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# Only wheels, and only those whose hashes are known: no compiler, and no code of a dependency's runs here.
# The root file system is read-only when it matters, so bytecode has to be there from the beginning. It is trusted without
# a look at the source's timestamp, which not every builder keeps. What no server imports goes without.
COPY requirements/runtime.txt requirements/
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --require-hashes --only-binary=:all: --no-compile --requirement requirements/runtime.txt \
    && find /opt/venv -name __pycache__ -prune -exec rm -r {} + \
    && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/site-packages/(faker|pip|pygments|setuptools)/' /opt/venv/lib

FROM dependencies AS service
COPY requirements/build.txt requirements/
RUN python -m venv --without-pip /opt/build \
    && /opt/venv/bin/pip --python /opt/build/bin/python install --require-hashes --only-binary=:all: \
        --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY telemetry telemetry
# Below /service the wheel lies as it will below /.
RUN /opt/build/bin/hatchling build --target wheel \
    && /opt/venv/bin/pip install --no-deps --no-index --no-compile --root /service dist/*.whl \
    && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /service -p / /service

FROM ${PYTHON_IMAGE}
# The base comes without the standard library's bytecode: most of a start would go into compiling it, each time anew.
RUN STDLIB="$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/(ensurepip|idlelib|site-packages|test|tkinter|turtledemo)/' "$STDLIB"
# Two layers: a new release of the service costs the second one alone.
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=service /service/opt/venv /opt/venv
# HOME and LOGNAME, since the user that the platform chooses need not be in /etc/passwd.
ENV PATH=/opt/venv/bin:$PATH \
    VIRTUAL_ENV=/opt/venv \
    HOME=/tmp \
    LOGNAME=agent \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DOCKER_CONTAINER=1 \
    AGENTCORE_LOG_FORMAT=json
WORKDIR /app
COPY app.py ./
# Everything belongs to root, so that an agent led astray cannot change the code that it runs. By number, since that is
# what Kubernetes' runAsNonRoot can check.
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# For plain Docker; Kubernetes and AgentCore ask /ping themselves. No shell, no curl, and no proxy in between.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-Ic", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8080, timeout=2); c.request('GET', '/ping'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["litestar", "run", "--host", "0.0.0.0", "--port", "8080"]
# Last, so that a new commit costs no layer.
ARG VERSION=0.1.0
ARG SOURCE=""
ARG REVISION=""
LABEL org.opencontainers.image.title="litestar-agentcore" \
      org.opencontainers.image.description="An AI agent, served the way Amazon Bedrock AgentCore Runtime does: on Litestar, typed and observable." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"
