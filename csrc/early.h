/*
 * Pages that are there before the first fault. They would stay, as zeros: mlockall(MCL_FUTURE)
 * makes such, and transparent huge pages do where somebody touched. Floor 2.
 */
#ifndef LR_EARLY_H
#define LR_EARLY_H

#include <stdbool.h>

#include "lazyrestore.h"

/* True where the kernel says that there is no page yet. */
bool lr_early_is_empty(uint64_t start, uint64_t bytes);
/* Drop them; afterwards pages are locked as they come. Memory that is registered sends a REMOVE
 * message for it, and waits until that is read. */
int lr_early_drop(uint64_t start, uint64_t bytes, struct lr_problem *ret_problem);

#endif
