#!/usr/bin/env bash
# Compiles crates/cuda/kernels/powerband.cu into the fatbin that the crate embeds.
# Needs no installed CUDA toolkit and no GPU: nvcc comes from the Python package registry (105 MB,
# kept under the user's cache folder). Run it after every change to a kernel; a test of the crate
# compares the hash of the sources with the one written here.
#
#   scripts/cuda-build.sh            all architectures
#   scripts/cuda-build.sh 90a        only these (to try things out; not to be checked in)
#   OUT=FILE scripts/cuda-build.sh 80:90    what sm_80 is given, as machine code of sm_90: `cuda_check fatbin=FILE as=8.0`
#   OUT=FILE POWERBAND_NVCC_FLAGS=-DHAS_WGMMA=0 scripts/cuda-build.sh 90a    what sm_100a is given: as=10.0
#   POWERBAND_NVCC=nvcc ...          an nvcc of your own (13.0)
set -euo pipefail
cd "$(dirname "$0")/.."

version=13.0
kernels=crates/cuda/kernels
nvcc=${POWERBAND_NVCC:-}
command -v g++ >/dev/null 2>&1 || { echo "nvcc needs g++: apt-get install g++" >&2; exit 3; }
if [ -z "$nvcc" ]; then
    home=${XDG_CACHE_HOME:-$HOME/.cache}/powerband/nvcc-$version
    nvcc=$home/nvidia/cu13/bin/nvcc
    if [ ! -x "$nvcc" ]; then
        wheels=$(mktemp -d)
        trap 'rm -rf "$wheels"' EXIT
        packages=()
        for name in nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl; do
            packages+=("$name==$version.*")
        done
        python3 -m pip download --quiet --no-deps --only-binary=:all: -d "$wheels" "${packages[@]}" ||
            { echo "nvcc could not be fetched" >&2; exit 3; }
        mkdir -p "$home"
        for wheel in "$wheels"/*.whl; do
            python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])' "$wheel" "$home"
        done
        chmod +x "$home"/nvidia/cu13/bin/* "$home"/nvidia/cu13/nvvm/bin/*
    fi
fi

# Machine code for each generation, and PTX of the oldest for those yet to come.
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(80 86 89 90a 100a 120a)
arch=()
for target in "${targets[@]}"; do
    arch+=(-gencode "arch=compute_${target%:*},code=sm_${target#*:}")
done
[ $# -gt 0 ] || arch+=(-gencode "arch=compute_80,code=compute_80")

"$nvcc" -std=c++17 -O3 --threads 2 -fatbin --compress-mode=size -Werror all-warnings \
    ${POWERBAND_NVCC_FLAGS:-} "${arch[@]}" "$kernels/powerband.cu" -o "${OUT:-$kernels/powerband.fatbin}"
[ -z "${OUT:-}" ] || exit 0
(cd "$kernels" && LC_ALL=C cat -- *.cu *.cuh | sha256sum | cut -d' ' -f1) >"$kernels/powerband.sha256"
ls -l "$kernels/powerband.fatbin" >&2
