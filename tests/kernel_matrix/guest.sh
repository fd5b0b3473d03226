#!/bin/bash
# The first process of the guest: runs the tests, says how it went on /dev/ttyS1 (here: stdout), and switches off.
#
# The root is the host's file system under a layer in memory: paths are the host's, and nothing written here reaches it.
umask 022
exec < /dev/null
set -a
source /run/kernel-matrix/config
set +a
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
export TMPDIR=/run/tmp HYPOTHESIS_STORAGE_DIRECTORY=/run/tmp/hypothesis
export LAZYRESTORE_LIBRARY=$TREE/build/liblazyrestore.so LAZYRESTORE_FIXTURES=$TREE/fixtures
export TERM=dumb PYTHONPATH=$TREE
busybox=/run/kernel-matrix/busybox
failed=()

# end STATUS: the last line, which the host waits for
end() {
	printf '\nkernel-matrix: end %s\n' "$1"
	sync
	sleep 0.2
	"$busybox" poweroff -f
}
trap 'end 1' EXIT
# Whoever started this may be gone, and then nobody else ends it.
(sleep "$LIMIT" && "$busybox" poweroff -f) &

set_up() {
	mkdir -p /dev/shm /dev/pts
	mount -t tmpfs -o mode=1777 none /dev/shm
	mount -t devpts none /dev/pts
	ln -sf /proc/self/fd /dev/fd
	ln -sf /proc/self/fd/0 /dev/stdin
	ln -sf /proc/self/fd/1 /dev/stdout
	ln -sf /proc/self/fd/2 /dev/stderr
	mkdir -m 1777 "$TMPDIR"
	mkdir "$TMPDIR/nobody"
	chown 65534:65534 "$TMPDIR/nobody"
	"$busybox" ifconfig lo up
	mount -t cgroup2 none /sys/fs/cgroup
	echo +memory > /sys/fs/cgroup/cgroup.subtree_control
	echo 1 > /proc/sys/kernel/core_uses_pid
	echo "|/bin/false" > /proc/sys/kernel/core_pattern
	ulimit -c 0
	# An ordinary user must get at the tree, also in root's home.
	local path
	for path in "$TREE" "$(readlink -f "$PYTHON")" "$PYTHON" "$(readlink -f "$TREE/.venv")"; do
		while path=$(dirname "$path") && [[ $path != / ]]; do
			[[ -x $path && $(stat -c %a "$path") != *[1357] ]] && chmod a+x "$path"
		done
	done
	find "$TREE" -name .git -prune -o ! -type l ! -perm -o+r -exec chmod a+rX {} +
}

# run NAME COMMAND...: one line before, one after; a failure is kept for the end
run() {
	local name=$1 code=0 start=$SECONDS
	shift
	printf '\n== %s\n' "$name"
	# Through a pipe: no test shall take this for somebody's terminal.
	"$@" 2>&1 | cat
	code=${PIPESTATUS[0]}
	if ((code == 0)); then
		printf -- '-- ok    %s, %s s\n' "$name" $((SECONDS - start))
	else
		printf -- '-- FAIL  %s, exit code %s, %s s\n' "$name" "$code" $((SECONDS - start))
		failed+=("$name")
	fi
}

as_nobody() {
	setpriv --reuid=65534 --regid=65534 --clear-groups \
		env HOME=/nonexistent TMPDIR="$TMPDIR/nobody" \
		HYPOTHESIS_STORAGE_DIRECTORY="$TMPDIR/nobody/hypothesis" "$@"
}

# c_tests USER NAME...: the programs of tests/c with these names
c_tests() {
	local user=$1
	shift
	"$user" "$TREE/csrc/run_tests.sh" $((400 * TIME_FACTOR)) "${@/#/$TREE/build/tests/}"
}

# python_tests USER FILE...
python_tests() {
	local user=$1
	shift
	"$user" "$PYTHON" -m pytest -p no:cacheprovider -q "$@"
}

as_root() {
	"$@"
}

# What was built but has no source any more is not run, and what has a source must have been built.
all_programs() {
	local source
	for source in "$TREE"/tests/c/test_*.c; do
		basename "$source" .c
	done
}

# Rights decide what a userfaultfd can do; these are the tests in which they matter.
nobody_programs=(test_fork test_install test_kernel_{open,poison,register,syscalls} test_loader test_session)

# What depends on the kernel most; and what does too, but would take a quarter of an hour without KVM.
python_files=(integration/test_{damage,fences,fork_session,on_error,privilege,restore})
more_python_files=(unit/test_{session,region,process_source}
	integration/test_{concurrency,dump_pid,fork,lifetime,memory_pressure,owner,swap,torn})
nobody_python_files=(integration/test_{fences,privilege})
python_cases=(tests/integration/test_owner_madvise.py::test_a_fence_is_lifted_by_giving_it_up)

if ((TIME_FACTOR > 1)); then
	export DAMAGE_ROUNDS=${DAMAGE_ROUNDS:-300} # of 3000
else
	python_files+=("${more_python_files[@]}")
	python_cases=()
fi

# files START...: the files of tests/ whose names start so
files() {
	local start
	for start in "$@"; do
		compgen -G "tests/$start*.py"
	done | sort -u
}

set_up || end 1
cd "$TREE" || end 1
if [[ -n $SHELL_COMMAND ]]; then
	run command eval "$SHELL_COMMAND"
else
	run "this kernel" "$PYTHON" tests/kernel_matrix/features.py "$KERNEL_MUST_BE"
	run "C tests as root" c_tests as_root $(all_programs)
	run "C tests as nobody" c_tests as_nobody "${nobody_programs[@]}"
	run "Python tests as root" python_tests as_root $(files "${python_files[@]}") "${python_cases[@]}"
	run "Python tests as nobody" python_tests as_nobody $(files "${nobody_python_files[@]}")
	# CRIU wants modules of this kernel that nobody loads here (sockets' diagnoses).
	printf -- '\n-- not run: what restores processes by CRIU; make test runs it under the machine'"'"'s own kernel\n'
fi
echo
if ((${#failed[@]} > 0)); then
	printf 'failed under Linux %s: %s\n' "$(uname -r)" "$(IFS=,; echo "${failed[*]}")"
	end 1
fi
echo "all passed under Linux $(uname -r), or were skipped for the reasons above"
end 0
