/*
 * The thread that serves a target's faults. Floor 5. Once started it ends only by lr_pager_stop: a
 * handler that dies while pages are missing would leave every toucher waiting for good. It blocks
 * all signals, allocates nothing, and needs no lock that is held while a page is loaded but its own
 * loader's.
 */
#ifndef LR_PAGER_H
#define LR_PAGER_H

#include "loader.h"
#include "trace.h"

struct lr_pager {
	struct lr_target *target;
	struct lr_loader loader;
	struct lr_trace trace;
	pthread_t thread;
	bool is_running;
	_Atomic bool is_stopping; /* set before stop_fd is written */
	int stop_fd;
};

int lr_pager_start(struct lr_pager *pager, struct lr_target *target, uint32_t trace_records,
		   struct lr_problem *ret_problem);
/* Ends the thread, whatever it waits for, and frees what it had. */
void lr_pager_stop(struct lr_pager *pager);

#endif
