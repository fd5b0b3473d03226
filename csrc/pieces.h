/*
 * The table of pieces: which part of which range lies at which address. Floor 3, used by target.c
 * only, under the target's lock.
 */
#ifndef LR_PIECES_H
#define LR_PIECES_H

#include "target.h"

static inline struct lr_pieces *lr_pieces_current(struct lr_target *target)
{
	return &target->tables[atomic_load_explicit(&target->current, memory_order_acquire)];
}

/* Room in a table. */
uint32_t lr_pieces_max(const struct lr_image *image);
/* How much both tables take. */
uint64_t lr_pieces_bytes(const struct lr_image *image);
/* Keep them in memory of the caller's: reserved, and had when it is written, for nothing is
 * allocated while messages wait. */
void lr_pieces_open(struct lr_target *target, void *memory);

/* Where a piece that holds `address` would be: the first whose end lies behind it. */
uint32_t lr_pieces_slot(const struct lr_pieces *table, uint64_t address);
/* False where there is no room. */
bool lr_pieces_insert(const struct lr_target *target, struct lr_pieces *table,
		      const struct lr_piece *piece);
void lr_pieces_delete(struct lr_pieces *table, uint32_t slot);

/* Edit the other table, as a copy of the current one, which then takes its place. */
struct lr_pieces *lr_pieces_begin(struct lr_target *target);
void lr_pieces_commit(struct lr_target *target, struct lr_pieces *table);

/* Cut the next part of [start, end) out of a table; false when nothing of it is left. */
bool lr_pieces_cut(struct lr_target *target, struct lr_pieces *table, uint64_t start, uint64_t end,
		   struct lr_piece *ret_cut);

#endif
