# The image of every process of kb: API, worker, beat, migrations.
#
#   docker build --tag kb-engine:0.1.0 .
#   docker run --rm --publish 127.0.0.1:8000:8000 --volume kb-data:/data kb-engine:0.1.0
#
# Torch from the default index brings the CUDA libraries, some 5 GB that nothing here uses. With
# --build-arg TORCH_INDEX_URL=... it comes from an index that holds CPU builds.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX_URL=""
ENV PATH=/opt/kb/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HUB_OFFLINE=1
WORKDIR /src
RUN python -m venv /opt/kb/venv

COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch
# The dependencies before the sources, so that a change of ours does not install them again.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "import pathlib, tomllib; p = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; \
print(*p['dependencies'], *p['optional-dependencies']['service'], *p['optional-dependencies']['otel'], sep='\n')" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

COPY README.md LICENSE ./
COPY kb kb
COPY pipelines pipelines
COPY workers workers
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt --no-deps . \
    && pip check
# The packaged model as ONNX, so that a container answers at once. A fallback to torch fails here.
RUN cd / && python -c "from pathlib import Path; \
from kb.adapters.local_embedder import LocalEmbedder; \
embedder = LocalEmbedder(None, cache_dir=Path('/opt/kb/models')); \
assert embedder.backend == 'onnx', embedder.backend; embedder.close()"

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 kb \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin kb \
    # Both are mount points: a new volume takes over the owner from here.
    && mkdir --parents /data/blobs && chown --recursive kb:kb /data
COPY --from=build /opt/kb/venv /opt/kb/venv
COPY --from=build --chown=kb:kb /opt/kb/models /opt/kb/models
ENV PATH=/opt/kb/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    TOKENIZERS_PARALLELISM=false \
    KB_DATA_DIR=/data \
    KB_HOST=0.0.0.0 \
    KB_PORT=8000 \
    KB_EMBEDDING__CACHE_DIR=/opt/kb/models
USER 10001:10001
WORKDIR /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['KB_PORT']}/health/ready\", timeout=4)"]
# The exec form: kb itself gets SIGTERM, and hands its work back.
ENTRYPOINT ["kb"]
CMD ["serve"]
