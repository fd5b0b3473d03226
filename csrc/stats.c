#include "stats.h"

static unsigned bucket_of(uint64_t value)
{
	unsigned exponent, bucket;

	if (value < 8)
		return (unsigned)value;
	exponent = 63 - (unsigned)__builtin_clzll(value);
	bucket = 8 * (exponent - 2) + (unsigned)(value >> (exponent - 3) & 7);
	return bucket < LR_HISTOGRAM_BUCKETS ? bucket : LR_HISTOGRAM_BUCKETS - 1;
}

void lr_histogram_add(struct lr_histogram *histogram, uint64_t latency_ns)
{
	histogram->count++;
	histogram->sum_ns += latency_ns;
	if (latency_ns > histogram->max_ns)
		histogram->max_ns = latency_ns;
	histogram->buckets[bucket_of(latency_ns)]++;
}

void lr_histogram_merge(struct lr_histogram *into, const struct lr_histogram *from)
{
	into->count += from->count;
	into->sum_ns += from->sum_ns;
	if (from->max_ns > into->max_ns)
		into->max_ns = from->max_ns;
	for (unsigned i = 0; i < LR_HISTOGRAM_BUCKETS; i++)
		into->buckets[i] += from->buckets[i];
}
