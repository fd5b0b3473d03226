/*
 * One restored image in this process: owns the target's memory, its userfaultfd and its threads.
 * Floor 8.
 */
#ifndef LR_SESSION_H
#define LR_SESSION_H

#include <sys/types.h>

#include "fill.h"
#include "inline.h"

struct lr_session {
	const struct lr_image *image;
	struct lr_target target;
	struct lr_pager pager;
	struct lr_fill fill;
	struct lr_record record;
	struct lr_kept kept;        /* of a peer's */
	struct lr_inline in_thread; /* where threads answer their own faults */
	uint32_t fault_mode;
	pthread_mutex_t feeds_lock;
	struct lr_feed *feeds; /* for populate: one a caller at a time, kept for the next */
	uint32_t trace_records;
	pid_t pid;               /* whose session it is; a forked child makes it its own */
	struct lr_session *next; /* in fork.c's list */
};

/* fork.c. No fork() between the first two: what is open, mapped, registered and entered belongs
 * together. The others are for in between. */
void lr_fork_block(void);
bool lr_fork_try_block(void);
void lr_fork_unblock(void);
void lr_fork_watch(struct lr_session *session);
void lr_fork_forget(struct lr_session *session);
/* Memory here is this session's. What others knew of it is no more, even if they have
 * not read so yet. */
void lr_fork_taken(const struct lr_session *by, uint64_t start, uint64_t end);

/* populate.c */
void lr_populate_close(struct lr_session *session);

/* Start its pager, and what else is to answer faults. On failure none of it is there. */
int lr_session_start(struct lr_session *session, struct lr_problem *ret_problem);

/* serve.c: what lr_session_close does for a peer's. */
void lr_session_stop_serving(struct lr_session *session);

/* plain.c: a job's act, whose context is the fill's chunks. LR_ERR_BUSY: to be tried again. */
int lr_session_release(struct lr_loader *loader, struct lr_job *job);

/* A session's range by its region's number; NULL with the code where there is none, or in a child
 * that does not have the session. */
struct lr_range *lr_session_range(lr_session *session, uint32_t region, int *ret_code);

#endif
