#!/bin/bash
# try_wheel.sh WHEEL [SUITE]: install the wheel in a bare Debian that has python3 and venv, and use it there.
#
# debootstrap makes that Debian (bookworm, unless told), in a folder that is gone afterwards, from the mirror that
# this machine's own apt sources name. It has no compiler, no headers, no other Python package. What the wheel needs is
# downloaded here, for the Python of that Debian, and installed there from files.
#
# A wheel for another processor is tried as far as that goes: its library and packages under qemu-user, without a
# kernel that serves userfaultfd (so images are dumped, verified and restored eagerly).
#
# Needs root, debootstrap, 300 MB in TMPDIR, and a minute.
set -euo pipefail
export LC_ALL=C

die() {
	echo "try_wheel: $*" >&2
	exit 1
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
(($# >= 1)) && [[ -f $1 ]] || die "give a wheel, as \`make wheel\` makes it in dist/"
wheel=$(realpath -- "$1")
suite=${2:-bookworm}
architecture=${wheel##*_}
architecture=${architecture%.whl}
# x86_64 has one "_" itself.
[[ $architecture != 64 ]] || architecture=x86_64
python=${PYTHON:-python3}
((EUID == 0)) || die "this needs root: debootstrap and chroot do"
for tool in debootstrap unshare "$python"; do
	command -v "$tool" > /dev/null || die "no $tool here: apt-get install debootstrap util-linux python3"
done
"$python" -m pip --version > /dev/null 2>&1 || die "$python has no pip: set PYTHON= to one that has"

stanza=$("$here/../criu/fetch-criu.sh" --source "$suite")
mirror=$(sed -n 's/^URIs: *//p' <<< "$stanza")
keyring=$(sed -n 's/^Signed-By: *//p' <<< "$stanza")
work=$(mktemp -d "${TMPDIR:-/tmp}/try-wheel.XXXXXX")
trap 'rm -rf --one-file-system -- "$work"' EXIT
root=$work/root
options=(--variant=minbase "--include=python3,python3-venv")
[[ ! -f $keyring ]] || options+=("--keyring=$keyring")

# Newer manylinux tags than the wheel's are what that Debian's C library can run: 2.36, in bookworm.
download() {
	local platforms=() minor
	for minor in $(seq 17 36); do
		platforms+=(--platform "manylinux_2_${minor}_$architecture")
	done
	"$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --implementation cp \
		--python-version "$1" --platform "manylinux2014_$architecture" "${platforms[@]}" \
		--dest "$work/wheels" "$wheel"
}

debian() {
	echo "Debian $suite for $1, from $mirror"
	debootstrap "${options[@]}" "${@:2}" "--arch=$1" "$suite" "$root" "$mirror" > "$work/log" 2>&1 || {
		tail -20 "$work/log" >&2
		die "debootstrap failed"
	}
}

version_of() {
	basename "$(ls -d "$root"/usr/lib/python3.[0-9]* | tail -1)" | sed 's/^python//'
}

if [[ $architecture == "$(uname -m)" ]]; then
	debian "$(dpkg --print-architecture)"
	download "$(version_of)"
	mkdir "$root/try"
	cp -r "$work/wheels" "$here/use_installed.py" "$root/try"
	# Its own mounts and processes: nothing is left of either.
	unshare --mount --pid --fork --kill-child -- bash -euc '
		mount --make-rprivate /
		mount -t proc proc "$1/proc"
		mount -t tmpfs tmpfs "$1/dev"
		for name in null zero random urandom tty; do
			touch "$1/dev/$name"
			mount --bind "/dev/$name" "$1/dev/$name"
		done
		mkdir "$1/dev/shm"
		exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 chroot "$1" /bin/sh -euc "
			cd /try
			! command -v gcc
			python3 -m venv v
			v/bin/pip install --quiet --disable-pip-version-check --no-index --find-links wheels lazyrestore
			v/bin/python use_installed.py
			v/bin/lazyrestore demo --size 64M"
	' - "$root"
else
	emulator=qemu-$architecture-static
	command -v "$emulator" > /dev/null || die "no $emulator here: apt-get install qemu-user-static"
	case $architecture in
	aarch64) debian arm64 --foreign ;;
	*) die "no Debian is known here for $architecture" ;;
	esac
	# Unpacked only: nothing of it can be run to install it.
	for package in "$root"/var/cache/apt/archives/*.deb; do
		dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
	done
	version=$(version_of)
	download "$version"
	"$python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$work/wheels" --no-deps \
		--only-binary=:all: --implementation cp --python-version "$version" \
		--platform "manylinux2014_$architecture" --target "$work/site" "$work"/wheels/*.whl
	cd "$work"
	env -i PATH=/usr/bin:/bin HOME="$work" LANG=C.UTF-8 PYTHONPATH="$work/site" TMPDIR="$work" \
		"$(command -v "$emulator")" -L "$root" "$root/usr/bin/python$version" "$here/use_installed.py" --emulated
fi
echo "$(basename "$wheel") works in Debian $suite"
