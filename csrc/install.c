#include "install.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int64_t install_once(struct lr_target *target, enum lr_install_kind kind, uint64_t to,
			    const uint8_t *from, uint64_t bytes)
{
	switch (kind) {
	case LR_INSTALL_COPY:
		return lr_uffd_copy(&target->uffd, to, from, bytes);
	case LR_INSTALL_ZEROPAGE:
		if (target->zeros)
			return lr_uffd_copy(&target->uffd, to, target->zeros, target->host_page);
		return lr_uffd_zeropage(&target->uffd, to, bytes);
	default:
		return lr_uffd_poison(&target->uffd, to, bytes);
	}
}

/* What is longer is fenced by taking the access away: poison takes page tables and time, 2 GiB and
 * 80 s for a tebibyte. */
#define POISON_MAX (1ull << 30)

/* As large as the largest page of a host, but for hugetlb's. */
static const uint8_t zeros[65536];

/* A page that was fenced when its cluster could not be read takes a copy, but not the zero page. */
static int64_t replace_fence(struct lr_target *target, enum lr_install_kind kind, uint64_t to)
{
	if (kind != LR_INSTALL_ZEROPAGE || target->zeros)
		return -EEXIST;
	return lr_uffd_copy(&target->uffd, to, zeros, target->host_page);
}

/* A page that is said to be there already. Hugetlb says so, too, where its pool has no page for it,
 * and what is missing must not be taken for settled. */
static bool is_there(const struct lr_target *target, enum lr_install_kind kind, uint64_t page)
{
	void *address = (void *)(uintptr_t)page;
	int node = -1;

	if (!target->zeros || kind == LR_INSTALL_POISON)
		return true;
	/* Moves nothing: it asks where the page is. (0: in this process.) */
	return (target->peer || !target->is_remote)
	       && syscall(SYS_move_pages, target->peer, 1ul, &address, NULL, &node, 0) == 0
	       && node >= 0;
}

/* What a request that did nothing means. */
static int code_of(struct lr_target *target, int64_t error, struct lr_installed *installed)
{
	/* 0 is none of the documented results: look for messages rather than ask for ever. */
	if (error == -EAGAIN || error == 0)
		return LR_LATER;
	installed->os_error = (int)-error;
	if (error == -ENOMEM)
		return LR_ERR_NOMEM;
	if (error != -ESRCH && error != -ENOSPC)
		return LR_ERR_SYSTEM;
	lr_target_note_gone(target);
	return LR_ERR_GONE;
}

/* What is not there may come to be there. (A fence is for what is there.) */
static bool is_not_yet(const struct lr_target *target, enum lr_install_kind kind)
{
	return kind != LR_INSTALL_POISON
	       && atomic_load_explicit(&target->is_mapping, memory_order_acquire);
}

int lr_install(struct lr_target *target, enum lr_install_kind kind, uint64_t to,
	       const uint8_t *from, uint64_t bytes, struct lr_installed *ret_installed)
{
	uint64_t page = target->host_page;
	uint64_t step = bytes; /* how much to ask for at once */
	bool is_asked_again = false;

	memset(ret_installed, 0, sizeof(*ret_installed));
	while (bytes > 0) {
		int64_t done = install_once(target, kind, to, from, step < bytes ? step : bytes);

		if (done == -EEXIST)
			done = replace_fence(target, kind, to);
		if (done == -EEXIST && !is_there(target, kind, to))
			done = -ENOMEM;
		if (done > 0) {
			ret_installed->pages += (uint64_t)done / page;
			step = bytes;
		} else if (done == -EEXIST) {
			/* There already: who waits for it may have asked before it came. */
			lr_uffd_wake(&target->uffd, to, page);
			done = (int64_t)page;
		} else if (done == -ENOENT && step > page) {
			/* The run crosses the end of a mapping that was split: page by page from
			 * here. */
			step = page;
			is_asked_again = true;
			continue;
		} else if (done == -ENOENT && !is_asked_again) {
			/* It may have been moved while the kernel was looking for it, after it had
			 * looked whether anything changes. Asked again it says so: only this thread
			 * can read that message. */
			is_asked_again = true;
			continue;
		} else if ((done == -ENOENT || done == -EINVAL) && is_not_yet(target, kind)) {
			/* Nor is what lies behind it looked at. */
			lr_uffd_wake(&target->uffd, to, page);
			return LR_OK;
		} else if (done == -ENOENT) {
			/* This page was unmapped or given to somebody else: nobody may wait for it.
			 */
			lr_uffd_wake(&target->uffd, to, page);
			done = (int64_t)page;
		} else {
			return code_of(target, done, ret_installed);
		}
		is_asked_again = false;
		ret_installed->bytes += (uint64_t)done;
		to += (uint64_t)done;
		bytes -= (uint64_t)done;
		if (from)
			from += done;
	}
	return LR_OK;
}

int lr_install_zeros(struct lr_target *target, uint64_t to, uint64_t bytes,
		     struct lr_installed *ret_installed)
{
	int64_t done = install_once(target, LR_INSTALL_ZEROPAGE, to, NULL, bytes);

	memset(ret_installed, 0, sizeof(*ret_installed));
	if (done == -ENOENT || done == -EEXIST)
		return lr_install(target, LR_INSTALL_ZEROPAGE, to, NULL, target->host_page,
				  ret_installed);
	if (done <= 0)
		return code_of(target, done, ret_installed);
	ret_installed->bytes = (uint64_t)done;
	ret_installed->pages = (uint64_t)done / target->host_page;
	return LR_OK;
}

int lr_install_fence(struct lr_target *target, const struct lr_piece *piece, uint64_t to,
		     uint64_t bytes)
{
	struct lr_installed installed;
	int code = LR_ERR_SYSTEM;

	if (bytes <= POISON_MAX || target->is_remote)
		code = lr_install(target, LR_INSTALL_POISON, to, NULL, bytes, &installed);
	if (code == LR_OK || code == LR_LATER)
		return code == LR_OK ? 1 : code;
	/* Nothing else can be done with another process's memory. He waits: that is better than
	 * zeros. */
	if (target->is_remote)
		return code == LR_ERR_SYSTEM ? 0 : code;
	/* Older kernels: take the access away, in this process's own memory. Splits the mapping; if
	 * the kernel allows no more of those, take it from the whole piece rather than let anyone
	 * read zeros. */
	if (mprotect((void *)(uintptr_t)to, bytes, PROT_NONE) == 0
	    || mprotect((void *)(uintptr_t)piece->start, piece->end - piece->start, PROT_NONE)
		       == 0) {
		lr_uffd_wake(&target->uffd, to, bytes);
		return 2;
	}
	/* No memory for what the kernel keeps of mappings: whoever waits must not get zeros. */
	return LR_ERR_NOMEM;
}
