#include "pieces.h"

#include <string.h>

/* More mappings than a process may have (vm.max_map_count is 65530 unless it was raised). */
#define EXTRA_PIECES (1u << 17)

uint32_t lr_pieces_max(const struct lr_image *image)
{
	uint64_t room = (uint64_t)image->info.region_count + EXTRA_PIECES;

	return room < UINT32_MAX ? (uint32_t)room : UINT32_MAX;
}

uint64_t lr_pieces_bytes(const struct lr_image *image)
{
	return 2 * (uint64_t)lr_pieces_max(image) * sizeof(struct lr_piece);
}

void lr_pieces_open(struct lr_target *target, void *memory)
{
	target->pieces_max = lr_pieces_max(target->image);
	target->tables[0].items = memory;
	target->tables[1].items = target->tables[0].items + target->pieces_max;
}

uint32_t lr_pieces_slot(const struct lr_pieces *table, uint64_t address)
{
	uint32_t low = 0, high = table->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (table->items[middle].end <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

bool lr_pieces_insert(const struct lr_target *target, struct lr_pieces *table,
		      const struct lr_piece *piece)
{
	uint32_t slot = lr_pieces_slot(table, piece->start);

	if (table->count == target->pieces_max)
		return false;
	memmove(table->items + slot + 1, table->items + slot,
		(table->count - slot) * sizeof(struct lr_piece));
	table->items[slot] = *piece;
	table->count++;
	return true;
}

void lr_pieces_delete(struct lr_pieces *table, uint32_t slot)
{
	table->count--;
	memmove(table->items + slot, table->items + slot + 1,
		(table->count - slot) * sizeof(struct lr_piece));
}

struct lr_pieces *lr_pieces_begin(struct lr_target *target)
{
	const struct lr_pieces *current = lr_pieces_current(target);
	struct lr_pieces *other = &target->tables[current == &target->tables[0]];

	/* Sequentially consistent: a forked child's copy must not have the edit without this. */
	atomic_fetch_add(&other->version, 1);
	memcpy(other->items, current->items, current->count * sizeof(struct lr_piece));
	other->count = current->count;
	return other;
}

void lr_pieces_commit(struct lr_target *target, struct lr_pieces *table)
{
	atomic_store(&table->version_after, atomic_load(&table->version));
	/* Release: partner of the acquire in lr_pieces_current. */
	atomic_store_explicit(&target->current, (uint32_t)(table - target->tables),
			      memory_order_release);
}

bool lr_pieces_cut(struct lr_target *target, struct lr_pieces *table, uint64_t start, uint64_t end,
		   struct lr_piece *ret_cut)
{
	uint32_t slot = lr_pieces_slot(table, start);
	struct lr_piece piece, tail;

	if (slot == table->count || table->items[slot].start >= end)
		return false;
	piece = tail = table->items[slot];
	if (piece.start < start) {
		table->items[slot].end = start;
		piece.offset += start - piece.start;
		piece.start = start;
	} else {
		lr_pieces_delete(table, slot);
	}
	if (piece.end > end) {
		tail.offset += end - tail.start;
		tail.start = end;
		piece.end = end;
		if (!lr_pieces_insert(target, table, &tail))
			target->is_lost = true;
	}
	*ret_cut = piece;
	return true;
}
