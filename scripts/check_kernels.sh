#!/usr/bin/env bash
# Everything about the kernels that needs an NVIDIA GPU: check_kernels.sh test|sanitize|bench|tune [arguments of the benchmark]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
tests=(-m pytest -q -p no:cacheprovider --confcutdir=tests/deltaserve/ops tests/deltaserve/ops)
mode=${1:?test, sanitize, bench or tune}
shift
case $mode in
  test) # real and emulated alike; graphs and warm-up only here
    "$python" "${tests[@]}" -k "cuda or graph or warming" "$@" ;;
  sanitize) # a cross-section, since it runs many times slower; without a caching allocator, tensors end where allocations do
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    some="cuda and (every_codec or (traffic and skewed) or (sparse and 32-128) or writes_what or 45-576-45 or (equals and 1024 and 5000))"
    for tool in ${TOOLS:-memcheck racecheck}; do
      echo "== $tool"
      timeout "${SECONDS_A_TOOL:-200}" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
        "$python" "${tests[@]}" --timeout=0 -x -k "$some" "$@"
    done ;;
  bench) "$python" -m benchmarks.kernels "$@" ;;
  tune) "$python" -m benchmarks.kernels --tune "$@" ;;
  *) echo "no such mode: $mode" >&2; exit 2 ;;
esac
