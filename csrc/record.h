/*
 * Which clusters were touched, each once, in the order of their first touch: a working set in the
 * making. Floor 1. Noting allocates nothing and takes no lock: memory is reserved at open and costs
 * something only where it was written. Any thread.
 *
 * A forked child has a copy that was made while its parent's pager worked, so entries may be
 * missing in it: those have no time and are skipped.
 */
#ifndef LR_RECORD_H
#define LR_RECORD_H

#include <stdatomic.h>

#include "error.h"

struct lr_record {
	struct lr_touched *items;   /* NULL: nothing is recorded */
	_Atomic uint64_t *is_noted; /* a bit a cluster */
	_Atomic uint64_t count;     /* of items that were begun; may be more than there is room */
	uint64_t clusters;
	uint64_t room; /* for so many items */
	uint64_t open_ns;
};

int lr_record_open(struct lr_record *record, uint64_t clusters);
void lr_record_close(struct lr_record *record);
/* A cluster was touched now. */
void lr_record_note(struct lr_record *record, uint64_t cluster);
/* As lr_session_get_touched. */
uint64_t lr_record_get(const struct lr_record *record, uint64_t first,
		       struct lr_touched *ret_touched, uint64_t room);

#endif
