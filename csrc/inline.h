/*
 * Faults that are answered by the thread that touched, in its SIGBUS handler: no other thread has
 * to be woken. Floor 6. The userfaultfd of such a session sends no fault messages
 * (UFFD_FEATURE_SIGBUS), and system calls on missing pages fail.
 *
 * Several threads now install pages. So what one thread would do by being one takes a lock: whoever
 * installs holds the loader's `busy` from his look at a page's state until the page is there, and
 * the pager holds it from before it reads messages until it has done what they say. Clusters are
 * looked up and decoded before that, with hands from a pool.
 *
 * The handler blocks all signals, allocates nothing, and holds a lock for no longer than it takes
 * to install a cluster. It never waits for long, but returns: then the touch is repeated, and other
 * signals come in between. Nothing here is held by a thread that touches lazy memory.
 */
#ifndef LR_INLINE_H
#define LR_INLINE_H

#include "pager.h"
#include "pool.h"

struct lr_inline {
	struct lr_pager *pager;
	struct lr_pool pool;
	_Atomic bool is_closing; /* pieces are taken out, and memory is fenced */
	struct lr_inline_entry *entry;
};

/* Whether it is in use. */
static inline bool lr_inline_is_on(const struct lr_inline *in_thread)
{
	return in_thread->entry != NULL;
}

/* Begin to answer faults in the memory of a pager's target. LR_ERR_LIMIT where there are too many
 * sessions, or too many handlers of the program's between ours. */
int lr_inline_open(struct lr_inline *in_thread, struct lr_pager *pager);
/* Before anything of the target is taken apart. */
static inline void lr_inline_begin_close(struct lr_inline *in_thread)
{
	atomic_store(&in_thread->is_closing, true);
}
/* Wait until no thread is in here for it. Memory that is still missing must be fenced, or gone. */
void lr_inline_close(struct lr_inline *in_thread);

/* A range's state has changed: threads that touched it may wait for that. */
void lr_inline_wake(struct lr_range *range);

/* In a forked child: forget all sessions and who was in here; and free what one of them had. */
void lr_inline_reset(void);
void lr_inline_abandon(struct lr_inline *in_thread);

/* How many faults this thread has answered for itself: the kernel does not count them. */
uint64_t lr_inline_answered(void);

#endif
