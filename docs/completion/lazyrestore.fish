# Completion of lazyrestore for fish. Made from its help: do not edit.

# Files with an ending and folders; all files where there are none of these.
function __lazyrestore_files
	set -l found (__fish_complete_path (commandline -ct))
	set -l wanted (string match -r ".*(?:/|\.$argv[1])(?:\t.*)?\$" -- $found)
	set -q wanted[1]; or set wanted $found
	printf '%s\n' $wanted
end

# Names of the regions of the first image on the line.
function __lazyrestore_regions
	for word in (commandline -opc)[2..-1]
		if string match -q '*.lzr' -- $word
			lazyrestore ls --quiet (string replace -r '^~/' "$HOME/" -- $word) 2>/dev/null
			return
		end
	end
end

# What has been typed is what follows -- of this command.
function __lazyrestore_is_behind
	contains -- -- (commandline -opc)
end

function __lazyrestore_behind
	set -l words (commandline -opc) (commandline -ct)
	set -l at (contains -i -- -- $words)
	__fish_complete_subcommand --commandline $words[(math $at + 1)..-1]
end

complete -c lazyrestore -e
complete -c lazyrestore -f

complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a dump -d 'Write memory into an image'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a restore -d 'Decode an image into a file, or map it lazily, here or in another program; run processes'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a info -d 'Say what an image is: made when, of what, its sizes and digest'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a ls -d 'List the regions of an image: name, address, length, what it was'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a cat -d 'Write a part of a region to standard output'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a diff -d 'Say which pages differ between two images'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a verify -d 'Check everything in an image'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a optimize -d 'Write an image anew, with what a working set names at its front'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a serve -d 'Serve an image\'s memory to other processes'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a lazy-pages -d 'Serve processes that \'criu restore --lazy-pages\' restores, as \'criu lazy-pages\' does'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a top -d 'Show whom a service serves, and how fast'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a bench -d 'Measure what lazy restores cost on this machine'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a doctor -d 'Say what this machine allows, and the command that changes it'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -a demo -d 'Dump a live program and restore its memory, with figures'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -s V -l version -d 'Print the version and exit'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -l show-completion -x -a 'bash zsh fish' -d 'Print what completes commands, options, images and regions on Tab, for bash, zsh or fish'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -l install-completion -x -a 'bash zsh fish' -d 'Put that where the shell finds it'
complete -c lazyrestore -n 'not __fish_seen_subcommand_from dump restore info ls cat diff verify optimize serve lazy-pages top bench doctor demo' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -a '(__lazyrestore_files lzr)'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l pid -x -a '(__fish_complete_pids)' -d 'Dump the memory of a running process'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l process -x -a '(__fish_complete_pids)' -d 'Dump a process and all its descendants, to be run again'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l file -x -a '(__fish_complete_path (commandline -ct))' -d 'Dump the bytes of a file, as a virtual machine\'s memory'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l core -x -a '(__fish_complete_path (commandline -ct))' -d 'Dump the memory in a core file, by its addresses'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l criu -x -a '(__fish_complete_directories (commandline -ct))' -d 'Dump the processes in a folder of CRIU\'s images'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l npz -x -a '(__lazyrestore_files npz)' -d 'Dump the arrays in a .npz file of numpy\'s, by name'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l npy -x -a '(__lazyrestore_files npy)' -d 'Dump the array in a .npy file of numpy\'s'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l safetensors -x -a '(__lazyrestore_files safetensors)' -d 'Dump the tensors in a .safetensors file, by name'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l range -x -d 'With --pid: dump these addresses only (hexadecimal'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l leave-running -d 'With --process: they do not end, but run on'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l criu-opt -x -d 'Give CRIU an option, as --criu-opt=--tcp-established (may be given again)'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l criu-bin -x -a '(__fish_complete_path (commandline -ct))' -d 'The CRIU to use'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l level -x -d 'Compression level of zstd, -7 to 22'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l cluster-size -x -d 'How much is compressed together, and loaded by one touch'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l threads -x -d 'Use N threads'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l byte-planes -x -a 'auto none 2 4 8' -d 'Group the bytes of numbers before they are compressed, where that pays'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -s v -l verbose -d 'List every region, and all that was skipped'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -s q -l quiet -d 'No progress, and no report unless --json'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l no-progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -l json -d 'Print one JSON object: sizes in bytes, times in microseconds'
complete -c lazyrestore -n '__fish_seen_subcommand_from dump' -s h -l help -d 'Show this message and exit'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and __lazyrestore_is_behind' -a '(__lazyrestore_behind)'

complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -a '(__lazyrestore_files lzr)'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -s o -l output -x -a '(__fish_complete_path (commandline -ct))' -d 'Decode everything into FILE, now'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l format -x -a 'raw npy npz safetensors' -d 'With --output: raw is a region\'s bytes'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l lazy -d 'Map the image, touch pages of it, and report'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l region -x -a '(__lazyrestore_regions)' -d 'The region; needed where there are several (\'lazyrestore ls\' has their names)'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l touch -x -a 'first sequential random' -d 'With --lazy: which pages to read a byte of, without --count: only the first, or all'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l count -x -d 'With --lazy: touch N pages'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l seed -x -d 'With --touch random: chooses the order'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l prefetch -x -a 'none auto all' -d 'With --lazy: what to load ahead of touches, in the background: auto is the working set and then the rest, or nothing where there is no working set'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l record -x -a '(__fish_complete_path (commandline -ct))' -d 'With --lazy: write to FILE which clusters are touched: a working set'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l working-set -x -a '(__lazyrestore_files ws)' -d 'With --lazy: load what FILE names first'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l replay -x -a 'before beside' -d 'With --lazy: load the working set before the first touch, or beside the touches'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l privilege -x -a 'full auto user-mode-only' -d 'With --lazy: the kind of userfaultfd'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l granularity -x -a 'cluster page' -d 'With --lazy: what a touch brings'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l fault-mode -x -a 'thread inline' -d 'With --lazy: who answers a fault: a thread of its own, or the one that touched, in a signal handler, which is faster, but system calls on missing pages fail'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l or-eager -d 'With --lazy: where the kernel does not allow it, decode everything instead'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l at-original-address -d 'With --lazy: map regions where they were dumped'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l trace -d 'With --lazy: print each fault on standard error as it is served (with --json: one object a line)'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l criu -x -a '(__fish_complete_directories (commandline -ct))' -d 'Of processes: write CRIU\'s image folder to DIR'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -s d -l restore-detached -d 'Of processes: end when they run, rather than wait for the first to end'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l pidfile -x -a '(__fish_complete_path (commandline -ct))' -d 'Of processes: write the first one\'s number to FILE'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l criu-opt -x -d 'Of processes: one more option for criu restore, as --criu-opt=--shell-job'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l criu-bin -x -a '(__fish_complete_path (commandline -ct))' -d 'Of processes: the CRIU to use'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l on-error -x -a 'kill poison log' -d 'Of processes: what becomes of one that touches what cannot be loaded'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l no-keeper -d 'Of processes: no second process that takes over if the one with the pages dies'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l log -x -a '(__fish_complete_path (commandline -ct))' -d 'Of processes: append to FILE what becomes of their memory'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l threads -x -d 'Use N threads'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -s q -l quiet -d 'No progress, and no report unless --json'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l no-progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -l json -d 'Print one JSON object: sizes in bytes, times in microseconds'
complete -c lazyrestore -n '__fish_seen_subcommand_from restore; and not __lazyrestore_is_behind' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from info' -a '(__lazyrestore_files lzr)'
complete -c lazyrestore -n '__fish_seen_subcommand_from info' -l map -d 'Draw what is where in the regions'
complete -c lazyrestore -n '__fish_seen_subcommand_from info' -l svg -x -a '(__lazyrestore_files svg)' -d 'Draw that as a picture: FILE ends with .svg'
complete -c lazyrestore -n '__fish_seen_subcommand_from info' -s v -l verbose -d 'Say what each region takes in the file'
complete -c lazyrestore -n '__fish_seen_subcommand_from info' -l json -d 'Print one JSON object: sizes in bytes, times in microseconds'
complete -c lazyrestore -n '__fish_seen_subcommand_from info' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from ls' -a '(__lazyrestore_files lzr)'
complete -c lazyrestore -n '__fish_seen_subcommand_from ls' -s q -l quiet -d 'Only the names, one a line'
complete -c lazyrestore -n '__fish_seen_subcommand_from ls' -l json -d 'Print one JSON object: sizes in bytes, times in microseconds'
complete -c lazyrestore -n '__fish_seen_subcommand_from ls' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from cat' -a '(__lazyrestore_files lzr)'
complete -c lazyrestore -n '__fish_seen_subcommand_from cat' -l region -x -a '(__lazyrestore_regions)' -d 'The region; needed where there are several (\'lazyrestore ls\' has their names)'
complete -c lazyrestore -n '__fish_seen_subcommand_from cat' -l offset -x -d 'Where to begin, from the region\'s start'
complete -c lazyrestore -n '__fish_seen_subcommand_from cat' -l length -x -d 'How many bytes; to the end if not said'
complete -c lazyrestore -n '__fish_seen_subcommand_from cat' -l force -d 'Write to a terminal too'
complete -c lazyrestore -n '__fish_seen_subcommand_from cat' -l json -d 'Print one JSON object: sizes in bytes, times in microseconds'
complete -c lazyrestore -n '__fish_seen_subcommand_from cat' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from diff' -a '(__lazyrestore_files lzr)'
complete -c lazyrestore -n '__fish_seen_subcommand_from diff' -l region -x -a '(__lazyrestore_regions)' -d 'Compare only this region (may be given again)'
complete -c lazyrestore -n '__fish_seen_subcommand_from diff' -l limit -x -d 'List at most N ranges of pages that differ'
complete -c lazyrestore -n '__fish_seen_subcommand_from diff' -l threads -x -d 'Use N threads'
complete -c lazyrestore -n '__fish_seen_subcommand_from diff' -s v -l verbose -d 'Show the regions that are alike too'
complete -c lazyrestore -n '__fish_seen_subcommand_from diff' -s q -l quiet -d 'No progress, and no report unless --json'
complete -c lazyrestore -n '__fish_seen_subcommand_from diff' -l progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from diff' -l no-progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from diff' -l json -d 'Print one JSON object: sizes in bytes, times in microseconds'
complete -c lazyrestore -n '__fish_seen_subcommand_from diff' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from verify' -a '(__lazyrestore_files lzr)'
complete -c lazyrestore -n '__fish_seen_subcommand_from verify' -l threads -x -d 'Use N threads'
complete -c lazyrestore -n '__fish_seen_subcommand_from verify' -s v -l verbose -d 'List the regions, and whether each is sound'
complete -c lazyrestore -n '__fish_seen_subcommand_from verify' -s q -l quiet -d 'No progress, and no report unless --json'
complete -c lazyrestore -n '__fish_seen_subcommand_from verify' -l progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from verify' -l no-progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from verify' -l json -d 'Print one JSON object: sizes in bytes, times in microseconds'
complete -c lazyrestore -n '__fish_seen_subcommand_from verify' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from optimize' -a '(__lazyrestore_files lzr)'
complete -c lazyrestore -n '__fish_seen_subcommand_from optimize' -l working-set -x -a '(__lazyrestore_files ws)' -d 'A working set (\'restore --lazy --record\' writes one)'
complete -c lazyrestore -n '__fish_seen_subcommand_from optimize' -s o -l output -x -a '(__lazyrestore_files lzr)' -d 'The new image'
complete -c lazyrestore -n '__fish_seen_subcommand_from optimize' -s q -l quiet -d 'No progress, and no report unless --json'
complete -c lazyrestore -n '__fish_seen_subcommand_from optimize' -l progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from optimize' -l no-progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from optimize' -l json -d 'Print one JSON object: sizes in bytes, times in microseconds'
complete -c lazyrestore -n '__fish_seen_subcommand_from optimize' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -a '(__lazyrestore_files lzr)'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l socket -x -a '(__fish_complete_path (commandline -ct))' -d 'Listen at PATH; may be given several times'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l image-dir -x -a '(__fish_complete_directories (commandline -ct))' -d 'Instead of IMAGE: who connects to NAME.sock is served from DIR/NAME.lzr'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l allow-uid -x -a '(__fish_complete_users)' -d 'Admit processes of that user too, beside this service\'s own and root'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l on-error -x -a 'kill poison log' -d 'What becomes of a process that touches a page that cannot be loaded'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l prefetch -x -a 'none auto all' -d 'What to load ahead of touches, in the background'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l record -x -a '(__fish_complete_path (commandline -ct))' -d 'Write which clusters are touched, as a working set'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l working-set -x -a '(__lazyrestore_files ws)' -d 'Load what FILE names first'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l granularity -x -a 'cluster page' -d 'What a touch brings: all of the page\'s cluster, or the page alone for the least memory'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l grace -x -d 'On SIGTERM: fill every process for so long at most before this service ends'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l status-fd -x -d 'Write a line to descriptor N once all is ready'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l keeper -d 'Whether a second process stands by, and serves on if this one is killed'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l no-keeper -d 'Whether a second process stands by, and serves on if this one is killed'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l takeover -d 'Take over from the service that listens at PATH now'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l metrics -x -d 'Serve figures for Prometheus at http://ADDRESS:PORT/metrics'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l socket-mode -x -d 'Permissions of the sockets, octal'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -s v -l verbose -d 'Say also who connects, before it is served'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -s q -l quiet -d 'Say only what goes wrong'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -l json -l log-json -d 'Events on standard error are JSON, one a line'
complete -c lazyrestore -n '__fish_seen_subcommand_from serve' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -s D -l images-dir -x -a '(__fish_complete_directories (commandline -ct))' -d 'The folder that criu restore is given'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l image -x -a '(__lazyrestore_files lzr)' -d 'The image that has the pages'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -s W -l work-dir -x -a '(__fish_complete_directories (commandline -ct))' -d 'criu restore\'s: the socket is made there'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l prefetch -x -a 'none auto all' -d 'What to load ahead of touches, once the processes run'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l working-set -x -a '(__lazyrestore_files ws)' -d 'Load what FILE names first'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l record -x -a '(__fish_complete_path (commandline -ct))' -d 'Write to FILE what is touched, by all processes together'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l granularity -x -a 'cluster page' -d 'What a touch brings: all of the page\'s cluster, or the page alone for the least memory'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l on-error -x -a 'kill poison log' -d 'What becomes of a process that touches a page that cannot be loaded'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l keep -d 'Serve any number of restores, one after another or at once, until SIGTERM'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -s d -l daemon -d 'Return once it is ready; it goes on behind'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l pidfile -x -a '(__fish_complete_path (commandline -ct))' -d 'Write its process number to FILE'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l status-fd -x -d 'Write a zero byte to descriptor N once criu restore can be started'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -s o -l log-file -x -a '(__fish_complete_path (commandline -ct))' -d 'Append what happens to FILE'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l keeper -d 'Whether a second process stands by, and serves on if this one is killed'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l no-keeper -d 'Whether a second process stands by, and serves on if this one is killed'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l takeover -d 'Take over from the daemon that listens there now'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l grace -x -d 'On SIGTERM: fill every process for so long at most before this one ends'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l metrics -x -d 'Serve figures for Prometheus at http://ADDRESS:PORT/metrics'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -s v -l verbose -d 'Say also who connects, before it is served'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -s q -l quiet -d 'Say only what goes wrong'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -l json -l log-json -d 'Events are JSON, one a line'
complete -c lazyrestore -n '__fish_seen_subcommand_from lazy-pages' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from top' -a '(__fish_complete_path (commandline -ct))'
complete -c lazyrestore -n '__fish_seen_subcommand_from top' -s n -l interval -x -d 'How often to look'
complete -c lazyrestore -n '__fish_seen_subcommand_from top' -l once -d 'Print it once'
complete -c lazyrestore -n '__fish_seen_subcommand_from top' -l json -d 'Print JSON: one object a line, or with --once one object'
complete -c lazyrestore -n '__fish_seen_subcommand_from top' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from bench' -a 'hello (__lazyrestore_files lzr)'
complete -c lazyrestore -n '__fish_seen_subcommand_from bench' -l pages -x -d 'With hello: touch N pages'
complete -c lazyrestore -n '__fish_seen_subcommand_from bench' -l raw -x -a '(__fish_complete_path (commandline -ct))' -d 'With hello: write what each page took as started, in nanoseconds, a line each'
complete -c lazyrestore -n '__fish_seen_subcommand_from bench' -l plot -x -a '(__fish_complete_path (commandline -ct))' -d 'Draw it, as PNG or SVG: FILE ends with .png or .svg'
complete -c lazyrestore -n '__fish_seen_subcommand_from bench' -l quick -d 'A smaller part of the image, and fewer turns'
complete -c lazyrestore -n '__fish_seen_subcommand_from bench' -l repeat -x -d 'Turns'
complete -c lazyrestore -n '__fish_seen_subcommand_from bench' -s q -l quiet -d 'Do not say what is being done'
complete -c lazyrestore -n '__fish_seen_subcommand_from bench' -l progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from bench' -l no-progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from bench' -l json -d 'Print one JSON object: sizes in bytes, times in microseconds'
complete -c lazyrestore -n '__fish_seen_subcommand_from bench' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from doctor' -s v -l verbose -d 'Say everything that was found out'
complete -c lazyrestore -n '__fish_seen_subcommand_from doctor' -s q -l quiet -d 'No report: the exit code says it'
complete -c lazyrestore -n '__fish_seen_subcommand_from doctor' -l criu-bin -x -a '(__fish_complete_path (commandline -ct))' -d 'The CRIU to look at'
complete -c lazyrestore -n '__fish_seen_subcommand_from doctor' -l json -d 'Print one JSON object: sizes in bytes, times in microseconds'
complete -c lazyrestore -n '__fish_seen_subcommand_from doctor' -s h -l help -d 'Show this message and exit'

complete -c lazyrestore -n '__fish_seen_subcommand_from demo' -l size -x -d 'About how much state the program builds, from 16M'
complete -c lazyrestore -n '__fish_seen_subcommand_from demo' -l keep -x -a '(__fish_complete_directories (commandline -ct))' -d 'Keep the image in this folder, to try commands on'
complete -c lazyrestore -n '__fish_seen_subcommand_from demo' -l walk -x -d 'Instead: read a region of N pages, up to 10000, every 1024 bytes, and show each fault'
complete -c lazyrestore -n '__fish_seen_subcommand_from demo' -l process -d 'Instead: dump a whole program (redis-server, where it is installed), and have it run again by criu restore and by restore --lazy'
complete -c lazyrestore -n '__fish_seen_subcommand_from demo' -l criu-bin -x -a '(__fish_complete_path (commandline -ct))' -d 'With --process: the CRIU to use'
complete -c lazyrestore -n '__fish_seen_subcommand_from demo' -s q -l quiet -d 'Do not say what is being done'
complete -c lazyrestore -n '__fish_seen_subcommand_from demo' -l progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from demo' -l no-progress -d 'Say on standard error how far it is'
complete -c lazyrestore -n '__fish_seen_subcommand_from demo' -l json -d 'Print one JSON object: sizes in bytes, times in microseconds'
complete -c lazyrestore -n '__fish_seen_subcommand_from demo' -s h -l help -d 'Show this message and exit'
