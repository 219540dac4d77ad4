# The operator's image: Kubernetes and Kopf, no torch, no storage client. Layers in the order in which they change.
#   docker build --tag finetune-operator .
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS packages
COPY requirements/install.sh requirements/uv.txt requirements/operator.txt /opt/requirements/
ARG UV_CACHE_DIR=/root/.cache/uv
RUN --mount=type=cache,target=/root/.cache/uv --mount=type=secret,id=ca,target=/run/secrets/ca.crt \
    sh /opt/requirements/install.sh /opt/requirements/operator.txt

FROM ${BASE_IMAGE} AS operator
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app HOME=/tmp
COPY --from=packages /opt/venv /opt/venv
COPY operator/finetune_api /app/finetune_api
COPY operator/finetune_operator /app/finetune_operator
# Validated by hash and not by time, since the files' times differ between two checkouts of one commit.
RUN python -m compileall -q --invalidation-mode unchecked-hash /app
USER 65532:65532
WORKDIR /app
ENTRYPOINT ["python", "-m", "finetune_operator"]
