# The operator's image. BASE is any Debian-like image with Python 3.11.
ARG BASE=python:3.11-slim-bookworm
# The base's own pip installs into a venv that has none.
ARG INSTALL="python3 -m pip --python /opt/venv/bin/python install --quiet --no-cache-dir --no-compile --disable-pip-version-check"
# A certificate bundle to trust while building, where the network needs one; the image does not refer to it.
ARG SSL_CERT_FILE

FROM ${BASE} AS tools
ARG SSL_CERT_FILE
COPY requirements/bootstrap.txt /build/requirements/
RUN python3 -m venv /opt/tools \
 && PIP_CERT=${SSL_CERT_FILE} /opt/tools/bin/pip install --quiet --no-cache-dir --require-hashes -r /build/requirements/bootstrap.txt

FROM ${BASE} AS dependencies
ARG INSTALL
ARG SSL_CERT_FILE
# Written by hand: a minimal base has no useradd on its PATH.
RUN echo 'finetune:x:65532:65532::/nonexistent:/usr/sbin/nologin' >> /etc/passwd && echo 'finetune:x:65532:' >> /etc/group
COPY requirements/operator.txt /opt/venv/
# Compiled here, since the root file system may be read-only later; unchecked, since the files of an image do not change.
RUN python3 -m venv --without-pip /opt/venv \
 && PIP_CERT=$SSL_CERT_FILE $INSTALL --require-hashes -r /opt/venv/operator.txt \
 && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib

FROM tools AS project
WORKDIR /build
# The build back end is held to the hashes of the development lock.
COPY requirements/dev.txt requirements/
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY trainer_image/finetune_trainer trainer_image/finetune_trainer
# Into a tree of its own, which becomes the image's last layer: a change of code changes nothing else.
RUN python3 -m venv --without-pip /opt/venv \
 && /opt/tools/bin/uv build --quiet --system-certs --no-cache --wheel --require-hashes --build-constraints requirements/dev.txt --out-dir dist \
 && /opt/tools/bin/uv pip install --quiet --no-cache --python /opt/venv/bin/python --no-deps --prefix /project/opt/venv dist/*.whl \
 && /opt/venv/bin/python -m compileall -q -s /project -p / --invalidation-mode unchecked-hash /project/opt/venv/lib \
 && chmod -R a+rX /project

FROM dependencies
COPY --from=project /project/ /
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# By number, so that runAsNonRoot can be checked without the image's passwd file.
USER 65532:65532
ENTRYPOINT ["finetune-operator"]
