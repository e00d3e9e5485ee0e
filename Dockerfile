# docker build --build-arg GIT_COMMIT="$(git describe --always --abbrev=40 --dirty --exclude='*')" -t flowmatch-rl .
# docker run --rm --init --gpus all --shm-size=2g -v flowmatch-runs:/workspace/runs \
#   flowmatch-rl fit -c conf/actor_critic/pendulum.yaml

# NVIDIA's images check the driver at start, and bring what lets older drivers of data-centre GPUs run this CUDA release, the
# one that the torch of constraints.txt is built with. Its CUDA libraries stay unused: the wheels of torch load their own. So
# the "-base-" flavour of the same tag gives a smaller image, and any Debian or Ubuntu with Python 3.11 or newer works too.
ARG BASE_IMAGE=nvidia/cuda:13.0.3-runtime-ubuntu24.04
FROM ${BASE_IMAGE}

ARG BASE_IMAGE
ARG DEBIAN_FRONTEND=noninteractive

# Compilers and headers are for torch.compile, which builds code while it runs; the GL libraries for headless rendering.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates \
        g++ \
        gcc \
        libc6-dev \
        libegl1 \
        libgl1 \
        libglvnd0 \
        python3 \
        python3-dev \
        python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && /usr/bin/python3 -m venv /opt/venv

# Tells EGL about the driver's library: NVIDIA container toolkits before 1.12 mount the library alone.
RUN mkdir -p /usr/share/glvnd/egl_vendor.d \
    && printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "libEGL_nvidia.so.0"}}\n' \
        > /usr/share/glvnd/egl_vendor.d/10_nvidia.json

ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# pip reads it: an index with builds of torch for the CPU, which it prefers to those with CUDA. Empty for CUDA.
ARG PIP_EXTRA_INDEX_URL

# Dependencies alone, so that a change of the source leaves this layer as it is.
COPY pyproject.toml constraints.txt /opt/flowmatch_rl/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c 'import sys, tomllib; p = tomllib.load(sys.stdin.buffer); \
        print(*p["build-system"]["requires"], *p["project"]["dependencies"], sep="\n")' \
        < /opt/flowmatch_rl/pyproject.toml > /opt/flowmatch_rl/requirements.txt \
    && pip install -c /opt/flowmatch_rl/constraints.txt -r /opt/flowmatch_rl/requirements.txt

# A numeric id lets Kubernetes see that it isn't root. Every id may write here, for `docker run --user`.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /workspace/runs --shell /usr/sbin/nologin flowmatch \
    && install -d -m 1777 -o 10001 -g 10001 /workspace /workspace/runs
WORKDIR /workspace

COPY README.md LICENSE /opt/flowmatch_rl/
COPY flowmatch_rl /opt/flowmatch_rl/flowmatch_rl
RUN pip install --no-cache-dir --no-deps --no-build-isolation /opt/flowmatch_rl
COPY conf conf

# HOME and USER hold for ids without an entry in /etc/passwd too. Caches and temporary files lie on the volume: code is compiled
# once, not once per container, and a temporary file reaches its place by a rename, which is atomic. OMP_* keeps processes that
# share cores from stalling each other. SDL_* and GIT_* say that there is neither a display nor git.
ENV HOME=/workspace/runs \
    USER=flowmatch \
    TMPDIR=/workspace/runs \
    MUJOCO_GL=egl \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics \
    OMP_NUM_THREADS=1 \
    OMP_WAIT_POLICY=PASSIVE \
    SDL_VIDEODRIVER=dummy \
    GIT_PYTHON_REFRESH=quiet \
    PYTHONUNBUFFERED=1
VOLUME /workspace/runs
USER 10001:10001
ENTRYPOINT ["flowmatch-rl"]
CMD ["--help"]

# Last, since it changes with every commit.
ARG GIT_COMMIT=unknown
ENV FLOWMATCH_RL_GIT_COMMIT=${GIT_COMMIT}
LABEL org.opencontainers.image.title="flowmatch_rl" \
      org.opencontainers.image.description="A modular PyTorch Lightning trainer for flow-based reinforcement learning." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${GIT_COMMIT}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
