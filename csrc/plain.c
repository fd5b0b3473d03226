/*
 * Giving a range back: when all of it was brought, its memory needs no userfaultfd any more, and is
 * its owner's like any other. Run by the pager, for the fill.
 *
 * What is not registered reads as zeros where it is missing. So it must be certain that every page
 * was settled, or is zeros in the image, and that what lies at these addresses is what the table
 * says. Only the pager settles pages. But memory may be moved here at any moment, and the kernel
 * takes a registration away without asking whether there is a message that would tell of it. So
 * that is asked before, and again afterwards: whoever moved something here in between waits in
 * mremap() still, and it is registered again before that returns. What was moved away while it was
 * not registered nobody tells: the table says then that the range lies where something else may be.
 * Nothing is fenced there: all that is missing is zeros.
 */
#include <sys/mman.h>

#include "keep.h"
#include "pieces.h"
#include "session.h"

#define SLICE_BYTES (2ull << 20)

/* Every page of a piece was settled, or is zeros in the image. */
static bool is_whole(const struct lr_target *target, const struct lr_chunks *chunks,
		     const struct lr_piece *piece)
{
	const struct lr_range *range = piece->range;
	uint64_t first = lr_target_page(target, range, 0);
	uint64_t end = piece->offset + (piece->end - piece->start), offset = piece->offset;

	for (;;) {
		uint64_t page =
			lr_pageset_next(&target->clusters, lr_target_page(target, range, offset),
					lr_target_page(target, range, end), false);

		offset = (page - first) * target->host_page;
		if (offset >= end)
			return true;
		if (lr_chunks_look(chunks, range, offset, &offset) != LR_CHUNK_ZERO)
			return false;
		if (offset >= end)
			return true;
	}
}

static bool all_whole(struct lr_target *target, const struct lr_chunks *chunks,
		      struct lr_range *range)
{
	struct lr_piece piece;

	for (uint64_t offset = 0; lr_target_find_offset(target, range, offset, &piece);
	     offset = piece.offset + (piece.end - piece.start))
		if (!is_whole(target, chunks, &piece))
			return false;
	return true;
}

static void unregister_all(struct lr_target *target, struct lr_range *range)
{
	struct lr_piece piece;

	for (uint64_t offset = 0; lr_target_find_offset(target, range, offset, &piece);
	     offset = piece.offset + (piece.end - piece.start))
		lr_uffd_unregister(&target->uffd, piece.start, piece.end - piece.start);
}

static int register_again(struct lr_target *target, uint64_t start, uint64_t bytes)
{
	bool has_zeropage; /* or not: hugetlb's */

	return lr_uffd_check(&target->uffd, start, bytes, &has_zeropage, NULL);
}

static void register_all(struct lr_target *target, struct lr_range *range)
{
	struct lr_piece piece;

	for (uint64_t offset = 0; lr_target_find_offset(target, range, offset, &piece);
	     offset = piece.offset + (piece.end - piece.start)) {
		if (register_again(target, piece.start, piece.end - piece.start) == LR_OK)
			continue;
		/* Part of it may be something else by now. */
		for (uint64_t at = piece.start; at < piece.end; at += SLICE_BYTES)
			register_again(target, at,
				       piece.end - at < SLICE_BYTES ? piece.end - at : SLICE_BYTES);
	}
}

/* No message is under way that would tell of memory that was moved, unmapped or given up. */
static bool is_quiet(struct lr_target *target, const struct lr_range *range)
{
	return lr_uffd_is_quiet(&target->uffd, range->start, target->host_page);
}

/* Children may have it, as they have all memory: nothing that would be zeros there is missing.
 * While it is registered still: where it lies after that, nobody tells. */
static void give_to_children(struct lr_target *target, struct lr_range *range)
{
	struct lr_piece piece;

	for (uint64_t offset = 0; lr_target_find_offset(target, range, offset, &piece);
	     offset = piece.offset + (piece.end - piece.start))
		madvise((void *)(uintptr_t)piece.start, piece.end - piece.start, MADV_DOFORK);
}

/* Out of the look-up. */
static void let_go(struct lr_target *target, struct lr_range *range)
{
	struct lr_pieces *table;

	pthread_mutex_lock(&target->lock);
	table = lr_pieces_begin(target);
	for (uint32_t slot = 0; slot < table->count;) {
		struct lr_piece *piece = &table->items[slot];

		if (piece->range != range) {
			slot++;
			continue;
		}
		range->plain_pages += (piece->end - piece->start) / target->host_page;
		lr_pieces_delete(table, slot);
	}
	target->plain_pages += range->plain_pages;
	target->attached -= range->is_entered;
	range->is_entered = false;
	lr_pieces_commit(target, table);
	pthread_mutex_unlock(&target->lock);
}

static int release(struct lr_target *target, const struct lr_chunks *chunks, struct lr_range *range)
{
	if (!target->uffd.tells_quiet || target->is_lost)
		return LR_ERR_UNSUPPORTED;
	if (!all_whole(target, chunks, range))
		return LR_ERR_GONE;
	atomic_store_explicit(&range->is_whole, true, memory_order_relaxed);
	if (!is_quiet(target, range))
		return LR_ERR_BUSY;
	if (!target->is_remote)
		give_to_children(target, range);
	if (!lr_range_change(range, LR_RANGE_ACTIVE, LR_RANGE_PLAIN))
		return LR_ERR_CLOSED;
	/* Before it is so: where this process ends in between, and the next one knows of no such
	 * piece, what is missing there is zeros, as it should be. */
	if (target->kept)
		lr_keep_save(target, range);
	unregister_all(target, range);
	if (is_quiet(target, range)) {
		let_go(target, range);
		return LR_OK;
	}
	register_all(target, range);
	if (target->kept)
		lr_keep_save(target, NULL);
	lr_range_change(range, LR_RANGE_PLAIN, LR_RANGE_ACTIVE);
	return LR_ERR_BUSY;
}

int lr_session_release(struct lr_loader *loader, struct lr_job *job)
{
	int code;

	if (loader->target->is_remote)
		return release(loader->target, job->context, job->range);
	/* No fork() may come between, nor may anything else be attached there. */
	if (!lr_fork_try_block())
		return LR_ERR_BUSY;
	code = release(loader->target, job->context, job->range);
	lr_fork_unblock();
	return code;
}
