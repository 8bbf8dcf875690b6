# TrimViT's server. One file, two variants:
#   GPU and CPU (torch from PyPI, which on x86-64 Linux is the CUDA build):
#     docker build -t trimvit .
#   CPU only, several gigabytes smaller: name PyTorch's CPU wheel index, whose address its install page gives:
#     docker build -t trimvit:cpu --build-arg TORCH_INDEX_URL=... .
# Run it with nothing writable but /tmp, and no network:
#   docker run --read-only --tmpfs /tmp --cap-drop ALL -p 127.0.0.1:8000:8000 trimvit

# Any image with Python 3.11 or newer and its venv module. The wheels of torch bring the CUDA libraries along,
# so a GPU needs no CUDA base image, only the NVIDIA container toolkit on the host.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS base
# A user that the password file knows: libraries look the name up to place their caches. And a folder of its own
# for weights: a new Docker volume takes its owner from what it is mounted on.
RUN groupadd --gid 10001 trimvit \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin trimvit \
    && install --directory --owner trimvit --group trimvit /tmp/huggingface \
    && python3 -m venv /opt/trimvit
ENV PATH=/opt/trimvit/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# The version ranges, read from pyproject.toml, with those of the extras `otel` and `grpc`: in a container
# traces and gRPC are asked for by the environment alone. In files of their own, so that the layers that install them
# change with the ranges only, and not with every other line of pyproject.toml.
FROM base AS requirements
WORKDIR /requirements
COPY pyproject.toml ./
RUN python -c "import tomllib; \
    project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    extras = project['optional-dependencies']; \
    needs = project['dependencies'] + extras['otel'] + extras['grpc']; \
    heavy = [need for need in needs if need.startswith('torch')]; \
    light = [need for need in needs if need not in heavy]; \
    print(*heavy, sep=chr(10), file=open('heavy.txt', 'w')); \
    print(*light, sep=chr(10), file=open('light.txt', 'w'))"

FROM base AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY app ./app
COPY models ./models
COPY trimvit ./trimvit
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip wheel --no-deps --wheel-dir /wheel .

# torch and torchvision: nearly all of the image's bytes, and the layer that changes least.
FROM base AS torch
ARG TORCH_INDEX_URL=""
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=requirements,source=/requirements,target=/requirements \
    PIP_INDEX_URL="${TORCH_INDEX_URL}" python -m pip install --requirement /requirements/heavy.txt

FROM torch AS libraries
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=requirements,source=/requirements,target=/requirements \
    python -m pip install --requirement /requirements/light.txt

# The code, with the bundled weights. pip compiles it to bytecode, as nothing can be written later.
FROM libraries AS server
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    python -m pip install --no-cache-dir --no-deps --no-index /wheel/*.whl \
    && python -m pip check

# Caches, sockets and metrics files all go to /tmp. Weights from the hub do too: mount a volume on
# /tmp/huggingface to keep them.
ENV HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TRIMVIT_HOST=0.0.0.0

# A number, so that Kubernetes' runAsNonRoot can see that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Where the environment (not a flag) says that the server is to be asked. http.client and not urllib, which would
# go through a proxy that the environment names. Whose certificate it is matters to clients, not to a probe. What
# is no number counts as not set, as in the server: Kubernetes describes a Service called trimvit in TRIMVIT_PORT.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client, os, re, ssl, sys; \
    given = lambda name: re.fullmatch(r'\\W*(\\d+)\\W*', os.environ.get('TRIMVIT_' + name, '')); \
    operations = given('OPERATIONS_PORT'); \
    port = operations or given('PORT'); \
    port = int(port[1]) if port else 8000; \
    plain = operations or not os.environ.get('TRIMVIT_TLS_CERTIFICATE'); \
    server = http.client.HTTPConnection('127.0.0.1', port, timeout=4) if plain else \
    http.client.HTTPSConnection('127.0.0.1', port, timeout=4, context=ssl._create_unverified_context()); \
    server.request('GET', '/readyz'); \
    sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT ["trimvit"]
CMD ["serve"]

# Last, as they change with every build.
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="TrimViT" \
    org.opencontainers.image.description="Inference server for vision transformers that prune their own patches" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
