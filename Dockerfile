# DIA on CPUs, without root. From the folder that holds the scans:
#   docker build -t dia CLONE
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" dia fit scans/normal --out runs/mine
# The image needs no network when it runs, and no disk to write to but /work and /tmp.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# extras of pyproject.toml
ARG EXTRAS="medical serve export"
# PyTorch's index of wheels for CPUs makes the image some gigabytes smaller; without it torch comes with CUDA
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml requirements.lock ./
COPY .ci/runtime.py .ci/
RUN python -m venv /opt/dia && python -m venv /opt/build \
 && python .ci/runtime.py ${EXTRAS} ${TORCH_INDEX:+--without-cuda} > runtime.txt \
 && python .ci/runtime.py --packages hatchling > build.txt \
 && if [ -n "${TORCH_INDEX}" ]; then \
      /opt/dia/bin/pip install --no-deps --index-url "${TORCH_INDEX}" "$(python .ci/runtime.py --version-of torch)"; \
    fi \
 && /opt/dia/bin/pip install --no-deps --require-hashes -r runtime.txt \
 && /opt/build/bin/pip install --no-deps --require-hashes -r build.txt
COPY README.md LICENSE NOTICE ./
COPY src src
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation -w wheels . \
 && /opt/dia/bin/pip install --no-deps wheels/*.whl \
 && /opt/dia/bin/pip check

FROM python:${PYTHON}-slim
COPY --from=build /opt/dia /opt/dia
ENV PATH=/opt/dia/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/matplotlib \
    HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 GRADIO_ANALYTICS_ENABLED=False ORT_DISABLE_TELEMETRY=1
RUN mkdir /work && chown 10001:10001 /work
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["dia"]
CMD ["--help"]
