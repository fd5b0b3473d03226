/*
 * Where an image's bytes come from: a file, read with pread. Floor 2. Any thread. Never mapped: a
 * mapped file that shrinks kills whoever reads it.
 */
#ifndef LR_SOURCE_H
#define LR_SOURCE_H

#include <stdbool.h>

#include "error.h"

struct lr_source {
	int fd;
	uint64_t bytes; /* length when it was opened */
};

int lr_source_open(struct lr_source *source, const char *path, struct lr_problem *ret_problem);
void lr_source_close(struct lr_source *source);
/* Read exactly `bytes`: 0, LR_ERR_SHORT (the file ended), LR_ERR_IO. Does not fill in a cluster. */
int lr_source_read(const struct lr_source *source, uint64_t offset, void *ret_data, uint64_t bytes,
		   struct lr_problem *ret_problem);
/* Whether the first and the last of some bytes are in memory; true where that cannot be told, as of
 * files that are nowhere else. */
bool lr_source_is_cached(const struct lr_source *source, uint64_t offset, uint64_t bytes);
/* Have bytes read ahead; does not wait for them. False where that does not work. */
bool lr_source_advise(const struct lr_source *source, uint64_t offset, uint64_t bytes);

#endif
