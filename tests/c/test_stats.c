/* The histogram: each value in the bucket that the public header says. */
#include "check.h"

#include "stats.h"

static unsigned bucket_of(uint64_t value)
{
	struct lr_histogram histogram = {0};
	unsigned bucket = 0;

	lr_histogram_add(&histogram, value);
	while (bucket < LR_HISTOGRAM_BUCKETS && histogram.buckets[bucket] == 0)
		bucket++;
	CHECK_EQ(histogram.count, 1);
	CHECK_EQ(histogram.sum_ns, value);
	CHECK_EQ(histogram.max_ns, value);
	return bucket;
}

static void puts_values_in_their_buckets(void)
{
	for (uint64_t value = 0; value < 16; value++)
		CHECK_EQ(bucket_of(value), value);
	CHECK_EQ(bucket_of(16), 16);
	CHECK_EQ(bucket_of(17), 16);
	CHECK_EQ(bucket_of(18), 17);
	CHECK_EQ(bucket_of(31), 23);
	CHECK_EQ(bucket_of(32), 24);
	CHECK_EQ(bucket_of(1000000), 8 * (19 - 2) + 7);
	CHECK_EQ(bucket_of(UINT64_MAX), LR_HISTOGRAM_BUCKETS - 1);
}

/* Buckets rise with values, without gaps, up to the last. */
static void rises(void)
{
	unsigned before = 0;

	for (uint64_t value = 1; value < 1ull << 45; value += 1 + value / 17) {
		unsigned bucket = bucket_of(value);

		CHECK(bucket == before || bucket == before + 1);
		before = bucket;
	}
	CHECK_EQ(before, LR_HISTOGRAM_BUCKETS - 1);
}

static void merges(void)
{
	struct lr_histogram one = {0}, other = {0};

	lr_histogram_add(&one, 5);
	lr_histogram_add(&other, 5);
	lr_histogram_add(&other, 700);
	lr_histogram_merge(&one, &other);
	CHECK_EQ(one.count, 3);
	CHECK_EQ(one.sum_ns, 710);
	CHECK_EQ(one.max_ns, 700);
	CHECK_EQ(one.buckets[5], 2);
}

static const struct check_case cases[] = {
	CHECK_CASE(puts_values_in_their_buckets),
	CHECK_CASE(rises),
	CHECK_CASE(merges),
};
CHECK_MAIN(cases)
