#include "together.h"

#include <string.h>

#include "children.h"
#include "pieces.h"
#include "reserve.h"
#include "stats.h"

enum where { NOT_THERE, THERE, UNSURE };

/* Whether a child has something registered in all of [start, end), or in nothing of it. */
static enum where look(int uffd, uint64_t start, uint64_t end, uint64_t page)
{
	int first = lr_uffd_has(uffd, start, page), last = lr_uffd_has(uffd, end - page, page);

	if (first != last || first < 0)
		return UNSURE;
	return first ? THERE : NOT_THERE;
}

static bool overlaps(uint64_t start, uint64_t end, uint64_t other_start, uint64_t other_end)
{
	return start < other_end && other_start < end;
}

/* ---- A child's table ---- */

struct table {
	struct lr_kept_table *head;
	struct lr_kept_piece *pieces;
	uint32_t max;
	int uffd;
	uint64_t page;
};

/* The first piece that overlaps with [start, end), or -1. */
static int64_t find(const struct table *table, uint64_t start, uint64_t end)
{
	for (uint32_t i = 0; i < table->head->count; i++)
		if (overlaps(start, end, table->pieces[i].start, table->pieces[i].end))
			return i;
	return -1;
}

/* In order of address. */
static void insert(struct table *table, const struct lr_kept_piece *piece)
{
	uint32_t slot = 0, count = table->head->count;

	if (count == table->max) {
		table->head->is_lost = 1;
		return;
	}
	while (slot < count && table->pieces[slot].start < piece->start)
		slot++;
	memmove(table->pieces + slot + 1, table->pieces + slot,
		(count - slot) * sizeof(*table->pieces));
	table->pieces[slot] = *piece;
	table->pieces[slot].untold = 0;
	table->head->count++;
}

/* Take the next part of [start, end) out: false where there is none. */
static bool cut(struct table *table, uint64_t start, uint64_t end, struct lr_kept_piece *ret_part)
{
	int64_t slot = find(table, start, end);
	struct lr_kept_piece piece, rest;

	if (slot < 0)
		return false;
	piece = table->pieces[slot];
	table->head->count--;
	memmove(table->pieces + slot, table->pieces + slot + 1,
		(table->head->count - (uint32_t)slot) * sizeof(piece));
	if (piece.start < start) {
		rest = piece;
		rest.end = start;
		insert(table, &rest);
		piece.offset += start - piece.start;
		piece.start = start;
	}
	if (piece.end > end) {
		rest = piece;
		rest.offset += end - piece.start;
		rest.start = end;
		insert(table, &rest);
		piece.end = end;
	}
	*ret_part = piece;
	return true;
}

static void drop(struct table *table, uint64_t start, uint64_t end)
{
	struct lr_kept_piece part;

	while (cut(table, start, end, &part))
		continue;
}

static struct lr_kept_piece moved(struct lr_kept_piece piece, uint64_t from, uint64_t to)
{
	piece.start = piece.start - from + to;
	piece.end = piece.end - from + to;
	return piece;
}

/* Whether something is there that is not this. */
static bool is_other(const struct table *table, const struct lr_kept_piece *piece)
{
	int64_t slot = find(table, piece->start, piece->end);
	const struct lr_kept_piece *found = &table->pieces[slot < 0 ? 0 : slot];

	return slot >= 0
	       && (found->region != piece->region
		   || found->start - found->offset != piece->start - piece->offset);
}

/* ---- What was read before FORK, and may have been done after it ---- */

/* Whether a move that was undone would explain what a child has at the old place: else it may have
 * left that mapped (MREMAP_DONTUNMAP). */
static bool is_unmoved(const struct lr_together *together, const struct lr_was *was,
		       const struct lr_kept_piece *now, const struct table *table)
{
	for (uint32_t i = was->change + 1; i < together->count; i++)
		if (together->changes[i].kind == LR_UFFD_UNMAP
		    && together->changes[i].start <= was->piece.start
		    && together->changes[i].end >= was->piece.end)
			return true;
	return look(table->uffd, now->start, now->end, table->page) == NOT_THERE;
}

/* True where it is put back. */
static bool undo(const struct lr_together *together, const struct lr_was *was, struct table *table)
{
	struct lr_kept_piece now = was->piece;

	/* What was moved there since is there: that was looked at. */
	if (find(table, was->piece.start, was->piece.end) >= 0
	    || look(table->uffd, was->piece.start, was->piece.end, table->page) != THERE)
		return false;
	if (!was->is_lost) {
		const struct lr_uffd_message *change = &together->changes[was->change];

		now = moved(was->piece, change->start, change->to);
		if (is_other(table, &now) || !is_unmoved(together, was, &now, table))
			return false;
		drop(table, now.start, now.end);
	}
	insert(table, &was->piece);
	return true;
}

void lr_together_mend(struct lr_target *target, int uffd, struct lr_kept_table *head)
{
	struct lr_together *together = &target->together;
	struct table table = {
		.head = head,
		.pieces = lr_kept_pieces(head),
		.max = target->pieces_max,
		.uffd = uffd,
		.page = target->host_page,
	};

	/* The last first. */
	for (uint32_t i = together->was_count; i > 0; i--)
		together->was[i - 1].is_back = undo(together, &together->was[i - 1], &table);
}

bool lr_together_mend_bits(struct lr_target *target, int state)
{
	const struct lr_together *together = &target->together;
	bool is_done = true;

	for (uint32_t i = 0; i < together->was_count && is_done; i++) {
		const struct lr_was *was = &together->was[i];
		const struct lr_range *range = &target->ranges[was->piece.region];
		uint64_t first = lr_target_page(target, range, was->piece.offset);
		uint64_t pages = (was->piece.end - was->piece.start) / target->host_page;

		if (was->is_lost && was->is_back)
			is_done = lr_kept_write_bits(state, target->kept, first, pages,
						     together->settled);
	}
	return is_done;
}

/* ---- What was read after FORK, and may have been done before it ---- */

static void redo_piece(struct table *table, const struct lr_uffd_message *change,
		       const struct lr_kept_piece *piece)
{
	struct lr_kept_piece now = moved(*piece, change->start, change->to);
	bool is_moved = change->kind == LR_UFFD_REMAP
			&& look(table->uffd, now.start, now.end, table->page) == THERE;

	if (look(table->uffd, piece->start, piece->end, table->page) != NOT_THERE) {
		insert(table, piece);
	} else if (is_moved) {
		drop(table, now.start, now.end);
		insert(table, &now);
	}
}

static void redo(struct table *table, const struct lr_uffd_message *change)
{
	struct lr_kept_piece parts[LR_TOGETHER_PIECES];
	uint32_t count = 0;

	while (count < LR_TOGETHER_PIECES && cut(table, change->start, change->end, &parts[count]))
		count++;
	for (uint32_t i = 0; i < count; i++)
		redo_piece(table, change, &parts[i]);
}

static void redo_all(struct lr_target *target, const struct lr_uffd_message *change)
{
	struct lr_kept_table *head = lr_kept_begin(target->kept);
	struct table table = {
		.head = head,
		.pieces = lr_kept_pieces(head),
		.max = target->pieces_max,
		.page = target->host_page,
	};

	for (uint32_t i = 0; i < LR_KEPT_CHILDREN_MAX; i++) {
		if (!lr_children_is_held(target, i, &table.uffd))
			continue;
		/* Where it was written once, this is so again: it has its pages. */
		if (lr_kept_read_table(target->children[i].state, target->kept, head)) {
			redo(&table, change);
			lr_kept_write_table(target->children[i].state, target->kept, head);
		}
	}
}

/* ---- */

/* The older half makes room. */
static void forget_some(struct lr_together *together)
{
	uint32_t half = LR_TOGETHER_CHANGES / 2, kept = 0;

	if (together->count <= half) {
		together->count = together->was_count = 0;
		return;
	}
	for (uint32_t i = 0; i < together->was_count; i++)
		if (together->was[i].change >= half) {
			together->was[kept] = together->was[i];
			together->was[kept++].change -= half;
		}
	together->was_count = kept;
	together->count -= half;
	memmove(together->changes, together->changes + half,
		together->count * sizeof(together->changes[0]));
}

/* Its pages count as given up from now on: what they were is kept. */
static bool keep_bits(struct lr_target *target, const struct lr_kept_piece *piece)
{
	struct lr_together *together = &target->together;
	uint64_t first = lr_target_page(target, &target->ranges[piece->region], piece->offset);
	uint64_t end = first + (piece->end - piece->start) / target->host_page;

	if (!together->settled)
		together->settled = lr_reserve(lr_pageset_settled_bytes(target->clusters.pages));
	if (!together->settled)
		return false;
	/* (Neighbours in a word are written by those that are about them.) */
	for (uint64_t page = first; page < end; page++) {
		uint64_t bit = 1ull << (page % 64), word = together->settled[page / 64];

		together->settled[page / 64] =
			lr_pageset_is_settled(&target->clusters, page) ? word | bit : word & ~bit;
	}
	return true;
}

static void note_piece(struct lr_target *target, const struct lr_piece *piece, uint64_t start,
		       uint64_t end, bool is_lost)
{
	struct lr_together *together = &target->together;
	struct lr_was *was = &together->was[together->was_count];

	if (together->was_count == LR_TOGETHER_PIECES)
		return;
	*was = (struct lr_was){.change = together->count - 1, .is_lost = is_lost};
	was->piece = (struct lr_kept_piece){
		.start = piece->start > start ? piece->start : start,
		.end = piece->end < end ? piece->end : end,
		.offset = piece->offset + (piece->start < start ? start - piece->start : 0),
		.region = piece->range->number,
	};
	if (!is_lost || keep_bits(target, &was->piece))
		together->was_count++;
}

static void note_pieces(struct lr_target *target, uint64_t start, uint64_t end, bool is_lost,
			bool is_unmap)
{
	const struct lr_pieces *table;

	pthread_mutex_lock(&target->lock);
	table = lr_pieces_current(target);
	/* Those of which an UNMAP is still to be read stay. */
	for (uint32_t i = lr_pieces_slot(table, start);
	     i < table->count && table->items[i].start < end; i++)
		if (!is_unmap || table->items[i].untold == 0)
			note_piece(target, &table->items[i], start, end, is_lost);
	pthread_mutex_unlock(&target->lock);
}

void lr_together_note(struct lr_target *target, const struct lr_uffd_message *message)
{
	struct lr_together *together = &target->together;
	bool is_unmap = message->kind == LR_UFFD_UNMAP;

	if (!target->takes_children || !target->uffd.tells_quiet)
		return;
	redo_all(target, message);
	if (together->count == LR_TOGETHER_CHANGES || together->was_count == LR_TOGETHER_PIECES)
		forget_some(together);
	together->changes[together->count++] = *message;
	/* What made room first: it is put back last. */
	if (!is_unmap)
		note_pieces(target, message->to, message->to + (message->end - message->start),
			    true, false);
	note_pieces(target, message->start, message->end, is_unmap, is_unmap);
}

bool lr_together_end(struct lr_target *target)
{
	struct lr_together *together = &target->together;
	bool is_held = lr_children_any_held(target);

	if (!target->takes_children || !target->uffd.tells_quiet
	    || (together->count == 0 && !is_held))
		return false;
	if (lr_uffd_is_quiet(&target->uffd, target->host_page, target->host_page))
		together->count = together->was_count = 0;
	else if (!is_held || lr_clock_ns() < together->held_until_ns)
		return false;
	return lr_children_release(target);
}
