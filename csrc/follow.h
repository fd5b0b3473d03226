/*
 * What owners did to their memory, as the pager reads of it. Floor 3.
 *
 * Messages of different threads may come in another order than what they tell of: one thread unmaps
 * a place, another maps or moves something there, and the second message is read first. The first
 * must not be taken to be about what is there now. So places of which an UNMAP is still to be read
 * are noted, and what is put there survives so many UNMAPs. Two ways to know of them: where
 * something is moved to, what the table has there must be gone; and each move sends a REMAP, and
 * then an UNMAP of the old place.
 */
#ifndef LR_FOLLOW_H
#define LR_FOLLOW_H

#include "target.h"

/* Do what a message other than a fault says. */
void lr_follow(struct lr_target *target, const struct lr_uffd_message *message);
/* Another target has registered what is here now. */
void lr_follow_taken(struct lr_target *target, uint64_t start, uint64_t end);
/* Something was mapped here that no message still to come is about. The target's lock is held. */
void lr_follow_forget(struct lr_target *target, uint64_t start, uint64_t end);

#endif
