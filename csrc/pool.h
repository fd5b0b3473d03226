/*
 * Hands (loader.h) for threads that need some for a moment: a fixed number, had at open. Floor 5.
 * May be used in a signal handler that blocks all signals.
 */
#ifndef LR_POOL_H
#define LR_POOL_H

#include "loader.h"

struct lr_pool_slot {
	_Atomic uint32_t is_taken;
	struct lr_hands hands;
};

struct lr_pool {
	struct lr_pool_slot *slots;
	uint32_t count;
	_Atomic uint32_t waiting;  /* threads that found all taken */
	_Atomic uint32_t releases; /* counts what is given back while some wait */
};

int lr_pool_open(struct lr_pool *pool, const struct lr_target *target);
/* Also in a forked child, where whoever had one does not exist. */
void lr_pool_close(struct lr_pool *pool);

/* Waits where all are taken, but not for long: NULL then. */
struct lr_pool_slot *lr_pool_take(struct lr_pool *pool);
void lr_pool_give(struct lr_pool *pool, struct lr_pool_slot *slot);

#endif
