#include "elsewhere.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "install.h"
#include "pieces.h"

/* How much at a time. */
#define ZEROS_MAX (64u << 10)
#define TRIES_MAX 3

/* Up to where from `page` on there is nothing but what is no region's. */
static uint64_t end_of(struct lr_target *target, uint64_t page, uint64_t limit)
{
	const struct lr_pieces *table;
	uint32_t slot;

	if (limit > page + ZEROS_MAX)
		limit = page + ZEROS_MAX;
	pthread_mutex_lock(&target->lock);
	table = lr_pieces_current(target);
	slot = lr_pieces_slot(table, page);
	if (slot < table->count && table->items[slot].start < limit)
		limit = table->items[slot].start;
	pthread_mutex_unlock(&target->lock);
	return limit;
}

/* Of what cannot be touched, the kernel lets nobody see why: missing, or fenced. So it is asked to
 * read there. (There is no such way of changing the mask: it stays as it is.) */
static bool is_readable(uint64_t page)
{
	return syscall(SYS_rt_sigprocmask, -1, (void *)(uintptr_t)page, NULL, 8) == 0
	       || errno != EFAULT;
}

/* Of a target that does not know any more where its memory is. */
static bool give_fence(struct lr_target *target, uint64_t page)
{
	struct lr_piece unknown = {.start = page, .end = page + target->host_page};

	if (lr_uffd_poison(&target->uffd, page, target->host_page) == -EEXIST)
		return false;
	lr_install_fence(target, &unknown, page, target->host_page);
	return true;
}

bool lr_elsewhere_give(struct lr_target *target, uint64_t page, uint64_t limit, bool *ret_is_late)
{
	uint64_t bytes = end_of(target, page, limit) - page;
	struct lr_piece piece;
	int64_t done = 0;

	*ret_is_late = false;
	if (lr_target_find(target, page, &piece))
		return true;
	/* It was brought since, or given back with all the rest. */
	if (is_readable(page))
		return true;
	if (lr_uffd_register(&target->uffd, page, target->host_page, NULL) < 0)
		return false;
	if (target->is_lost)
		return give_fence(target, page);
	for (int tries = 0; tries < TRIES_MAX; tries++) {
		done = lr_uffd_zeropage(&target->uffd, page, bytes);
		if (done != -EEXIST && done != -ENOENT) {
			*ret_is_late = done < 0;
			return true;
		}
		/* Somebody else had it brought. */
		if (is_readable(page))
			return true;
		/* Given up since, perhaps; or only this page is registered, and that just now. */
		bytes = target->host_page;
	}
	*ret_is_late = done == -ENOENT;
	/* A fence that an ended session left: it was not registered at all. */
	if (done == -EEXIST)
		lr_uffd_unregister(&target->uffd, page, target->host_page);
	return done != -EEXIST;
}
