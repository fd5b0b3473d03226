/*
 * Counters, a latency histogram and the clock. Floor 1. Written by one loader at a time, under its
 * lock (loader.h); read under all of them, so that a snapshot is consistent with what touching
 * threads have seen.
 */
#ifndef LR_STATS_H
#define LR_STATS_H

#include "lazyrestore.h"

#include <time.h>

static inline uint64_t lr_clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

void lr_histogram_add(struct lr_histogram *histogram, uint64_t latency_ns);
void lr_histogram_merge(struct lr_histogram *into, const struct lr_histogram *from);

#endif
