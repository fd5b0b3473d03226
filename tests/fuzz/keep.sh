#!/bin/bash
# keep.sh: make fixtures/fuzz anew from what fuzzing has learnt: of all images together the smallest set that covers the
# same. Images with a name of their own (what was found once, see fixtures/fuzz/README.md) stay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=build/fuzz
for name in reader restore; do
	rm -rf "$build/kept"
	mkdir -p "$build/kept"
	# Every edge once is enough; how often it was run through is not worth a file.
	"$build/fuzz_$name" -merge=1 -use_value_profile=0 -use_counters=0 -max_len=131072 -timeout=20 \
		"$build/kept" fixtures "$build/corpus-$name" 2>&1 | tail -n 1
	find fixtures/fuzz -regextype egrep -regex ".*/$name-[0-9a-f]{12}\.lzr" -delete
	for file in "$build"/kept/*; do
		hash=$(basename "$file")
		[[ -e fixtures/fuzz/reader-${hash:0:12}.lzr ]] || cp "$file" "fixtures/fuzz/$name-${hash:0:12}.lzr"
	done
done
du -sb fixtures/fuzz
