# An image with a project made by `cvl init` in /project. See docs/install.md.
#   docker build -t cvl-pipeline .                             for CPUs
#   docker build -t cvl-pipeline:cuda --build-arg DEVICE=cuda .      then run it with --gpus all
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheels

FROM python:${PYTHON}-slim
ARG DEVICE=cpu
ARG EXTRAS=metaworld,s3,suites,tuning,viz
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore MUJOCO_GL=egl
# For videos and pictures of the simulator.
RUN apt-get update && apt-get install --yes --no-install-recommends git libegl1 libgl1 \
    && rm -rf /var/lib/apt/lists/*
COPY requirements.lock /tmp/
# torch has an index of its own for CPU builds; the one of PyPI brings CUDA.
RUN case "$DEVICE" in \
        cpu) index="--index-url https://download.pytorch.org/whl/cpu" ;; \
        cuda) index="" ;; \
        *) echo "DEVICE is '$DEVICE': write cpu or cuda" >&2; exit 1 ;; \
    esac && pip install $index "$(grep '^torch==' /tmp/requirements.lock)"
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --constraint /tmp/requirements.lock "$(echo /tmp/wheels/*.whl)[$EXTRAS]" && rm -r /tmp/wheels
# Not root. Containers that mount a folder of yours need --user "$(id -u):$(id -g)" to write there.
RUN useradd --create-home cvl && install --directory --owner cvl /project
USER cvl
WORKDIR /project
RUN cvl init
VOLUME /project/data
ENTRYPOINT ["kedro"]
CMD ["run"]
