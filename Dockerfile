# One image for all roles; its arguments name the role: coordinator, draft_service, target_service, planner,
# or sequoia for the command line. Build argument TORCH: cpu, or cuda for NVIDIA GPUs.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Which g++ compiles the engine does not matter, and Debian keeps no old ones.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/sequoia
ENV PATH=/opt/sequoia/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build

COPY deploy/requirements/ requirements/
RUN pip install --require-hashes --no-deps --requirement requirements/common.txt
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN case "${TORCH}" in \
      cpu) pip install --no-deps --index-url "${TORCH_INDEX}" --requirement requirements/cpu.txt ;; \
      cuda) pip install --no-deps --require-hashes --requirement requirements/cuda.txt ;; \
      *) echo "TORCH is ${TORCH}: neither cpu nor cuda" >&2; exit 1 ;; \
    esac

# The engine for CPUs, for every processor that it can run on: it is compiled here, for no compiler goes along.
COPY pyproject.toml README.md LICENSE ./
COPY coordinator/ coordinator/
COPY draft_service/ draft_service/
COPY planner/ planner/
COPY sequoia/ sequoia/
COPY target_service/ target_service/
RUN pip install --no-deps --no-build-isolation . \
    && python -P -m sequoia.runtime.native && pip check

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Sequoia" \
      org.opencontainers.image.description="Lossless speculative LLM generation as a service" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 sequoia \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin sequoia \
    && install --directory --owner=10001 --group=10001 /models
COPY --from=build /opt/sequoia /opt/sequoia
# Nothing is written but models, by `sequoia models pull`, and temporary files.
ENV PATH=/opt/sequoia/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models/hub \
    SEQUOIA_CACHE=/models \
    SEQUOIA_HOST=0.0.0.0
VOLUME /models
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["python", "-m"]
CMD ["coordinator"]
