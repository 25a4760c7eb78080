#!/usr/bin/env bash
# The CPU engine's tests on 64-bit Arm: as they are on such a machine, under QEMU's user emulation on
# another. They run with all instructions that there are, then on a CPU without dot products.
# Installs nothing; says what is missing. Set POWERBAND_TEST_MODEL for the golden tests of the default
# model; give `--check` to see only whether the crate compiles.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
sysroot="${POWERBAND_AARCH64_SYSROOT:-/usr/aarch64-linux-gnu}"

missing=()
need() { # what it is called, how it is got, a command that succeeds if it is there
    local name=$1 how=$2
    shift 2
    "$@" >/dev/null 2>&1 || missing+=("$name: $how")
}
has_target() { [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; }

native=false
[ "$(uname -m)" = aarch64 ] && native=true
need "Rust's standard library for $target" "rustup target add $target" has_target
if ! $native; then
    need aarch64-linux-gnu-gcc "apt-get install gcc-aarch64-linux-gnu" command -v aarch64-linux-gnu-gcc
    [ "${1:-}" = --check ] || need qemu-aarch64 "apt-get install qemu-user" command -v qemu-aarch64
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
fi
if [ ${#missing[@]} -gt 0 ]; then
    printf 'missing: %s\n' "${missing[@]}" >&2
    exit 3
fi

cargo check --quiet --target $target -p powerband-cpu
[ "${1:-}" = --check ] && exit
cargo check --quiet --target $target -p powerband-cli

run() { # a CPU that QEMU knows, then what to test of the crate
    local cpu=$1
    shift
    if ! $native; then
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $cpu -L $sysroot"
    fi
    cargo test --target $target -p powerband-cpu "$@"
}
# Emulated, the real models take minutes a test, so they are hidden (a path that is none) but for one
# test of golden values.
model="${POWERBAND_TEST_MODEL:-}"
if ! $native; then
    export POWERBAND_TEST_MODEL=/nonexistent XDG_CACHE_HOME=/nonexistent
fi
run max
if ! $native; then
    run cortex-a72
    [ -z "$model" ] || POWERBAND_TEST_MODEL=$model run max --test real_model
fi
