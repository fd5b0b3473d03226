/*
 * One restored image in this process: owns the target's memory, its userfaultfd and its pager.
 * Floor 6.
 */
#ifndef LR_SESSION_H
#define LR_SESSION_H

#include <sys/types.h>

#include "pager.h"

struct lr_session {
	const struct lr_image *image;
	struct lr_target target;
	struct lr_pager pager;
	struct lr_loader ahead;  /* for populate: in the calling thread, one at a time */
	pid_t pid;               /* whose session it is: a forked child has none */
	struct lr_session *next; /* in fork.c's list */
};

/* What a child of fork() finds where a lazy region was: nothing it may touch, and nothing else
 * either (fork.c). */
void lr_fork_watch(struct lr_session *session);
void lr_fork_forget(struct lr_session *session);

#endif
