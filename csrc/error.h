/*
 * Codes, their words, and where a problem is. Floor 1. Any thread; no state.
 */
#ifndef LR_ERROR_H
#define LR_ERROR_H

#include <stdbool.h>

#include "lazyrestore.h"

/* Fill *problem (may be NULL) and return code, so that a failing function can end with it. */
int lr_problem_set(struct lr_problem *problem, int code, int os_error, uint64_t cluster,
		   uint64_t file_offset);

/* The same where only an errno is known: the code is chosen from it. */
int lr_problem_from_errno(struct lr_problem *problem, int os_error);

#define LR_NOWHERE UINT64_MAX

#endif
