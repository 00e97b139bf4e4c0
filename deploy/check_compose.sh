#!/usr/bin/env bash
# Brings the stack up with Docker Compose, sends it the demo's requests, scales it, kills and stops parts of it under
# load, and takes it down: docs/deploy.md has its output. Where no Docker engine runs, podman's service takes its place.
#
#   deploy/check_compose.sh            the stack as it is
#   deploy/check_compose.sh s3         the same on S3
#
# SERVICES   what is started (default: all); for machines that cannot pull every image
# PYTHON     with DeltaServe installed (default: .venv/bin/python)
# COMPOSE    the compose command (default: docker compose)
# REQUESTS   demo (default), or packed: without the compression, which takes minutes on a busy machine
# BUILD      no: the images are there
# BUILD_ARGS more flags of `compose build`, such as --build-arg TORCH_INDEX=
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD ROUTER_PORT=${ROUTER_PORT:-55051} HTTP_PORT=${HTTP_PORT:-58000} PROMETHEUS_PORT=${PROMETHEUS_PORT:-59090}
PYTHON=${PYTHON:-.venv/bin/python}
files="-f compose.yaml"
[ "${1:-}" = s3 ] && files="$files -f compose.s3.yaml"
work=$(mktemp -d)
pids=()

say() { printf '\n== %s (%(%H:%M:%S)T)\n' "$*" -1; }
compose() { ${COMPOSE:-docker compose} $files -p "${PROJECT:-deltaserve-check}" "$@"; }
requests() { "$PYTHON" deploy/send_requests.py "127.0.0.1:$ROUTER_PORT" "$@"; }
containers() { compose ps -q "$1"; }

finish() {
    status=$?
    [ $status = 0 ] || compose logs --tail 30 || true
    say down
    compose down -v --timeout 60 || true
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
    [ $status = 0 ] && say "all of it worked" || say "FAILED"
    exit $status
}
trap finish EXIT

# Without a Docker engine: podman speaks its API. It builds without BuildKit, and nobody but us runs its health checks.
if ! docker info >/dev/null 2>&1; then
    podman system service -t 0 "unix://$work/podman.sock" 2>"$work/podman.log" &
    pids+=($!)
    export DOCKER_HOST="unix://$work/podman.sock" DOCKER_BUILDKIT=0
    while sleep 2; do podman ps -q | xargs -r -n 1 podman healthcheck run || true; done >/dev/null 2>&1 &
    pids+=($!)
    until [ -S "$work/podman.sock" ]; do sleep 0.2; done
    pid_of() { podman inspect -f '{{.State.Pid}}' "$1"; }
else
    pid_of() { docker inspect -f '{{.State.Pid}}' "$1"; }
fi

# Streams under way while something happens to the stack. $1: `none` when no stream may fail, `some` when those on a
# killed worker may; the rest is what happens.
under_load() {
    allowed=$1
    shift
    "$PYTHON" deploy/send_requests.py "127.0.0.1:$ROUTER_PORT" steady >"$work/steady" & # not `requests`: it gets a signal
    load=$!
    sleep 5
    "$@"
    sleep 10
    kill "$load"
    wait "$load" || [ "$allowed" = some ]
    cat "$work/steady"
}

kill_a_worker() {
    victim=$(containers worker | head -1)
    echo "SIGKILL to the first process of $victim"
    kill -9 "$(pid_of "$victim")"
    requests workers 3
}

say build
[ "${BUILD:-yes}" = no ] || compose build ${BUILD_ARGS:-} router compressor worker
say "up --wait"
compose up -d --wait --wait-timeout 300 ${SERVICES:-}
compose ps --format 'table {{.Service}}\t{{.Status}}'
for service in router compressor worker; do
    echo "$service runs as uid $(compose exec -T "$service" id -u)"
done
compose exec -T router python -c 'import importlib.util as u; print("torch in the router image:", u.find_spec("torch"))'

say "requests: ${REQUESTS:-demo}"
requests workers 1
requests "${REQUESTS:-demo}"

say "--scale worker=3, under load"
under_load none compose up -d --wait --no-recreate --scale worker=3 ${SERVICES:-}
requests workers 3

say "a worker is killed, under load; the engine starts it again"
under_load some kill_a_worker

say "--scale worker=1, under load: workers drain"
under_load none compose up -d --no-recreate --scale worker=1 ${SERVICES:-}
requests workers 1

say "OpenAI's API"
"$PYTHON" - <<PY
import json, urllib.request
print([m["id"] for m in json.load(urllib.request.urlopen("http://127.0.0.1:$HTTP_PORT/v1/models"))["data"]])
PY

case " ${SERVICES:-prometheus} " in *" prometheus "*)
    say "what Prometheus scrapes"
    "$PYTHON" - <<PY
import json, urllib.request
targets = json.load(urllib.request.urlopen("http://127.0.0.1:$PROMETHEUS_PORT/api/v1/targets"))["data"]["activeTargets"]
for target in sorted(targets, key=lambda t: t["labels"]["job"]):
    print(target["labels"]["job"], target["health"], target["lastError"])
rules = json.load(urllib.request.urlopen("http://127.0.0.1:$PROMETHEUS_PORT/api/v1/rules"))["data"]["groups"]
print(sum(len(group["rules"]) for group in rules), "alert rules loaded")
assert targets and all(target["health"] == "up" for target in targets)
PY
esac

say stop
compose stop --timeout 60
# a worker or router that had to be killed would say 137
for service in router compressor worker; do compose ps -a --format '{{.Service}} {{.Status}}' "$service"; done
