#!/bin/bash
# fetch-criu.sh DIR [SUITE [APT-OPTION...]]: CRIU and crit of a newer Debian, in a folder of their own.
#
# Kernels from 6.13 on need CRIU 4.1, and Debian 12 has 3.17. This unpacks the criu and python3-pycriu of
# SUITE (trixie, unless told) into DIR with all that they depend on, the C library too, and writes
# DIR/bin/criu and DIR/bin/crit, which start them with these libraries. Nothing of the machine is changed:
# not its packages, not apt's lists or settings. DIR can be moved, and any user can do this; what CRIU itself
# needs to be root for it needs still. `--source` for DIR only prints what apt is given as its source.
#
# apt downloads and verifies, from the mirror that this machine's own sources name for its own suite, by the
# key that they name. Debian only; needs apt and dpkg, 40 MB to download and 90 MB in DIR. A mirror that
# stands still may have a suite that says that it is out of date: -o Acquire::Check-Valid-Until=false.
set -euo pipefail
export LC_ALL=C

die() {
	echo "fetch-criu: $*" >&2
	exit 1
}

(($# >= 1)) || die "usage: $0 DIR [SUITE [APT-OPTION...]]"
dir=$1
suite=${2:-trixie}
options=("${@:3}")
[[ $dir == --source ]] || dir=$(realpath -m -- "$dir")
[[ ! -e $dir ]] || die "$dir is there already: remove it, or name another folder"
for tool in apt-get apt-config dpkg dpkg-deb awk; do
	command -v "$tool" > /dev/null || die "no $tool here: this works on Debian only"
done
# shellcheck disable=SC1091
own_suite=$(. /etc/os-release && echo "${ID:-}:${VERSION_CODENAME:-}")
[[ $own_suite == debian:* ]] || die "this is not Debian ($own_suite), so its mirrors are not Debian's"
own_suite=${own_suite#debian:}
architecture=$(dpkg --print-architecture)

# Not in DIR: as root apt downloads as a user who may see nothing of DIR's parents.
work=$(mktemp -d "${TMPDIR:-/tmp}/fetch-criu.XXXXXX")
trap 'rm -rf -- "$work" "$dir.unpacked"' EXIT
chmod 755 "$work"
mkdir -p "$work"/{sources,none.d,lists/partial,state,cache/archives/partial}
: > "$work/status"

# ---- The mirror ----

# Both formats of sources as stanzas: apt's one-line entries are put into that form.
stanzas() {
	local parts
	eval "$(apt-config shell list Dir::Etc::sourcelist/f parts Dir::Etc::sourceparts/d)"
	for file in "${list:-}" "${parts:-}"/*.list; do
		[[ -r $file ]] || continue
		awk '
		$1 == "deb" {
			sub(/#.*/, "")
			at = 2
			print "Types: deb"
			if (sub(/^\[/, "", $at)) {
				for (is_over = 0; !is_over && at <= NF; at++) {
					is_over = sub(/\]$/, "", $at)
					if (tolower($at) ~ /^(signed-by|trusted|check-valid-until)=/) {
						gsub(/,/, " ", $at)
						option = $at
						sub(/=/, ": ", option)
						print option
					}
				}
			}
			print "URIs: " $at
			print "Suites: " $(at + 1)
			printf "Components:"
			for (at += 2; at <= NF; at++)
				printf " %s", $at
			print "\n"
		}' "$file"
	done
	for file in "${parts:-}"/*.sources; do
		[[ -r $file ]] || continue
		cat "$file"
		echo
	done
}

# The first that holds the main component of a suite of one of these names, for the new suite instead.
stanza_for() {
	stanzas | awk -v names="$1" -v suite="$suite" -v architecture="$architecture" '
	function has(list, name,   words, count, i) {
		count = split(list, words)
		for (i = 1; i <= count; i++)
			if (words[i] == name)
				return 1
		return 0
	}
	function finish(   wanted, count, uris, i) {
		count = split(names, wanted)
		for (i = 1; i <= count && !is_found; i++)
			if (has(value["types"], "deb") && has(value["components"], "main") \
			    && has(value["suites"], wanted[i]) && value["uris"] !~ /^[ \t]*cdrom:/ \
			    && tolower(value["enabled"]) !~ /no|false|off|without|disable|0/) {
				is_found = 1
				split(value["uris"], uris)
				print "Types: deb\nURIs: " uris[1] "\nSuites: " suite "\nComponents: main"
				print "Architectures: " architecture
				if ("signed-by" in value)
					print "Signed-By:" value["signed-by"]
				if ("trusted" in value)
					print "Trusted:" value["trusted"]
				if ("check-valid-until" in value)
					print "Check-Valid-Until:" value["check-valid-until"]
			}
		split("", value)
	}
	/^#/ { next }
	/^[ \t]*$/ { finish(); next }
	/^[ \t]/ { value[field] = value[field] "\n" $0; next }
	{
		field = tolower(substr($0, 1, index($0, ":") - 1))
		value[field] = substr($0, index($0, ":") + 1)
	}
	END { finish() }'
}

stanza=$(stanza_for "$own_suite")
# A machine that follows whatever is called so now.
[[ -n $stanza ]] || stanza=$(stanza_for "stable testing unstable sid oldstable")
[[ -n $stanza ]] || die "apt's sources name no mirror that has the main component of $own_suite"
echo "$stanza" > "$work/sources/criu.sources"
mirror=$(sed -n 's/^URIs: //p' <<< "$stanza")
if [[ $dir == --source ]]; then
	echo "$stanza"
	exit
fi

# ---- apt, with lists, caches and settings of its own ----

# Of the machine's settings only how it reaches the network: others would pin packages, or run commands.
{
	apt-config dump | grep -E '^Acquire::(https?|ftp|tor|Force[^:]*)( |::)' || true
	cat <<- END
		APT::Architecture "$architecture";
		APT::Architectures { "$architecture"; };
		APT::Install-Recommends "false";
		APT::Update::Error-Mode "any";
		APT::Get::Assume-Yes "true";
		Acquire::Languages "none";
		Acquire::Retries "3";
		Acquire::http::Timeout "30";
		Acquire::https::Timeout "30";
		Dir::Etc::main "$work/none";
		Dir::Etc::parts "$work/none.d";
		Dir::Etc::preferences "$work/none";
		Dir::Etc::preferencesparts "$work/none.d";
		Dir::Etc::sourcelist "$work/none";
		Dir::Etc::sourceparts "$work/sources";
		Dir::State "$work/state";
		Dir::State::lists "$work/lists";
		Dir::State::status "$work/status";
		Dir::Cache "$work/cache";
		Dir::Log "$work";
	END
} > "$work/apt.conf"
export APT_CONFIG=$work/apt.conf

apt_get() {
	apt-get -qq "${options[@]}" "$@" > "$work/output" 2>&1 < /dev/null || {
		cat "$work/output" >&2
		die "apt-get could not get CRIU of $suite from $mirror"
	}
}

echo "CRIU of Debian $suite, from $mirror"
apt_get update
# Into no packages at all: so everything comes that these need.
apt_get --download-only install criu python3-pycriu

# ---- The folder ----

mkdir -p "$(dirname -- "$dir")"
rm -rf "$dir.unpacked"
mkdir -p "$dir.unpacked"/{bin,root}
for package in "$work"/cache/archives/*.deb; do
	# As root too: nothing gets its owner or its special bits here that the archive names.
	dpkg-deb --fsys-tarfile "$package" | tar -x --no-same-owner --no-same-permissions -C "$dir.unpacked/root"
done

(
	cd "$dir.unpacked/root"
	# A package may have it in /lib or in /usr/lib, and each architecture names its own.
	first() {
		for name in "$@"; do
			[[ -e $name ]] && echo "$name" && return
		done
		die "$suite's packages have no $1"
	}
	loader=$(first usr/lib64/ld-linux-*.so.* usr/lib/ld-linux-*.so.* lib64/ld-linux-*.so.* \
		lib/ld-linux-*.so.*)
	libraries=
	for name in usr/lib/*-linux-gnu* lib/*-linux-gnu*; do
		[[ -d $name ]] && libraries+="${libraries:+:}\$root/$name"
	done
	criu=$(first usr/sbin/criu usr/bin/criu)
	python=$(first usr/bin/python3)
	crit=$(first usr/bin/crit)

	# NAME, what to set, what to start
	wrapper() {
		cat > "../bin/$1" <<- END
			#!/bin/sh
			# $1 of Debian $suite, by that suite's own loader and libraries, wherever this folder lies.
			self=\$0
			[ ! -L "\$self" ] || self=\$(readlink -f -- "\$self")
			case \$self in /*) ;; *) self=\$PWD/\$self ;; esac
			root=\${self%/*}/../root${2:+
			$2}
			exec "\$root/$loader" --library-path "$libraries" $3 "\$@"
		END
	}
	wrapper criu "" "\"\$root/$criu\""
	# With that suite's own Python, whose modules these are.
	# shellcheck disable=SC2016
	wrapper crit 'export PYTHONHOME="$root/usr" PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1; unset PYTHONPATH' \
		"\"\$root/$python\" -W ignore \"\$root/$crit\""
	chmod 755 ../bin/criu ../bin/crit
)
version=$("$dir.unpacked/bin/criu" --version) || die "what was fetched does not start"
"$dir.unpacked/bin/crit" --help > /dev/null || die "crit of what was fetched does not start"
mv -T "$dir.unpacked" "$dir"
echo "$dir/bin/criu: $(sed -n 's/^Version: /CRIU /p' <<< "$version")"
