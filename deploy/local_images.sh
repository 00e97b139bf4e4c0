#!/usr/bin/env bash
# Images of the official names, made from Debian's and PyPI's packages alone, for machines that cannot pull from a registry
# of images: what deploy/check_compose.sh then runs on. Needs root and: podman runc netavark aardvark-dns mmdebstrap
# prometheus. They stand in for the official ones to test ours with; never push them.
#
# SSL_CERT_FILE  certificates that pip is to trust inside
# PIP_CONF       a pip configuration to use inside
# APT_SOURCES    sources that mmdebstrap uses (default: this machine's)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
pinned() { sed -n "s|^ *image: \($1:.*\)|\1|p" "$root"/compose*.yaml | head -1; }
build() { podman build --isolation=oci -q -t "docker.io/$1" -; }

echo "python:3.11-slim-bookworm, from Debian's python3"
nice mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,ca-certificates bookworm base.tar \
    "${APT_SOURCES:-/etc/apt/sources.list.d/debian.sources}"
podman import -q base.tar localhost/debian-python:bookworm
cp "${PIP_CONF:-/dev/null}" pip.conf
cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" certificates
cat >Dockerfile <<'END'
FROM localhost/debian-python:bookworm
RUN rm -f /usr/lib/python3.11/EXTERNALLY-MANAGED && ln -s python3 /usr/bin/python
COPY certificates /etc/ssl/certs/ca-certificates.crt
COPY pip.conf /etc/pip.conf
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
END
podman build --isolation=oci -q -t docker.io/library/python:3.11-slim-bookworm .

moto=$(pinned motoserver/moto)
echo "$moto, from PyPI"
build "$moto" <<END
FROM docker.io/library/python:3.11-slim-bookworm
RUN pip install -q --no-cache-dir "moto[s3]==${moto#*:}" flask flask-cors
ENTRYPOINT ["moto_server", "-H", "0.0.0.0"]
END

prometheus=$(pinned prom/prometheus)
echo "$prometheus, from Debian's $(dpkg-query -W prometheus)"
cp "$(command -v prometheus)" prometheus
cat >Dockerfile <<'END'
FROM docker.io/library/python:3.11-slim-bookworm
COPY prometheus /bin/prometheus
RUN mkdir /prometheus && chown 65534 /prometheus
USER 65534
ENTRYPOINT ["/bin/prometheus"]
END
podman build --isolation=oci -q -t "docker.io/$prometheus" .
