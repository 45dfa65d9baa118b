#!/usr/bin/env bash
# `make test-containers`: builds the image, brings the stack up and breaks it, on the Docker engine that runs
# here, or as root on one that is started for it and ended again.
#
# What cannot be fetched is made: base images of Debian's packages where no registry answers, and an index with
# the CPU build of PyTorch, from wherever pip finds its wheel, where PyTorch's own does not. WORK names a folder
# to keep for the next run; PYTHON the interpreter with the project's packages for tests.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-.venv/bin/python}
RELEASE=bookworm
PYTHON_IMAGE=python:3.11-slim-$RELEASE
REDIS_IMAGE=redis:7.2-$RELEASE
CERTIFICATES=/etc/ssl/certs/ca-certificates.crt
DEBIAN=${DEBIAN:-http://deb.debian.org/debian}
started=()

say() { echo "containers: $*" >&2; }

finish() {
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
  [ -z "${temporary:-}" ] || rm -rf "$temporary"
}
trap finish EXIT

if [ -z "${WORK:-}" ]; then
  temporary=$(mktemp -d)
  WORK=$temporary
fi
mkdir -p "$WORK"

install_missing() {
  local missing=()
  command -v dockerd >/dev/null || missing+=(docker.io iptables iproute2)
  command -v debootstrap >/dev/null || missing+=(debootstrap)
  [ "${#missing[@]}" -eq 0 ] && return
  say "installing ${missing[*]}"
  apt-get update --quiet --quiet
  DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}"
}

start_engine() {
  [ "$(id -u)" -eq 0 ] || { say "no Docker engine runs, and only root can start one"; exit 1; }
  install_missing
  export DOCKER_HOST=unix://$WORK/docker.sock
  say "starting an engine in $WORK"
  dockerd --data-root "$WORK/data" --exec-root "$WORK/exec" --pidfile "$WORK/dockerd.pid" \
    --host "$DOCKER_HOST" >"$WORK/dockerd.log" 2>&1 &
  started+=($!)
  for _ in $(seq 100); do
    docker info >/dev/null 2>&1 && return
    sleep 0.2
  done
  tail -5 "$WORK/dockerd.log" >&2
  exit 1
}

# Compose is no package of this release of Debian; the next one's plugins are linked statically.
fetch_compose() {
  local apt="$WORK/apt"
  export DOCKER_CONFIG=$WORK/config
  if [ ! -x "$DOCKER_CONFIG/cli-plugins/docker-compose" ]; then
    say "fetching compose"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$DOCKER_CONFIG/cli-plugins"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $DEBIAN trixie main" >"$apt/sources.list"
    local options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
      -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" --quiet --quiet update
    (cd "$apt" && apt-get "${options[@]}" --quiet --quiet download docker-compose docker-buildx)
    for package in "$apt"/*.deb; do dpkg -x "$package" "$apt/unpacked"; done
    cp "$apt"/unpacked/usr/libexec/docker/cli-plugins/* "$DOCKER_CONFIG/cli-plugins/"
  fi
  docker compose version >&2
}

have_image() { docker image inspect "$1" >/dev/null 2>&1 || docker pull --quiet "$1" >/dev/null 2>&1; }

make_images() {
  have_image $PYTHON_IMAGE && have_image $REDIS_IMAGE && return
  say "no registry answers: making $PYTHON_IMAGE and $REDIS_IMAGE of Debian's packages"
  local root="$WORK/rootfs"
  if [ ! -d "$root" ]; then
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip,libstdc++6 \
      $RELEASE "$root.partial" "$DEBIAN" >"$WORK/debootstrap.log"
    cp $CERTIFICATES "$root.partial$CERTIFICATES"
    rm -f "$root.partial"/usr/lib/python3*/EXTERNALLY-MANAGED
    ln -s python3 "$root.partial/usr/bin/python"
    mv "$root.partial" "$root"
  fi
  local certified="ENV PIP_CERT=$CERTIFICATES SSL_CERT_FILE=$CERTIFICATES PIP_TRUSTED_HOST=$(gateway)"
  tar -C "$root" -c . | docker import --change "$certified" - $PYTHON_IMAGE >/dev/null
  docker build --quiet --tag $REDIS_IMAGE - >/dev/null <<END
FROM $PYTHON_IMAGE
RUN apt-get update && apt-get install --yes --no-install-recommends redis-server \
    && groupmod --non-unique --gid 999 redis && usermod --non-unique --uid 999 redis
END
}

# This machine as containers see it.
gateway() { ip -4 -oneline address show docker0 | awk '{ sub("/.*", "", $4); print $4 }'; }

serve_torch() {
  local official=https://download.pytorch.org/whl/cpu
  curl --silent --fail --max-time 20 --output /dev/null "$official/torch/" && return
  say "PyTorch's index does not answer: serving the wheel that pip finds"
  mkdir -p "$WORK/index/torch"
  ls "$WORK/index/torch"/*.whl >/dev/null 2>&1 || "$PYTHON" -m pip download --quiet --no-deps \
    --dest "$WORK/index/torch" --requirement deploy/requirements/cpu.txt
  # The same address every time: it is part of what the image's layers are cached by.
  "$PYTHON" -m http.server 38111 --bind "$(gateway)" --directory "$WORK/index" >/dev/null 2>&1 &
  started+=($!)
  export TORCH_INDEX="http://$(gateway):38111"
}

docker info >/dev/null 2>&1 || start_engine
docker compose version >/dev/null 2>&1 || fetch_compose
make_images
serve_torch
CONTAINER_TESTS=1 "$PYTHON" -m pytest -p no:randomly -n 0 tests/e2e/test_containers.py "$@"
