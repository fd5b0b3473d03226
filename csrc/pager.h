/*
 * The thread that serves a target: the only one that reads its messages and installs its pages.
 * Floor 5. Once started it ends only by lr_pager_stop: a handler that dies while pages are missing
 * would leave every toucher waiting for good. It blocks all signals, allocates nothing, and waits
 * for no lock that is held while a page is loaded.
 *
 * Faults come before jobs, which are clusters that other threads decoded: between any two it looks
 * for messages.
 */
#ifndef LR_PAGER_H
#define LR_PAGER_H

#include "loader.h"
#include "near.h"
#include "trace.h"

/* A cluster, or a run of zero ones, to be put in place. */
struct lr_job {
	struct lr_job *next;
	struct lr_range *range;
	uint64_t cluster;
	uint64_t clusters;
	struct lr_decoded decoded; /* its `info` is NULL where the index does not have it */
	uint64_t clusters_decoded; /* to be counted */
	uint64_t payload_bytes_read;
	int code; /* of decoding it; when done, of all */
	struct lr_problem problem;
	/* What is done instead, if there is something, while the range is active: it may return
	 * LR_MORE, to be called again after a look for faults, and LR_LATER. */
	int (*act)(struct lr_loader *loader, struct lr_job *job);
	/* Do now what belongs to a page that is waited for, and more: false where the job has not
	 * got it. Adds the bytes that were installed. May be NULL. */
	bool (*serve)(struct lr_loader *loader, struct lr_job *job, uint64_t offset,
		      uint64_t *installed_bytes);
	void *context;
	_Atomic uint32_t is_done;
};

/* Not an error, and never returned by a public function: a job is not done yet. */
#define LR_MORE (-1001)

/* A fault that was read and is not served yet. */
struct lr_waiting {
	uint64_t address;
	uint64_t read_ns;
	uint32_t thread;
	bool is_write;
	bool is_counted;
};

#define LR_WAITING_MAX 256u

struct lr_pager {
	struct lr_target *target;
	struct lr_loader loader;
	_Atomic bool is_filling; /* the processors are kept awake */
	struct lr_trace trace;
	pthread_t thread;
	struct lr_near near;
	bool is_running;
	bool has_own_descriptors; /* its thread: known when it is ready */
	_Atomic uint32_t is_ready;
	_Atomic bool is_stopping; /* set before event_fd is written */
	int event_fd;             /* there is a job, or it is to stop */
	/* Threads that install pages for themselves (inline.h) and wait for `busy`. */
	_Atomic uint32_t wanting;
	_Atomic(struct lr_job *) inbox;
	struct lr_job *jobs; /* taken from the inbox, in order */
	uint32_t put_off;    /* how often it waited for the fork() that is under way */
	uint32_t waiting_count;
	/* Where faults were read and dropped, because there was no room: to be asked for again. */
	uint64_t dropped_low;
	uint64_t dropped_high;
	struct lr_waiting waiting[LR_WAITING_MAX];
};

int lr_pager_start(struct lr_pager *pager, struct lr_target *target, uint32_t trace_records,
		   struct lr_problem *ret_problem);
/* Before anyone may miss a page: until its thread has all it needs, and descriptors of its own.
 * (The caller may close what he has at once.) It takes as long to begin as all else, so meanwhile
 * other things are done. */
void lr_pager_wait_ready(struct lr_pager *pager);
/* Ends the thread, whatever it waits for, and frees what it had. */
void lr_pager_stop(struct lr_pager *pager);
/* Before that, where a peer may have it wait in a read for good (before Linux 6.10; uffd.c): then
 * it goes on without the peer, to end what others have it do. No range is active any more. */
void lr_pager_unblock(struct lr_pager *pager);
/* For that: once more, where the thread has ended. */
void lr_pager_restart(struct lr_pager *pager);
/* In a forked child, where the thread does not exist: free what it had here. */
void lr_pager_abandon(struct lr_pager *pager);

/* The part of serving a fault that is the same for whoever does it. Call with `busy` held; the
 * piece's range is active. LR_OK, LR_LATER or LR_ERR_NOMEM, as lr_loader_fault. */
int lr_pager_serve_piece(struct lr_pager *pager, struct lr_hands *hands, struct lr_waiting *fault,
			 const struct lr_piece *piece, struct lr_outcome *ret_outcome);
/* For near.c. Read what there is and serve it; true where something is to be tried again. */
bool lr_pager_serve(struct lr_pager *pager);
/* poll() fails because a peer has made reading its userfaultfd block. */
void lr_pager_undo_blocking(struct lr_pager *pager);
/* As much of the stack as serving a fault takes: at a memory limit it must be there. */
void lr_pager_have_stack(void);

#endif
