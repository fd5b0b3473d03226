/*
 * Up to 2 MiB of a range, decoded ahead in memory of the library's own as it will lie in the
 * range. Floor 6. One thread at a time decodes into it; then it is handed to the pager, which
 * moves it into place as one huge page where nothing of it is there yet (UFFDIO_MOVE: neither
 * copied nor allocated again), or else copies what is missing, a little at a time.
 */
#ifndef LR_STAGE_H
#define LR_STAGE_H

#include "pager.h"

#define LR_STAGE_BYTES (2u << 20)
/* Host pages are no smaller than this. */
#define LR_STAGE_WORDS (LR_STAGE_BYTES / 4096 / 64)

struct lr_stage {
	struct lr_job job;
	bool is_used; /* the job was submitted, and not waited for */
	uint8_t *mapping;
	uint8_t *memory;  /* in it: aligned to its size */
	bool is_clean;    /* `memory` is all zeros */
	bool is_hopeless; /* moving failed for a reason that stays */
	bool is_moved;    /* to be tried */
	struct lr_target *target;
	struct lr_range *range;
	uint64_t offset; /* in the range, of what it has */
	uint64_t bytes;
	uint64_t lead; /* where in `memory` that lies */
	uint64_t done; /* bytes dealt with */
	/* A bit for each host page: what it has. What is in neither is not to be brought. */
	uint64_t data[LR_STAGE_WORDS];
	uint64_t zero[LR_STAGE_WORDS];
};

int lr_stage_open(struct lr_stage *stage, struct lr_target *target);
/* Nothing of it may be under way. */
void lr_stage_close(struct lr_stage *stage);

/* Begin with [offset, offset + bytes) of a range, `lead` bytes from the start of the memory. */
void lr_stage_begin(struct lr_stage *stage, struct lr_range *range, uint64_t offset, uint64_t bytes,
		    uint64_t lead);
/* Add what lies in it of the cluster that `decoder` found last: decodes that. */
int lr_stage_add(struct lr_stage *stage, struct lr_decoder *decoder,
		 struct lr_problem *ret_problem);
/* Host pages of data that were added. */
uint32_t lr_stage_data_pages(const struct lr_stage *stage);
/* Have it put in place. */
void lr_stage_submit(struct lr_stage *stage, struct lr_pager *pager);
/* Wait until that was done: its result. */
int lr_stage_wait(struct lr_stage *stage);

#endif
