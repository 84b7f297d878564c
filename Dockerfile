# Two images of one tree, at the versions that the tests ran with (requirements-test.txt):
#   docker build --target service -t fraud-service .   answers HTTP; no torch, no Arrow, no tracker
#   docker build --target jobs -t fraud-jobs .         trains, warms, scores logs, serves MLflow
# Both run as user 10001 on a read-only root: what they write lies on volumes and in /tmp.

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /build
ENV PIP_CONSTRAINT=/build/requirements-test.txt
COPY pyproject.toml requirements-test.txt README.md LICENSE ./
COPY fraud fraud
COPY pipelines pipelines
COPY service service
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# What the project needs is installed without its code, so that a changed line of code builds neither environment again.
# An environment of its own (without pip) is copied whole into the image, whatever folder the base keeps packages in.
FROM python:3.11-slim-bookworm AS service-environment
WORKDIR /build
ENV PIP_CONSTRAINT=/build/requirements-test.txt
RUN python -m venv --without-pip /opt/fraud
COPY pyproject.toml requirements-test.txt ./
RUN touch README.md LICENSE && pip --python /opt/fraud/bin/python install --no-cache-dir '.[serve]'

# torch first and by itself: it is the largest. Where pip would find a build for GPUs, name an index of CPU builds:
# --build-arg TORCH_INDEX=URL
FROM python:3.11-slim-bookworm AS jobs-environment
ARG TORCH_INDEX=""
WORKDIR /build
ENV PIP_CONSTRAINT=/build/requirements-test.txt
RUN python -m venv --without-pip /opt/fraud
COPY requirements-test.txt ./
RUN pip --python /opt/fraud/bin/python install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    "$(head -n 1 requirements-test.txt)"
COPY pyproject.toml ./
RUN touch README.md LICENSE && pip --python /opt/fraud/bin/python install --no-cache-dir '.[train,serve]'

FROM python:3.11-slim-bookworm AS service
# The folders exist and are the user's, so that new named volumes take that over.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fraud \
 && mkdir /bundles /state \
 && chown fraud:fraud /bundles /state
COPY --from=service-environment /opt/fraud /opt/fraud
# Without pip's configuration, whatever it is here: all that this installs lies in the image.
COPY --from=wheel /wheels /opt/fraud/wheels
RUN PIP_CONFIG_FILE=/dev/null pip --python /opt/fraud/bin/python install \
    --no-cache-dir --no-index --no-deps --force-reinstall /opt/fraud/wheels/fraud-*.whl
ENV PATH=/opt/fraud/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
USER fraud
WORKDIR /state
EXPOSE 8000
# Alive, not ready: an orchestrator may kill what fails this, and a service that waits for its database must live.
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["fraud"]
CMD ["serve", "/bundles", "--follow", "--host", "0.0.0.0", "--port", "8000"]

FROM python:3.11-slim-bookworm AS jobs
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fraud \
 && mkdir /bundles /state /log /scores /artifacts \
 && chown fraud:fraud /bundles /state /log /scores /artifacts
COPY --from=jobs-environment /opt/fraud /opt/fraud
COPY --chmod=755 deploy/jobs.sh /opt/deploy/
COPY --from=wheel /wheels /opt/fraud/wheels
RUN PIP_CONFIG_FILE=/dev/null pip --python /opt/fraud/bin/python install \
    --no-cache-dir --no-index --no-deps --force-reinstall /opt/fraud/wheels/fraud-*.whl
ENV PATH=/opt/fraud/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
USER fraud
WORKDIR /tmp
ENTRYPOINT ["fraud"]
CMD ["--help"]
