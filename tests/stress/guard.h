/*
 * Reading and writing memory that may raise SIGBUS or SIGSEGV, by any number of threads. Words are
 * read and written whole, without tearing, and as atomics: other threads may be at the same page.
 */
#ifndef LR_STRESS_GUARD_H
#define LR_STRESS_GUARD_H

#include <stdint.h>

/* Install the handlers. A signal outside of guard_read and guard_write is a failure of the run. */
void guard_open(void);

/* Copy words from memory to a buffer, or the other way. 0, or the signal that it raised: then some
 * of the words may have been copied. */
int guard_read(const uint64_t *memory, uint64_t *buffer, unsigned words);
int guard_write(uint64_t *memory, const uint64_t *buffer, unsigned words);

#endif
