# The server as an image, for GPU hosts and for CPUs:
#   docker build --target gpu -t em-inf .        docker run --gpus all -p 8000:8000 em-inf MODEL
#   docker build --target cpu -t em-inf:cpu .    docker run -p 8000:8000 em-inf:cpu
# deploy/README.md says how to run it, and what was tried of it.

# vLLM's own image, by its exact version. Give name@sha256:… to pin the digest as well.
ARG GPU_BASE=vllm/vllm-openai:v0.33.0
# Any Debian 12.
ARG CPU_BASE=debian:bookworm-slim

FROM ${CPU_BASE} AS python
# Debian's Python 3.11 takes the distribution's security fixes with every build.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends libnuma1 python3.11 \
 && rm -rf /var/lib/apt/lists/*

FROM python AS build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3.11-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY deploy/locks/ deploy/locks/
RUN python3.11 -m venv /opt/build \
 && grep '^setuptools==' deploy/locks/cpu.txt > /opt/build/needed.txt \
 && /opt/build/bin/python -m pip install --no-cache-dir --no-deps -r /opt/build/needed.txt
COPY . .
RUN /opt/build/bin/python -m pip wheel --no-cache-dir --no-deps --no-build-isolation \
      --wheel-dir /dist .

FROM python AS cpu-build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3.11-venv \
 && rm -rf /var/lib/apt/lists/*
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
COPY deploy/locks/cpu.txt /tmp/cpu.txt
# The CPU build of torch is told from the other by its local version alone.
RUN python3.11 -m venv /opt/em-inf \
 && sed -n 's/^torch==.*/&+cpu/p' /tmp/cpu.txt > /tmp/torch.txt \
 && /opt/em-inf/bin/python -m pip install --no-cache-dir --no-deps \
      --extra-index-url "${TORCH_CPU_INDEX}" -r /tmp/torch.txt \
 && /opt/em-inf/bin/python -m pip install --no-cache-dir --no-deps -r /tmp/cpu.txt
COPY --from=build /dist /dist
RUN /opt/em-inf/bin/python -m pip install --no-cache-dir --no-deps /dist/*.whl

FROM python AS cpu
COPY --from=cpu-build /opt/em-inf /opt/em-inf
COPY deploy/container/ /opt/em-inf/container/
# Whatever wants to write, writes below /cache or /tmp; the rest can be read-only. Group 0
# may write there, so any user id will do: Docker and OpenShift put it into that group.
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /cache em-inf \
 && install -d -o 10001 -g 0 -m 0775 /cache
ENV PATH=/opt/em-inf/container:/opt/em-inf/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache USER=em-inf LOGNAME=em-inf \
    XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm VLLM_CONFIG_ROOT=/cache/vllm-config \
    NUMBA_CACHE_DIR=/cache/numba TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor MPLCONFIGDIR=/cache/matplotlib
VOLUME ["/cache", "/tmp"]
WORKDIR /cache
USER 10001:0
EXPOSE 8000
# Exec form: the server is process 1 and gets Docker's SIGTERM. A later flag of the same
# name wins, so all of this can be changed behind IMAGE.
ENTRYPOINT ["em-inf", "serve", "--shutdown-timeout", "20"]
HEALTHCHECK --start-period=15m --interval=30s --timeout=30s --retries=3 \
  CMD ["em-inf-health", "--ready"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="em-inf" \
      org.opencontainers.image.description="OpenAI-compatible server on vLLM with EM-INF, CPU build and bundled model" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM ${GPU_BASE} AS gpu
USER 0
COPY --from=build /dist /opt/em-inf/dist
COPY deploy/locks/cuda.txt deploy/container/ /opt/em-inf/container/
# The base's packages stay as they are; what is missing comes in the lock's versions. A base
# whose versions cannot go with ours, or whose vLLM nobody tested, ends the build here.
RUN uv pip freeze --system > /tmp/all.txt \
 && grep '==' /tmp/all.txt > /opt/em-inf/base.txt \
 && awk -F '==' 'NR == FNR {base[tolower($1)] = 1; next} !(tolower($1) in base)' \
      /opt/em-inf/base.txt /opt/em-inf/container/cuda.txt > /tmp/missing.txt \
 && uv pip install --system --no-cache --constraint /opt/em-inf/base.txt \
      --constraint /tmp/missing.txt \
      "em-inf[cli,server] @ file://$(echo /opt/em-inf/dist/*.whl)" \
 && python3 -c "from em_inf.server.cli import check_vllm; check_vllm()" \
 && rm -r /tmp/all.txt /tmp/missing.txt /opt/em-inf/dist \
 && useradd --uid 10001 --gid 0 --no-create-home --home-dir /cache em-inf \
 && install -d -o 10001 -g 0 -m 0775 /cache
ENV PATH=/opt/em-inf/container:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache USER=em-inf LOGNAME=em-inf \
    XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm VLLM_CONFIG_ROOT=/cache/vllm-config \
    NUMBA_CACHE_DIR=/cache/numba TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor MPLCONFIGDIR=/cache/matplotlib \
    CUDA_CACHE_PATH=/cache/cuda FLASHINFER_WORKSPACE_BASE=/cache
VOLUME ["/cache", "/tmp"]
WORKDIR /cache
USER 10001:0
EXPOSE 8000
ENTRYPOINT ["em-inf", "serve", "--shutdown-timeout", "20"]
HEALTHCHECK --start-period=15m --interval=30s --timeout=30s --retries=3 \
  CMD ["em-inf-health", "--ready"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="em-inf" \
      org.opencontainers.image.description="OpenAI-compatible server on vLLM with EM-INF, for NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="vllm/vllm-openai:v0.33.0"
