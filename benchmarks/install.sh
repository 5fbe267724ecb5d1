#!/bin/sh
# What `make bench` compares with: Debian's packages, and each router from PyPI in an environment
# of its own, because some of them bring the same command. What cannot be had is said, and
# `make bench` goes without it.
#
#   sh benchmarks/install.sh            haproxy, nginx, wrk, vllm-router, smg, sglang-router
#   LITELLM=1 sh benchmarks/install.sh  LiteLLM too: 750 MB
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
RIVALS=.venv-bench

say() { echo "bench-install: $*"; }

debian_packages() {
    missing=
    for name in haproxy nginx wrk; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$name" >/dev/null || missing="$missing $name"
    done
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here: install$missing yourself"
        return 0
    fi
    as_root=
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            say "neither root nor sudo: install$missing yourself"
            return 0
        fi
        as_root=sudo
    fi
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 - words on purpose
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing ||
        say "apt-get could not install$missing"
}

router() {
    name=$1 requirement=$2
    place=$RIVALS/$name
    if [ -e "$place/.installed-$requirement" ]; then return 0; fi
    say "$requirement"
    rm -rf "$place"
    "$PYTHON" -m venv "$place" &&
        "$place/bin/python" -m pip install --quiet "$requirement" &&
        touch "$place/.installed-$requirement" ||
        say "pip could not install $requirement: the benchmark goes without it"
}

debian_packages
router vllm-router vllm-router==0.1.17
router smg smg==1.13.0
router sglang-router sglang-router==0.3.2
[ -z "${LITELLM:-}" ] || router litellm 'litellm[proxy]==1.106.2'
