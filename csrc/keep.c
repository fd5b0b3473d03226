#include "keep.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "children.h"
#include "follow.h"
#include "pieces.h"
#include "stats.h"
#include "together.h"

_Static_assert(LR_UFFD_MESSAGES_MAX *LR_UFFD_MESSAGE_BYTES <= LR_KEPT_JOURNAL_BYTES,
	       "the journal has room for what is read at once");
/* A thread that was killed in the read has got them all the same: what the kernel gives out is put
 * here, or it was not given out (a child's userfaultfd among it). */
_Static_assert(LR_UNMAPPED_MAX == LR_KEPT_UNMAPPED_MAX, "all notes are kept");

/* For how long a child may wait for what else is under way. */
#define HELD_MAX_NS 2000000

static const uint8_t *message_at(const struct lr_kept *kept, int i)
{
	return (const uint8_t *)kept->journal + (size_t)i * LR_UFFD_MESSAGE_BYTES;
}

int lr_keep_read(struct lr_target *target, struct lr_uffd_message *ret_messages, int room)
{
	struct lr_kept *kept = target->kept;
	int got = lr_uffd_read_raw(&target->uffd, kept->journal, room), count = 0;

	for (int i = 0; i < got; i++)
		count +=
			lr_uffd_parse(message_at(kept, i), target->host_page, &ret_messages[count]);
	return got < 0 ? got : count;
}

void lr_keep_told(struct lr_target *target)
{
	target->kept->told++;
	lr_keep_save(target, NULL);
}

static void clear(struct lr_kept *kept)
{
	/* All of it, though few may have been read: the kernel does not say how far a reader came
	 * that was killed. In order of address, so that where this ends in between nothing is left
	 * in front of what was worked on. The number last: what it counts is then out of the
	 * journal. */
	for (int i = 0; i < LR_UFFD_MESSAGES_MAX; i++) {
		memset((uint8_t *)kept->journal + (size_t)i * LR_UFFD_MESSAGE_BYTES, 0,
		       LR_UFFD_MESSAGE_BYTES);
		atomic_signal_fence(memory_order_seq_cst);
	}
	atomic_store(&kept->header->told, kept->told);
}

void lr_keep_done(struct lr_target *target)
{
	if (*message_at(target->kept, 0) != 0)
		clear(target->kept);
}

/* What there is now, but for what is of messages that are still to come. */
static void fill_table(struct lr_target *target, struct lr_kept_table *table,
		       const struct lr_range *without)
{
	struct lr_kept_piece *pieces = lr_kept_pieces(table);
	const struct lr_pieces *current;
	uint64_t plain_pages;
	uint32_t count = 0;

	pthread_mutex_lock(&target->lock);
	plain_pages = target->plain_pages;
	current = lr_pieces_current(target);
	for (uint32_t i = 0; i < current->count; i++) {
		const struct lr_piece *piece = &current->items[i];

		if (piece->range == without) {
			plain_pages += (piece->end - piece->start) / target->host_page;
			continue;
		}
		pieces[count++] = (struct lr_kept_piece){
			.start = piece->start,
			.end = piece->end,
			.offset = piece->offset,
			.region = piece->range->number,
			.untold = piece->untold,
		};
	}
	table->count = count;
	table->plain_pages = plain_pages;
	table->is_lost = target->is_lost;
	table->unmapped_count = target->unmapped_count;
	for (uint32_t i = 0; i < target->unmapped_count; i++) {
		table->unmapped[i].start = target->unmapped[i].start;
		table->unmapped[i].end = target->unmapped[i].end;
		table->unmapped[i].untold = target->unmapped[i].untold;
	}
	pthread_mutex_unlock(&target->lock);
}

void lr_keep_save(struct lr_target *target, const struct lr_range *without)
{
	struct lr_kept *kept = target->kept;
	struct lr_kept_table *table = lr_kept_begin(kept);

	fill_table(target, table, without);
	table->told = kept->told;
	/* Nobody forgets one between its being written here and this table's being the one. */
	pthread_mutex_lock(&target->children_lock);
	lr_children_save(target, table);
	lr_kept_publish(kept, table);
	pthread_mutex_unlock(&target->children_lock);
}

/* Nothing that is known to lie anywhere is still to be loaded. */
static bool is_all_there(struct lr_target *target)
{
	struct lr_piece piece;

	if (target->is_lost)
		return false;
	for (uint64_t address = 0; lr_target_next(target, address, &piece); address = piece.end) {
		uint64_t first = lr_target_page(target, piece.range, piece.offset);
		uint64_t end = first + (piece.end - piece.start) / target->host_page;

		if (lr_pageset_next(&target->clusters, first, end, false) < end)
			return false;
	}
	return true;
}

int lr_keep_child(struct lr_target *target, int uffd, uint64_t number)
{
	/* Where the next table will be written: nobody else looks there. */
	struct lr_kept_table *table = lr_kept_begin(target->kept);
	int state, code;

	if (is_all_there(target))
		return LR_KEEP_NOTHING;
	fill_table(target, table, NULL);
	/* What the parent's messages will tell is of the parent: a child has its own. */
	for (uint32_t i = 0; i < table->count; i++)
		lr_kept_pieces(table)[i].untold = 0;
	table->unmapped_count = 0;
	table->told = 0;
	memset(table->children, 0, sizeof(table->children));
	lr_together_mend(target, uffd, table);
	target->together.held_until_ns = lr_clock_ns() + HELD_MAX_NS;
	code = lr_kept_clone(target->kept, table, &state);
	if (code < 0)
		return code;
	if (!lr_together_mend_bits(target, state)) {
		close(state);
		return LR_ERR_NOMEM;
	}
	lr_children_add(target, uffd, state, (uint32_t)number);
	return LR_OK;
}

/* ---- Taking up ---- */

/* The notes of places whose unmapping is still to be read. */
static bool take_unmapped(struct lr_target *target, const struct lr_kept_table *table)
{
	if (table->unmapped_count > LR_UNMAPPED_MAX)
		return false;
	for (uint32_t i = 0; i < table->unmapped_count; i++) {
		if (table->unmapped[i].start >= table->unmapped[i].end
		    || table->unmapped[i].untold > UINT32_MAX)
			return false;
		target->unmapped[i].start = table->unmapped[i].start;
		target->unmapped[i].end = table->unmapped[i].end;
		target->unmapped[i].untold = (uint32_t)table->unmapped[i].untold;
	}
	target->unmapped_count = table->unmapped_count;
	return true;
}

/* One of those. `number` is its own, or of the last before it that has one. */
static int replay_one(struct lr_target *target, const struct lr_uffd_message *message,
		      uint64_t number, uint64_t told)
{
	/* What was given up may be noted twice, but not once that something after it was worked on:
	 * what lies there now may have been moved there. */
	bool is_next = message->kind == LR_UFFD_REMOVE ? number >= told : number > told;
	int child = message->child;

	if (is_next && message->kind == LR_UFFD_FORK)
		return lr_children_room(target) == 0
			       ? LR_ERR_STATE
			       : lr_keep_child(target, lr_uffd_is_one(child) ? child : -1, number);
	if (is_next)
		lr_follow(target, message);
	/* Also where it was worked on: this may have been what was still to be done. */
	if (message->kind == LR_UFFD_UNMAP || message->kind == LR_UFFD_REMAP)
		lr_uffd_wake(&target->uffd, message->start, message->end - message->start);
	return LR_OK;
}

/* Messages that nobody can have finished with. */
static int replay(struct lr_target *target, uint64_t told)
{
	struct lr_kept *kept = target->kept;
	uint64_t number = atomic_load(&kept->header->told);
	int needless[LR_UFFD_MESSAGES_MAX], count = 0, code = LR_OK;

	for (int i = 0; i < LR_UFFD_MESSAGES_MAX && code >= 0; i++) {
		struct lr_uffd_message message;

		if (*message_at(kept, i) == 0)
			break;
		if (!lr_uffd_parse(message_at(kept, i), target->host_page, &message)
		    || message.kind == LR_UFFD_FAULT
		    || (message.kind == LR_UFFD_FORK && !target->takes_children))
			continue;
		number += message.kind != LR_UFFD_REMOVE;
		code = replay_one(target, &message, number, told);
		if (code == LR_KEEP_NOTHING && lr_uffd_is_one(message.child))
			needless[count++] = message.child;
	}
	if (code < 0) {
		lr_children_drop_after(target, told);
		return code;
	}
	kept->told = number > told ? number : told;
	lr_keep_save(target, NULL);
	/* Also where it is empty: who cleared it may not have come to its end, or to the number. */
	clear(kept);
	/* What was read before is not known. */
	lr_children_release(target);
	while (count > 0)
		close(needless[--count]);
	return LR_OK;
}

int lr_keep_load(struct lr_target *target, bool *ret_is_there)
{
	struct lr_kept_table *from = lr_kept_current(target->kept), table;
	struct lr_kept_piece *pieces;
	int code;

	*ret_is_there = from != NULL;
	if (!from)
		return LR_OK;
	/* Copied before it is looked at, because it may change. */
	memcpy(&table, from, sizeof(table));
	pieces = lr_kept_pieces(from);
	if (table.count > target->pieces_max || table.plain_pages > target->clusters.pages
	    || !take_unmapped(target, &table) || !lr_children_load(target, &table))
		return LR_ERR_STATE;
	for (uint32_t i = 0; i < table.count; i++) {
		struct lr_kept_piece kept;

		memcpy(&kept, &pieces[i], sizeof(kept));
		if (kept.region >= target->image->info.region_count
		    || lr_target_add(target, kept.region, kept.start, kept.end - kept.start,
				     kept.offset, kept.untold)
			       < 0)
			return LR_ERR_STATE;
	}
	target->is_lost = table.is_lost != 0;
	target->plain_pages = table.plain_pages;
	code = lr_target_finish_adding(target, false);
	if (code < 0)
		return code == LR_ERR_ARGUMENT ? LR_ERR_STATE : code;
	return replay(target, table.told);
}
