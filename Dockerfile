# One image for the coordinator, workers and the gateway; the command says which (compose.yaml has all three).
#
#     docker build -t brigade .
#     docker build -t brigade:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .

# The Python and the Debian with which constraints.txt was made, held by digest: a tag may be another image tomorrow. For
# newer security fixes take the digest that `docker buildx imagetools inspect python:3.11-slim-bookworm` says, twice.
FROM python:3.11-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84 AS build

# Where torch alone comes from. cpu: no CUDA packages, which are several GB.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# For the kernels in worker/native. They stay in this stage.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/brigade
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY coordinator coordinator
COPY worker worker
COPY client client
COPY protocol protocol
COPY migrations migrations
RUN /opt/brigade/bin/pip install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)" \
 && /opt/brigade/bin/pip install -c constraints.txt '.[all]'


FROM python:3.11-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84

LABEL org.opencontainers.image.title="Brigade" \
      org.opencontainers.image.description="One large language model on all the machines that you own and trust" \
      org.opencontainers.image.licenses="Apache-2.0"

# A number, since Kubernetes' runAsNonRoot can't know what a name stands for. Files with secrets must be readable by it.
RUN groupadd --gid 10001 brigade \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/brigade brigade \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/brigade
COPY --from=build /opt/brigade /opt/brigade
COPY deploy/docker/healthcheck.py /opt/brigade/bin/brigade-healthcheck

# Everything that is kept is in /var/lib/brigade: mount a volume there.
ENV PATH=/opt/brigade/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BRIGADE_STATE=/var/lib/brigade/coordinator \
    BRIGADE_WORKER_STATE=/var/lib/brigade/worker \
    BRIGADE_CACHE=/var/lib/brigade/cache \
    HF_HOME=/var/lib/brigade/hugging-face
USER 10001:10001
WORKDIR /var/lib/brigade
VOLUME /var/lib/brigade
EXPOSE 7400 7500 8000

# SIGTERM, which docker sends, drains; give it time: docker stop --timeout 60.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python", "/opt/brigade/bin/brigade-healthcheck"]
CMD ["coord", "serve", "--listen", "0.0.0.0:7400"]
