# The whole of SMDT on a CUDA runtime: `docker run smdt train --config …`
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive \
    PYTHONUNBUFFERED=1 \
    PATH=/opt/smdt/.venv/bin:$PATH

# Python, ssh and pdsh for DeepSpeed's launcher, a compiler for its operators.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
       python3.12 python3.12-venv python3.12-dev g++ git openssh-client pdsh \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/smdt
COPY requirements.lock ./
RUN python3.12 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir uv==0.13.9 \
    && .venv/bin/uv pip install --no-cache --requirement requirements.lock

COPY . .
RUN .venv/bin/uv pip install --no-cache --no-deps --editable . \
    && useradd --create-home --uid 10001 smdt

USER smdt
WORKDIR /home/smdt
ENTRYPOINT ["smdt"]
CMD ["--help"]
