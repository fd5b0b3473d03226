/*
 * The threads of a process that is being frozen: attaching to them, stopping them, letting go.
 *
 * Floor 2 (above procmem), for freeze alone. What needs ptrace is for one thread, the same from the
 * first call to the last; lr_tracees_reap and lr_tracees_check are for any. Whoever has the struct
 * owns it; `threads` is freed by its owner.
 */
#ifndef LR_TRACEES_H
#define LR_TRACEES_H

#include <stdbool.h>
#include <sys/types.h>

#include "lazyrestore.h"

struct lr_tracee {
	pid_t tid;
	bool is_held; /* stays stopped when others are let run for a moment */
};

struct lr_tracees {
	pid_t pid;
	int pidfd;
	int64_t deadline_ns; /* CLOCK_MONOTONIC; INT64_MAX: none */
	struct lr_problem problem;
	struct lr_tracee *threads; /* ascending by tid: attached to */
	uint32_t count;
	uint32_t room;
	int64_t since_ns; /* CLOCK_MONOTONIC, when the first was stopped; 0: none was */
};

/* Stop them all. On failure `problem` says why, and some are still to be released. */
int lr_tracees_stop(struct lr_tracees *all);

/* Let them run: each as if it had never been stopped. */
void lr_tracees_release(struct lr_tracees *all);

/*
 * Take note of those that ended. To be called by another thread, again and again while
 * lr_tracees_stop runs: that one may be in the middle of PTRACE_SEIZE of a thread that is in
 * exec(), which lasts until exec() is over, which waits until the others have ended, and one that
 * is traced has not ended before its tracer has taken note.
 */
void lr_tracees_reap(const struct lr_tracees *all);

/* LR_ERR_GONE if the process is no longer there, or no longer stopped. */
int lr_tracees_check(const struct lr_tracees *all);

#endif
