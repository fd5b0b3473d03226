/*
 * A fault at an address where no piece of a target lies, and whose session nobody has told. Floor
 * 5, for inline.c.
 */
#ifndef LR_ELSEWHERE_H
#define LR_ELSEWHERE_H

#include "target.h"

/* Give zeros to registered memory that is no region's: its owner made a mapping longer, or left an
 * old place mapped when he moved it. As many as are missing up to `limit`. Call with the loader's
 * `busy` held. False where it is not registered with this target: that is seen by registering it,
 * which fails where it is with another, and else changes nothing but where an ended session left a
 * fence. Kernels without CONFIG_MEMORY_FAILURE give the same signal for that. *ret_is_late: a
 * message is to be read first. */
bool lr_elsewhere_give(struct lr_target *target, uint64_t page, uint64_t limit, bool *ret_is_late);

#endif
