/*
 * Reading another process: its memory, which of its pages exist, what /proc/PID/stat says.
 *
 * Floor 1 (above error). Any thread; no state; nothing is kept open between calls. The public
 * functions (lr_process_read, lr_pagemap_runs) are declared in lazyrestore.h. All of this is for
 * dumps: none of it is used while faults are served.
 */
#ifndef LR_PROCMEM_H
#define LR_PROCMEM_H

#include <stdbool.h>
#include <sys/types.h>

#include "lazyrestore.h"

/* A few fields of /proc/PID/task/TID/stat. */
struct lr_procmem_stat {
	char state;            /* as ps shows it: R, S, D, T, t, Z, X */
	bool is_kernel;        /* a kernel thread: has no memory of its own */
	uint32_t thread_count; /* of the process; with ended ones that nobody has taken note of */
	uint64_t start_time;   /* clock ticks since boot: with the pid, names a process for good */
};

/* LR_ERR_GONE where there is no such thread (any more). */
int lr_procmem_stat(pid_t pid, pid_t tid, struct lr_procmem_stat *ret_stat,
		    struct lr_problem *ret_problem);

/* The two ways of lr_pagemap_runs, by themselves. By ioctl: LR_ERR_UNSUPPORTED before Linux 6.7. */
int64_t lr_procmem_runs_by_scan(int pagemap_fd, uint64_t start, uint64_t end,
				struct lr_page_run *ret_runs, uint32_t room, uint64_t *ret_next,
				struct lr_problem *ret_problem);
int64_t lr_procmem_runs_by_read(int pagemap_fd, uint64_t start, uint64_t end,
				struct lr_page_run *ret_runs, uint32_t room, uint64_t *ret_next,
				struct lr_problem *ret_problem);

#endif
