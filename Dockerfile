# The environment of constraints.txt, object storage's packages too, and this repository in /lgd, for Ray's nodes and
# for one machine:
#   docker build --build-arg COMMIT="$(git rev-parse HEAD)" -t registry.example/lgd .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD/results:/lgd/results" registry.example/lgd lgd sweep run components
FROM python:3.11-slim-bookworm

# KubeRay asks with wget whether a node of Ray is well. Triton compiles what starts its kernels with gcc.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /lgd

# The environment is made from these alone, so that a change to the code does not make it again.
COPY constraints.txt pyproject.toml hatch_build.py README.md LICENSE ./
COPY tools/setup_env.py tools/repack_detectron2.py tools/
COPY lgd/__init__.py lgd/
RUN PIP_NO_CACHE_DIR=1 python tools/setup_env.py --storage

# Login shells, with which older KubeRay starts Ray, set PATH anew.
ENV PATH=/lgd/.venv/bin:$PATH NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN echo 'export PATH=/lgd/.venv/bin:$PATH' > /etc/profile.d/lgd.sh

COPY . .

# The records name it: the image has no .git.
ARG COMMIT=
ENV LGD_COMMIT=$COMMIT
CMD ["lgd", "--help"]
