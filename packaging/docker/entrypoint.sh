#!/bin/sh
# The first process of a container: its end is the end of all others there, of a keeper too. So it
# is not the service, but starts it, starts it anew when it was killed (which takes over from the
# keeper that has become the service meanwhile), and stays as long as a keeper serves.
set -u

service=
is_ending=
end() {
	is_ending=1
	[ -n "$service" ] && kill -TERM "$service" 2>/dev/null
}
trap end TERM INT

# Whether a process of this container serves, or keeps.
is_served() {
	for process in /proc/[0-9]*; do
		# A process that is over has no command line.
		case $(tr '\0' ' ' <"$process/cmdline" 2>/dev/null) in
		*lazyrestore._serve.keeper*) return 0 ;;
		esac
	done
	return 1
}

while :; do
	lazyrestore serve "$@" &
	service=$!
	[ -n "$is_ending" ] && kill -TERM "$service" 2>/dev/null
	# A signal to this process ends `wait`, not the service.
	while :; do
		wait "$service"
		status=$?
		kill -0 "$service" 2>/dev/null || break
	done
	service=
	# Above 128 it was killed. All else is its own decision.
	if [ -n "$is_ending" ] || [ "$status" -le 128 ]; then
		break
	fi
	echo "lazyrestore: the service was ended by signal $((status - 128)): starting another" >&2
done

# Peers that were left to the keeper are served on: until they end, or `docker stop` has no patience.
while is_served; do
	sleep 1 &
	wait $!
done
exit "$status"
