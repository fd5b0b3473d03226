#!/bin/sh
# run_tests.sh SECONDS PROGRAM...: run test programs one after another, each under a time limit.
#
# A program exits 0 (passed), 77 (all of it skipped) or otherwise (failed), prints "ok NAME", "skip NAME: reason" or
# "FAIL NAME: what", and ends with "test_x: N passed, N failed, N skipped". One that does not end so has not run to its
# end, whatever it exits with. Skips are repeated at the end: they must be seen.
limit=$1
shift
passed=0 failed=0 skipped=0 broken="" skips=""
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM

if [ $# -eq 0 ]; then
	echo "tests/c has no test programs" >&2
	exit 1
fi
for program in "$@"; do
	name=${program##*/}
	timeout --kill-after=5 "$limit" "$program" > "$log" 2>&1 < /dev/null
	code=$?
	last=$(grep -E "^$name: [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped\$" "$log" | tail -n 1)
	if [ -n "$last" ]; then
		counts=${last#"$name: "}
		program_passed=${counts%% passed*}
		counts=${counts#*, }
		program_failed=${counts%% failed*}
		counts=${counts#*, }
		program_skipped=${counts%% skipped*}
		passed=$((passed + program_passed))
		failed=$((failed + program_failed))
		skipped=$((skipped + program_skipped))
	else
		last="$name: did not come to its end"
		program_failed=1
		failed=$((failed + 1))
	fi
	case $code in
	0 | 77)
		why="" ;;
	124 | 137)
		why="stopped after $limit s" ;;
	*)
		why="exit code $code" ;;
	esac
	if [ -n "$why" ] && [ "$program_failed" -eq 0 ]; then
		failed=$((failed + 1))
	fi
	if [ -n "$why" ] || [ "$program_failed" -ne 0 ]; then
		cat "$log"
		echo "FAILED $last${why:+ ($why)}"
		broken="$broken $name"
	else
		echo "$last"
	fi
	skips="$skips$(sed -n "s/^skip /skip $name: /p" "$log" | sed 's/$/\\n/' | tr -d '\n')"
done
printf '%b' "$skips"
echo "C tests: $passed passed, $failed failed, $skipped skipped, in $# programs${broken:+; failed:$broken}"
[ "$failed" -eq 0 ] && [ -z "$broken" ]
