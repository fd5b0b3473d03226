#include "follow.h"

#include <string.h>
#include <sys/mman.h>

#include "pieces.h"

/* What the image has for a piece's pages will not be put there any more. */
static void settle(struct lr_target *target, const struct lr_piece *piece)
{
	lr_pageset_settle(&target->clusters, lr_target_page(target, piece->range, piece->offset),
			  (piece->end - piece->start) / target->host_page);
}

static void insert(struct lr_target *target, struct lr_pieces *table, const struct lr_piece *piece)
{
	if (!lr_pieces_insert(target, table, piece))
		target->is_lost = true;
}

static struct lr_piece part_of(struct lr_piece piece, uint64_t start, uint64_t end)
{
	if (piece.start < start) {
		piece.offset += start - piece.start;
		piece.start = start;
	}
	if (piece.end > end)
		piece.end = end;
	return piece;
}

/* The owner gave up what was there: it is zeros from now on. */
static void apply_remove(struct lr_target *target, uint64_t start, uint64_t end)
{
	const struct lr_pieces *table = lr_pieces_current(target);

	for (uint32_t slot = lr_pieces_slot(table, start);
	     slot < table->count && table->items[slot].start < end; slot++) {
		struct lr_piece part = part_of(table->items[slot], start, end);

		/* Else it is the session's own doing, while it attaches the range. */
		if (lr_range_state(part.range) != LR_RANGE_CHANGING)
			settle(target, &part);
	}
}

/* ---- Places of which an UNMAP is still to be read ---- */

static void note_unmapped(struct lr_target *target, uint64_t start, uint64_t end, uint32_t untold)
{
	/* The oldest makes room: it was kept (MREMAP_DONTUNMAP), or its message would have come. */
	if (target->unmapped_count == LR_UNMAPPED_MAX)
		memmove(target->unmapped, target->unmapped + 1,
			--target->unmapped_count * sizeof(target->unmapped[0]));
	target->unmapped[target->unmapped_count++] = (struct lr_unmapped){start, end, untold};
}

/* Count [start, end) down by `told` wherever it is noted. */
static void tell(struct lr_target *target, uint64_t start, uint64_t end, uint32_t told)
{
	uint32_t count = target->unmapped_count;

	for (uint32_t i = 0; i < count;) {
		struct lr_unmapped old = target->unmapped[i];

		if (old.start >= end || old.end <= start) {
			i++;
			continue;
		}
		/* Taken out, and what is left of it put in at the end. */
		count--;
		memmove(target->unmapped + i, target->unmapped + i + 1,
			(--target->unmapped_count - i) * sizeof(old));
		if (old.start < start)
			note_unmapped(target, old.start, start, old.untold);
		if (old.end > end)
			note_unmapped(target, end, old.end, old.untold);
		if (old.untold > told)
			note_unmapped(target, old.start > start ? old.start : start,
				      old.end < end ? old.end : end, old.untold - told);
	}
}

void lr_follow_forget(struct lr_target *target, uint64_t start, uint64_t end)
{
	tell(target, start, end, UINT32_MAX);
}

/* How many are still to be read of `start`, and up to where that is so. */
static uint32_t untold_at(const struct lr_target *target, uint64_t start, uint64_t *end)
{
	uint32_t untold = 0;

	for (uint32_t i = 0; i < target->unmapped_count; i++) {
		const struct lr_unmapped *old = &target->unmapped[i];

		if (old->start <= start && start < old->end) {
			untold += old->untold;
			if (*end > old->end)
				*end = old->end;
		} else if (old->start > start && old->start < *end) {
			*end = old->start;
		}
	}
	return untold;
}

/* ---- */

/* Make a range that was cut whole again, where it was attached. */
static void put_back(struct lr_target *target, struct lr_pieces *table, struct lr_range *range)
{
	struct lr_piece whole = {
		.start = range->start, .end = range->start + range->bytes, .range = range};
	struct lr_piece cut;

	while (lr_pieces_cut(target, table, whole.start, whole.end, &cut))
		continue;
	insert(target, table, &whole);
}

/* A piece is gone for good. That of a whole range, as most are, is one note and not one a page. */
static void lose(struct lr_target *target, const struct lr_piece *piece)
{
	if (piece->end - piece->start == piece->range->bytes)
		atomic_store_explicit(&piece->range->is_unmapped, true, memory_order_relaxed);
	else
		settle(target, piece);
}

static void apply_unmap(struct lr_target *target, uint64_t start, uint64_t end)
{
	struct lr_pieces *table = lr_pieces_begin(target);
	struct lr_range *attached = NULL;
	struct lr_piece cut;

	/* Whatever is mapped there now may just have been taken for a piece by a fork. */
	if (target->is_advised)
		madvise((void *)(uintptr_t)start, end - start, MADV_DOFORK);
	for (uint64_t from = start; lr_pieces_cut(target, table, from, end, &cut); from = cut.end) {
		if (cut.untold > 0) {
			cut.untold--;
			insert(target, table, &cut);
		} else if (lr_range_state(cut.range) == LR_RANGE_CHANGING) {
			/* What is being attached was mapped after that, or it would not be. */
			attached = cut.range;
		} else {
			lose(target, &cut);
		}
	}
	if (attached)
		put_back(target, table, attached);
	lr_pieces_commit(target, table);
	tell(target, start, end, 1);
}

/* Put a piece where it was moved to, in as many parts as differ in what is still to be read. */
static void put_down(struct lr_target *target, struct lr_pieces *table, struct lr_piece piece)
{
	uint64_t end = piece.end;

	while (piece.start < end) {
		struct lr_piece part;
		uint64_t stop = end;

		piece.untold = untold_at(target, piece.start, &stop);
		part = part_of(piece, piece.start, stop);
		insert(target, table, &part);
		piece.offset += stop - piece.start;
		piece.start = stop;
	}
}

static void apply_remap(struct lr_target *target, uint64_t from, uint64_t end, uint64_t to)
{
	struct lr_pieces *table = lr_pieces_begin(target);
	struct lr_piece cut;

	/* What was at the new place is gone, of which nothing was read yet. (The new place never
	 * overlaps with the old one.) */
	while (lr_pieces_cut(target, table, to, to + (end - from), &cut)) {
		settle(target, &cut);
		note_unmapped(target, cut.start, cut.end, cut.untold + 1);
	}
	note_unmapped(target, from, end, 1);
	while (lr_pieces_cut(target, table, from, end, &cut)) {
		if (cut.untold > 0)
			note_unmapped(target, cut.start, cut.end, cut.untold);
		cut.start = cut.start - from + to;
		cut.end = cut.end - from + to;
		put_down(target, table, cut);
	}
	lr_pieces_commit(target, table);
}

void lr_follow_taken(struct lr_target *target, uint64_t start, uint64_t end)
{
	struct lr_pieces *table;
	struct lr_piece cut;

	pthread_mutex_lock(&target->lock);
	table = lr_pieces_current(target);
	if (lr_pieces_slot(table, start) < table->count
	    && table->items[lr_pieces_slot(table, start)].start < end) {
		table = lr_pieces_begin(target);
		while (lr_pieces_cut(target, table, start, end, &cut))
			settle(target, &cut);
		lr_pieces_commit(target, table);
	}
	pthread_mutex_unlock(&target->lock);
}

void lr_follow(struct lr_target *target, const struct lr_uffd_message *message)
{
	pthread_mutex_lock(&target->lock);
	if (message->kind == LR_UFFD_REMOVE)
		apply_remove(target, message->start, message->end);
	else if (message->kind == LR_UFFD_UNMAP)
		apply_unmap(target, message->start, message->end);
	else if (message->kind == LR_UFFD_REMAP)
		apply_remap(target, message->start, message->end, message->to);
	pthread_mutex_unlock(&target->lock);
}
