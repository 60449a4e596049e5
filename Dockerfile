# The whole of SMDT on a CUDA runtime; docs/docker.md says how to build and run it.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

ARG PYTHON=python3.12
ARG DEBIAN_FRONTEND=noninteractive
# The user of a container can't write bytecode beside the packages: without it every start compiles.
ARG UV_COMPILE_BYTECODE=1
ARG UV_LINK_MODE=copy

# Python; a compiler and Python's headers, with which torch builds kernels; ssh and pdsh, with which
# DeepSpeed's launcher reaches other hosts; git, which every run asks for its commit.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
       "${PYTHON}" "${PYTHON}-venv" "${PYTHON}-dev" g++ git openssh-client pdsh \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 smdt

ENV PATH=/opt/smdt/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1

WORKDIR /opt/smdt
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    "${PYTHON}" -m venv .venv \
    && .venv/bin/pip install --no-cache-dir uv==0.13.9 \
    && .venv/bin/uv pip install --requirement requirements.lock

COPY . .
RUN --mount=type=cache,target=/root/.cache/uv \
    .venv/bin/uv pip install --no-deps --editable . \
    && .venv/bin/python -m compileall -q smdt data_shards launcher

# What a run says that it ran, where there is no repository to ask.
ARG COMMIT
ENV SMDT_COMMIT=${COMMIT}

# A number: only of a number Kubernetes knows that it is not root.
USER 10001
WORKDIR /home/smdt
ENTRYPOINT ["smdt"]
CMD ["--help"]
