#include "pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* One may be put aside while another thread goes on there. */
#define SLOTS_A_PROCESSOR 2u
#define SLOTS_MAX         256u
/* How often to wait for a slot, and how long. */
#define WAITS_MAX 16
#define WAIT_NS   1000000

int lr_pool_open(struct lr_pool *pool, const struct lr_target *target)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);
	uint32_t count = (uint32_t)(processors > 0 ? processors : 1) * SLOTS_A_PROCESSOR;

	memset(pool, 0, sizeof(*pool));
	if (count > SLOTS_MAX)
		count = SLOTS_MAX;
	pool->slots = calloc(count, sizeof(*pool->slots));
	if (!pool->slots)
		return LR_ERR_NOMEM;
	for (; pool->count < count; pool->count++) {
		int code = lr_hands_open(&pool->slots[pool->count].hands, target);

		if (code < 0) {
			lr_pool_close(pool);
			return code;
		}
		lr_hands_have(&pool->slots[pool->count].hands);
	}
	return LR_OK;
}

void lr_pool_close(struct lr_pool *pool)
{
	for (uint32_t i = 0; i < pool->count; i++)
		lr_hands_close(&pool->slots[i].hands);
	free(pool->slots);
	pool->slots = NULL;
	pool->count = 0;
}

/* This processor's own first: what they know of an index is in its caches. */
static struct lr_pool_slot *try_to_take(struct lr_pool *pool)
{
	int processor = sched_getcpu();
	uint32_t first = (uint32_t)(processor > 0 ? processor : 0) * SLOTS_A_PROCESSOR;

	for (uint32_t i = 0; i < pool->count; i++) {
		struct lr_pool_slot *slot = &pool->slots[(first + i) % pool->count];
		uint32_t expected = 0;

		/* Partner of the store in lr_pool_give: the hands are as they were left. */
		if (atomic_compare_exchange_strong(&slot->is_taken, &expected, 1))
			return slot;
	}
	return NULL;
}

struct lr_pool_slot *lr_pool_take(struct lr_pool *pool)
{
	struct lr_pool_slot *slot = try_to_take(pool);
	struct timespec limit = {.tv_nsec = WAIT_NS};

	if (slot)
		return slot;
	/* Sequentially consistent, before the slots are looked at again: partner of lr_pool_give,
	 * which looks here after it has given one back. */
	atomic_fetch_add(&pool->waiting, 1);
	for (int i = 0; i < WAITS_MAX && !slot; i++) {
		uint32_t releases = atomic_load(&pool->releases);

		slot = try_to_take(pool);
		if (!slot)
			syscall(SYS_futex, &pool->releases, FUTEX_WAIT_PRIVATE, releases, &limit,
				NULL, 0);
	}
	atomic_fetch_sub(&pool->waiting, 1);
	return slot;
}

void lr_pool_give(struct lr_pool *pool, struct lr_pool_slot *slot)
{
	atomic_store(&slot->is_taken, 0);
	if (atomic_load(&pool->waiting) == 0)
		return;
	atomic_fetch_add(&pool->releases, 1);
	syscall(SYS_futex, &pool->releases, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
