#include "install.h"

#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

static int64_t install_once(const struct lr_target *target, enum lr_install_kind kind, uint64_t to,
			    const uint8_t *from, uint64_t bytes)
{
	switch (kind) {
	case LR_INSTALL_COPY:
		return lr_uffd_copy(&target->uffd, to, from, bytes);
	case LR_INSTALL_ZEROPAGE:
		return lr_uffd_zeropage(&target->uffd, to, bytes);
	default:
		return lr_uffd_poison(&target->uffd, to, bytes);
	}
}

/* As large as the largest page of a host. */
static const uint8_t zeros[65536];

/* A page that was fenced when its cluster could not be read takes a copy, but not the zero page. */
static int64_t replace_fence(const struct lr_target *target, enum lr_install_kind kind, uint64_t to)
{
	if (kind != LR_INSTALL_ZEROPAGE)
		return -EEXIST;
	return lr_uffd_copy(&target->uffd, to, zeros, target->host_page);
}

static void pause_for_memory(void)
{
	struct timespec pause = {.tv_nsec = 1000000};

	nanosleep(&pause, NULL);
}

int lr_install(const struct lr_target *target, const struct lr_range *range,
	       enum lr_install_kind kind, bool is_demand, uint64_t to, const uint8_t *from,
	       uint64_t bytes, uint64_t *pages, int *ret_os_error)
{
	uint64_t page = target->host_page;
	uint64_t step = bytes; /* how much to ask for at once */

	while (bytes > 0) {
		int64_t done = install_once(target, kind, to, from, step < bytes ? step : bytes);

		if (done == -EEXIST)
			done = replace_fence(target, kind, to);
		if (done > 0) {
			*pages += (uint64_t)done / page;
			step = bytes;
		} else if (done == -EEXIST) {
			/* There already: who waits for it may have asked before it came. */
			lr_uffd_wake(&target->uffd, to, page);
			done = (int64_t)page;
		} else if (done == -ENOENT && step > page) {
			/* The run crosses the end of a mapping that was split: page by page from
			 * here. */
			step = page;
			continue;
		} else if (done == -ENOENT) {
			/* This page was unmapped or given to somebody else: nobody may wait for it.
			 */
			lr_uffd_wake(&target->uffd, to, page);
			done = (int64_t)page;
		} else if (done == -EAGAIN || done == 0) {
			sched_yield();
			continue;
		} else if (done == -ENOMEM) {
			if (!is_demand)
				return LR_ERR_NOMEM;
			if (lr_range_state(range) != LR_RANGE_ACTIVE)
				return LR_ERR_CLOSED;
			pause_for_memory();
			continue;
		} else {
			*ret_os_error = (int)-done;
			return done == -ESRCH || done == -ENOSPC ? LR_ERR_GONE : LR_ERR_SYSTEM;
		}
		to += (uint64_t)done;
		bytes -= (uint64_t)done;
		if (from)
			from += done;
	}
	return LR_OK;
}

int lr_install_fence(const struct lr_target *target, const struct lr_range *range, uint64_t to,
		     uint64_t bytes)
{
	uint64_t pages = 0;
	int os_error = 0;

	if (lr_install(target, range, LR_INSTALL_POISON, true, to, NULL, bytes, &pages, &os_error)
	    == LR_OK)
		return 1;
	/* Older kernels: take the access away, in this process's own memory. Splits the mapping; if
	 * the kernel allows no more of those, take it from the whole range rather than let anyone
	 * read zeros. */
	if (mprotect((void *)(uintptr_t)to, bytes, PROT_NONE) == 0
	    || mprotect((void *)(uintptr_t)range->start, range->bytes, PROT_NONE) == 0) {
		lr_uffd_wake(&target->uffd, to, bytes);
		return 2;
	}
	return 0;
}
