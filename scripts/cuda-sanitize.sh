#!/usr/bin/env bash
# Runs the checks of the CUDA backend under compute-sanitizer and prints a table; needs a GPU, the tool, and a
# `cuda_check` that was built elsewhere. Ends with 1 if a tool found something, lost track of a kernel, or a check
# failed; what did not end in its time is in the table, and no failure.
#
#   scripts/cuda-sanitize.sh target/release/examples/cuda_check [FOLDER FOR THE LOGS]
#   SECONDS_EACH=300 JOBS=4 TOOLS=racecheck ...
#
# Mostly kernels are launched one by one, because a tool instruments every kernel of every graph. Racecheck is not run
# unless it is asked for: version 2025.3.1 fails inside most of these kernels ("failed to handle a hardware exception",
# where memcheck finds nothing), or does not end. It is given one kind of kernel at a time (a part of their names, the
# second column).
#
# What the tools cannot see: memory is taken in three pieces that are written whole at start, so memcheck finds what
# leaves a piece, not what leaves a buffer in it, and initcheck only what nobody set. Blocks of the kernel of all layers
# exchange data through words in global memory that were ABSENT (flow.cuh), where racecheck does not look.
set -uo pipefail
check=$(realpath "${1:?usage: cuda-sanitize.sh CUDA_CHECK [FOLDER]}")
logs=${2:-$(mktemp -d)}
mkdir -p "$logs"
each=${SECONDS_EACH:-240}
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /opt/nvidia/*/compute-sanitizer 2>/dev/null | head -1)
[ -n "$sanitizer" ] || { echo "there is no compute-sanitizer" >&2; exit 2; }

# Part of a kernel's name, graphs or not, part of the names of the checks.
memory='all graphs model qwen2
all single kernel gemm bf16
all single kernel gemm nf4
all single kernel gemm Q4_0
all single model tiny
all single model qwen3
all single model wide group
all single model heads of 128
all single model sliding
all single model many 12
all single model deep, heads of 128
all single model deep, odd sizes
all single model deep, NF4
all single model deep, fp8
all single model long
all single sampling'
races='sample single model gguf
attend single model wide group
skinny single model gguf
gemm single model gguf
norm single model qwen3
embed single model gguf
pack single model deep, NF4
layers single model deep, heads of 128
layers single model deep, NF4'

run() {
    local tool=$1 kernel=$2 graphs=$3 filter=$4 row=$5 begin=$SECONDS code
    local name=$logs/$tool-$kernel-${filter//[^A-Za-z0-9]/_} options=() before=()
    [ "$kernel" = all ] || options=(--kernel-name "kernel_substring=$kernel")
    [ "$graphs" = graphs ] || before=(--no-graphs)
    timeout "$each" "$sanitizer" --tool "$tool" "${options[@]}" --error-exitcode 99 --print-limit 20 \
        --log-file "$name.tool" "$check" "${before[@]}" "$filter" >"$name.checks" 2>&1 </dev/null
    code=$?
    local checks found verdict=ok
    checks=$(tail -n 1 "$name.checks" | grep -E '^[0-9]+ passed' || echo -)
    found=$(grep -hE 'SUMMARY:' "$name.tool" | tail -n 1 | sed 's/^=* *//')
    # The first thing that it says is wrong, since logs do not always come back from where the GPU is.
    [[ $found == *': 0 errors'* ]] ||
        found+="; $(grep -hvE 'COMPUTE-SANITIZER|SUMMARY|^=+ *$' "$name.tool" | head -n 1 | sed 's/^=* *//')"
    # A filter that fits no check passes nothing.
    [ "$code" = 0 ] && [[ $checks != 0* ]] || verdict=FAILED
    [ "$code" != 124 ] || verdict="not ended"
    grep -q 'Internal Sanitizer Error' "$name.tool" && verdict=UNTRACKED
    printf '%-10s %-7s %-7s %-28s %-24s %4ss  %-10s %s\n' "$tool" "$kernel" "$graphs" "$filter" "$checks" \
        $((SECONDS - begin)) "$verdict" "$found" >"$row"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
"$sanitizer" --version | grep -i version
date -u +%FT%TZ
number=100
for tool in ${TOOLS:-memcheck initcheck synccheck}; do
    list=$memory
    [ "$tool" = racecheck ] && list=$races
    # Three at a time it ran out of memory, and lost track of launches.
    most=${JOBS:-4}
    [ "$tool" = synccheck ] && most=1
    while read -r kernel graphs filter; do
        while [ "$(jobs -rp | wc -l)" -ge "$most" ]; do wait -n; done
        number=$((number + 1))
        run "$tool" "$kernel" "$graphs" "$filter" "$logs/$number.row" &
    done <<<"$list"
done
wait
cat "$logs"/*.row
! grep -qE 'FAILED|UNTRACKED' "$logs"/*.row
