#!/bin/bash
# run.sh SECONDS: fuzz the reader and the lazy restore for so long in all, and report. See README.md.
#
# What is found is kept in build/fuzz/found/, and what was learnt in build/fuzz/corpus-*, for the next run to begin
# with. Exits with 1 for a finding.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
seconds=${1:?"how many seconds?"}
build=build/fuzz
CLANG=${CLANG:-clang}

# clang and its runtime of sanitizers and fuzzing, which Debian has in a package of its own.
has_fuzzer() {
	command -v "${CLANG%% *}" > /dev/null && mkdir -p "$build" \
		&& echo 'int LLVMFuzzerTestOneInput(void *d, long n); int LLVMFuzzerTestOneInput(void *d, long n) { return 0; }' \
		| $CLANG -fsanitize=fuzzer,address,undefined -x c - -o "$build/probe" 2> /dev/null
}
if ! has_fuzzer; then
	if ((EUID != 0)) || ! command -v apt-get > /dev/null; then
		echo "fuzzing needs clang with libFuzzer: apt-get install clang libclang-rt-dev" >&2
		exit 1
	fi
	echo "installing clang libclang-rt-dev"
	export DEBIAN_FRONTEND=noninteractive
	# Others may be installing, and mirrors may be slow.
	patient=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=5)
	apt-get "${patient[@]}" update -qq
	apt-get "${patient[@]}" install -y -qq --no-install-recommends clang libclang-rt-dev > /dev/null
	has_fuzzer || { echo "clang is there now, and cannot build a fuzzer" >&2; exit 1; }
fi

make --no-print-directory -s -C tests/fuzz -j"$(nproc)" CLANG="$CLANG"
mkdir -p "$build/found" "$build/corpus-reader" "$build/corpus-restore"

# fuzz NAME SECONDS
fuzz() {
	local log=$build/$1.log
	# A second of processor time is the harness's own limit (bounds.c); the clock's is for hangs. The largest single
	# allocation is limited here, all together there.
	if ! "$build/fuzz_$1" -max_total_time="$2" -max_len=131072 -timeout=20 -malloc_limit_mb=100 -rss_limit_mb=2048 \
		-print_final_stats=1 -artifact_prefix="$build/found/$1-" \
		"$build/corpus-$1" fixtures > "$log" 2>&1; then
		grep -avE '^#[0-9]+' "$log" | head -n 60
		echo "found: see $log, and to repeat it: $build/fuzz_$1 $build/found/$1-..." >&2
		return 1
	fi
	local last executed rate
	last=$(grep -aE '^#[0-9]+\s+DONE' "$log" | grep -oaE 'cov: [0-9]+ ft: [0-9]+ corp: [0-9]+')
	executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
	rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
	echo "fuzz_$1: nothing found in $2 s: $executed images, $rate a second, $last"
}

if "$build/fuzz_restore" -runs=0 "$build/corpus-restore" > "$build/restore.log" 2>&1; then
	fuzz reader $((seconds - seconds / 3))
	fuzz restore $((seconds / 3))
elif grep -aq 'no userfaultfd' "$build/restore.log"; then
	echo "fuzz_restore skipped: no userfaultfd that serves system calls too"
	fuzz reader "$seconds"
else
	cat "$build/restore.log"
	exit 1
fi
