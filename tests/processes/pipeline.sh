#!/bin/sh
# Numbers through a pipeline, for ever: pipeline.sh LOG COUNT
#
# Each line of LOG has a number, the sum of all until then, and "right" if the text that each shell
# holds in memory, of COUNT lines, has its lines at both ends of the pipeline. No number may be
# missing, and none may come twice.
log=$1
count=$2
text=$(seq 1 "$count")
newline='
'
# Is a line of the text, somewhere in its middle, where it should be?
look() {
	line=$(($1 * 7919 % (count - 2) + 2))
	case $text in
	*"$newline$line$newline"*) found=right ;;
	*) found=wrong ;;
	esac
}

number=0
while :; do
	number=$((number + 1))
	look "$number"
	echo "$number $found"
	sleep 0.01
done | grep --line-buffered . | {
	sum=0
	while read -r number first; do
		sum=$((sum + number))
		look $((number + 1))
		[ "$first" = right ] || found=wrong
		echo "$number $sum $found"
	done
} >> "$log"
