# Completion of lazyrestore for bash. Made from its help: do not edit.

# Files with an ending and folders; all files where there are none of these.
_lazyrestore_files() {
	local cur=$1 ending=$2
	compopt -o filenames 2>/dev/null
	if [[ -n $ending ]]; then
		mapfile -t COMPREPLY < <(compgen -f -X "!*.$ending" -- "$cur"; compgen -d -- "$cur")
		[[ ${#COMPREPLY[@]} -gt 0 ]] && return
	fi
	mapfile -t COMPREPLY < <(compgen -f -- "$cur")
}

_lazyrestore_words() {
	mapfile -t COMPREPLY < <(compgen -W "$2" -- "$1")
}

# Names of the regions of the first image on the line. They are no patterns, nor are they words.
_lazyrestore_regions() {
	local cur=$1 word name
	for word in "${COMP_WORDS[@]:2}"; do
		[[ $word == *.lzr ]] || continue
		word=${word/#\~\//$HOME/}
		compopt -o filenames 2>/dev/null
		while IFS= read -r name; do
			[[ $name == "$cur"* ]] && COMPREPLY+=("$name")
		done < <("${COMP_WORDS[0]}" ls --quiet "$word" 2>/dev/null)
		return
	done
}

_lazyrestore() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command='' word i
	COMPREPLY=()
	# --option=value: "=" is a word of its own.
	if [[ $cur == = ]]; then
		cur=''
	elif [[ $prev == = ]]; then
		prev=${COMP_WORDS[COMP_CWORD - 2]}
	fi
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if [[ -z $command && $word != -* ]]; then
			command=$word
		elif [[ $word == -- && $command == restore ]]; then
			if ((i + 1 == COMP_CWORD)); then
				mapfile -t COMPREPLY < <(compgen -c -- "$cur")
				[[ $cur == */* ]] && _lazyrestore_files "$cur"
			else
				_lazyrestore_files "$cur"
			fi
			return
		fi
	done
	case "$command $prev" in
	" --show-completion") _lazyrestore_words "$cur" "bash zsh fish"; return ;;
	" --install-completion") _lazyrestore_words "$cur" "bash zsh fish"; return ;;
	"dump --pid") _lazyrestore_words "$cur" "$(cd /proc && echo [0-9]*)"; return ;;
	"dump --process") _lazyrestore_words "$cur" "$(cd /proc && echo [0-9]*)"; return ;;
	"dump --file") _lazyrestore_files "$cur"; return ;;
	"dump --core") _lazyrestore_files "$cur"; return ;;
	"dump --criu") compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
	"dump --npz") _lazyrestore_files "$cur" npz; return ;;
	"dump --npy") _lazyrestore_files "$cur" npy; return ;;
	"dump --safetensors") _lazyrestore_files "$cur" safetensors; return ;;
	"dump --range") true; return ;;
	"dump --criu-opt") true; return ;;
	"dump --criu-bin") _lazyrestore_files "$cur"; return ;;
	"dump --level") true; return ;;
	"dump --cluster-size") true; return ;;
	"dump --threads") true; return ;;
	"dump --byte-planes") _lazyrestore_words "$cur" "auto none 2 4 8"; return ;;
	"restore -o" | "restore --output") _lazyrestore_files "$cur"; return ;;
	"restore --format") _lazyrestore_words "$cur" "raw npy npz safetensors"; return ;;
	"restore --region") _lazyrestore_regions "$cur"; return ;;
	"restore --touch") _lazyrestore_words "$cur" "first sequential random"; return ;;
	"restore --count") true; return ;;
	"restore --seed") true; return ;;
	"restore --prefetch") _lazyrestore_words "$cur" "none auto all"; return ;;
	"restore --record") _lazyrestore_files "$cur"; return ;;
	"restore --working-set") _lazyrestore_files "$cur" ws; return ;;
	"restore --replay") _lazyrestore_words "$cur" "before beside"; return ;;
	"restore --privilege") _lazyrestore_words "$cur" "full auto user-mode-only"; return ;;
	"restore --granularity") _lazyrestore_words "$cur" "cluster page"; return ;;
	"restore --fault-mode") _lazyrestore_words "$cur" "thread inline"; return ;;
	"restore --criu") compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
	"restore --pidfile") _lazyrestore_files "$cur"; return ;;
	"restore --criu-opt") true; return ;;
	"restore --criu-bin") _lazyrestore_files "$cur"; return ;;
	"restore --on-error") _lazyrestore_words "$cur" "kill poison log"; return ;;
	"restore --log") _lazyrestore_files "$cur"; return ;;
	"restore --threads") true; return ;;
	"info --svg") _lazyrestore_files "$cur" svg; return ;;
	"cat --region") _lazyrestore_regions "$cur"; return ;;
	"cat --offset") true; return ;;
	"cat --length") true; return ;;
	"diff --region") _lazyrestore_regions "$cur"; return ;;
	"diff --limit") true; return ;;
	"diff --threads") true; return ;;
	"verify --threads") true; return ;;
	"optimize --working-set") _lazyrestore_files "$cur" ws; return ;;
	"optimize -o" | "optimize --output") _lazyrestore_files "$cur" lzr; return ;;
	"serve --socket") _lazyrestore_files "$cur"; return ;;
	"serve --image-dir") compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
	"serve --allow-uid") mapfile -t COMPREPLY < <(compgen -u -- "$cur"); return ;;
	"serve --on-error") _lazyrestore_words "$cur" "kill poison log"; return ;;
	"serve --prefetch") _lazyrestore_words "$cur" "none auto all"; return ;;
	"serve --record") _lazyrestore_files "$cur"; return ;;
	"serve --working-set") _lazyrestore_files "$cur" ws; return ;;
	"serve --granularity") _lazyrestore_words "$cur" "cluster page"; return ;;
	"serve --grace") true; return ;;
	"serve --status-fd") true; return ;;
	"serve --metrics") true; return ;;
	"serve --socket-mode") true; return ;;
	"lazy-pages -D" | "lazy-pages --images-dir") compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
	"lazy-pages --image") _lazyrestore_files "$cur" lzr; return ;;
	"lazy-pages -W" | "lazy-pages --work-dir") compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
	"lazy-pages --prefetch") _lazyrestore_words "$cur" "none auto all"; return ;;
	"lazy-pages --working-set") _lazyrestore_files "$cur" ws; return ;;
	"lazy-pages --record") _lazyrestore_files "$cur"; return ;;
	"lazy-pages --granularity") _lazyrestore_words "$cur" "cluster page"; return ;;
	"lazy-pages --on-error") _lazyrestore_words "$cur" "kill poison log"; return ;;
	"lazy-pages --pidfile") _lazyrestore_files "$cur"; return ;;
	"lazy-pages --status-fd") true; return ;;
	"lazy-pages -o" | "lazy-pages --log-file") _lazyrestore_files "$cur"; return ;;
	"lazy-pages --grace") true; return ;;
	"lazy-pages --metrics") true; return ;;
	"top -n" | "top --interval") true; return ;;
	"bench --pages") true; return ;;
	"bench --raw") _lazyrestore_files "$cur"; return ;;
	"bench --plot") _lazyrestore_files "$cur"; return ;;
	"bench --repeat") true; return ;;
	"doctor --criu-bin") _lazyrestore_files "$cur"; return ;;
	"demo --size") true; return ;;
	"demo --keep") compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
	"demo --walk") true; return ;;
	"demo --criu-bin") _lazyrestore_files "$cur"; return ;;
	esac
	case $command in
	'')
		_lazyrestore_words "$cur" "--version --show-completion --install-completion --help dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo"
		return ;;
	dump)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--pid --process --file --core --criu --npz --npy --safetensors --range --leave-running --criu-opt --criu-bin --level --cluster-size --threads --byte-planes --verbose --quiet --progress --no-progress --json --help"
		else
			_lazyrestore_files "$cur" lzr
		fi
		return ;;
	restore)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--output --format --lazy --region --touch --count --seed --prefetch --record --working-set --replay --privilege --granularity --fault-mode --or-eager --at-original-address --trace --criu --restore-detached --pidfile --criu-opt --criu-bin --on-error --no-keeper --log --threads --quiet --progress --no-progress --json --help"
		else
			_lazyrestore_files "$cur" lzr
		fi
		return ;;
	info)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--map --svg --verbose --json --help"
		else
			_lazyrestore_files "$cur" lzr
		fi
		return ;;
	ls)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--quiet --json --help"
		else
			_lazyrestore_files "$cur" lzr
		fi
		return ;;
	cat)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--region --offset --length --force --json --help"
		else
			_lazyrestore_files "$cur" lzr
		fi
		return ;;
	diff)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--region --limit --threads --verbose --quiet --progress --no-progress --json --help"
		else
			_lazyrestore_files "$cur" lzr
		fi
		return ;;
	verify)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--threads --verbose --quiet --progress --no-progress --json --help"
		else
			_lazyrestore_files "$cur" lzr
		fi
		return ;;
	optimize)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--working-set --output --quiet --progress --no-progress --json --help"
		else
			_lazyrestore_files "$cur" lzr
		fi
		return ;;
	serve)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--socket --image-dir --allow-uid --on-error --prefetch --record --working-set --granularity --grace --status-fd --keeper --no-keeper --takeover --metrics --socket-mode --verbose --quiet --json --log-json --help"
		else
			_lazyrestore_files "$cur" lzr
		fi
		return ;;
	lazy-pages)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--images-dir --image --work-dir --prefetch --working-set --record --granularity --on-error --keep --daemon --pidfile --status-fd --log-file --keeper --no-keeper --takeover --grace --metrics --verbose --quiet --json --log-json --help"
		fi
		return ;;
	top)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--interval --once --json --help"
		else
			_lazyrestore_files "$cur"
		fi
		return ;;
	bench)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--pages --raw --plot --quick --repeat --quiet --progress --no-progress --json --help"
		else
			_lazyrestore_files "$cur" lzr; [[ hello == "$cur"* ]] && COMPREPLY+=(hello)
		fi
		return ;;
	doctor)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--verbose --quiet --criu-bin --json --help"
		fi
		return ;;
	demo)
		if [[ $cur == -* ]]; then
			_lazyrestore_words "$cur" "--size --keep --walk --process --criu-bin --quiet --progress --no-progress --json --help"
		fi
		return ;;
	esac
}

complete -F _lazyrestore lazyrestore
