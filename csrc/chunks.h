/*
 * What a fill has to do, in chunks: stretches of 2 MiB that threads take one at a time, and that
 * are huge pages of the memory, if they can be. Floor 6. Any thread may take; a chunk is its
 * taker's until it is put back.
 */
#ifndef LR_CHUNKS_H
#define LR_CHUNKS_H

#include "stage.h"

enum lr_chunk_state {
	LR_CHUNK_TODO = 0,
	LR_CHUNK_TAKEN = 1,
	LR_CHUNK_DONE = 2,
	LR_CHUNK_ZERO = 3, /* what was missing of it is zeros: nothing was brought */
	LR_CHUNK_FAILED = 4,
};

struct lr_chunk {
	uint64_t number;
	struct lr_range *range;
	uint64_t offset; /* in the range */
	uint64_t bytes;
	uint64_t lead; /* how far from a multiple of 2 MiB it starts */
};

struct lr_chunks {
	struct lr_target *target;
	uint64_t count;
	_Atomic uint8_t *states;
	_Atomic uint64_t next;     /* to be taken, if it is to do */
	_Atomic uint64_t followed; /* the fault that `next` was last put behind */
	/* One a range: the number of its first chunk, and how far into a chunk it begins. */
	struct lr_chunk_base {
		uint64_t first;
		uint64_t phase;
	} *bases;
};

/* All ranges that are active now. */
int lr_chunks_open(struct lr_chunks *chunks, struct lr_target *target);
void lr_chunks_close(struct lr_chunks *chunks);
/* Take the next one. `touched` is the cluster that a fault brought last, and 1, or 0: whoever
 * touched it may be about to read on, and brings that chunk himself, so the fill goes on behind it.
 * False where none is left to do. */
bool lr_chunks_take(struct lr_chunks *chunks, uint64_t touched, struct lr_chunk *ret_chunk);
void lr_chunks_put(struct lr_chunks *chunks, const struct lr_chunk *chunk,
		   enum lr_chunk_state state);
/* Whether a cluster begins in a chunk. */
bool lr_chunk_has(const struct lr_chunk *chunk, uint64_t cluster, uint64_t cluster_size);
/* The state of the chunk that has `offset` of a range, and where it ends there. */
enum lr_chunk_state lr_chunks_look(const struct lr_chunks *chunks, const struct lr_range *range,
				   uint64_t offset, uint64_t *ret_end);
/* True where each chunk of a range is done, or zeros. */
bool lr_chunks_complete(const struct lr_chunks *chunks, const struct lr_range *range);

#endif
