/* The trace: a ring that neither side waits for, and a reader that waits for records only. */
#include "check.h"

#include <pthread.h>
#include <sched.h>

#include "stats.h"
#include "trace.h"

static void put(struct lr_trace *trace, uint64_t offset)
{
	struct lr_trace_record record = {.offset = offset, .bytes = ~offset};

	lr_trace_put(trace, &record);
}

static void keeps_order_and_counts_what_it_drops(void)
{
	struct lr_trace trace;
	struct lr_trace_record records[10];

	CHECK_EQ(lr_trace_open(&trace, 8), LR_OK);
	for (uint64_t i = 0; i < 11; i++)
		put(&trace, i);
	CHECK_EQ(atomic_load(&trace.lost), 3);
	CHECK_EQ(lr_trace_take(&trace, records, 3, 0), 3);
	CHECK_EQ(records[2].offset, 2);
	put(&trace, 50);
	CHECK_EQ(lr_trace_take(&trace, records, 10, 0), 6);
	CHECK_EQ(records[0].offset, 3);
	CHECK_EQ(records[5].offset, 50);
	lr_trace_close(&trace);
}

static void needs_a_power_of_two(void)
{
	struct lr_trace trace;
	struct lr_trace_record record;

	CHECK_EQ(lr_trace_open(&trace, 3), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_trace_open(&trace, 0), LR_OK);
	put(&trace, 1);
	CHECK_EQ(lr_trace_take(&trace, &record, 1, -1), 0);
	lr_trace_close(&trace);
}

/* Records that were taken without waiting must not cut the next wait short. */
static void waits_its_time(void)
{
	struct lr_trace trace;
	struct lr_trace_record records[8];
	uint64_t begin_ns;

	CHECK_EQ(lr_trace_open(&trace, 8), LR_OK);
	for (int round = 0; round < 3; round++) {
		put(&trace, 1);
		put(&trace, 2);
		CHECK_EQ(lr_trace_take(&trace, records, 8, 0), 2);
	}
	begin_ns = lr_clock_ns();
	CHECK_EQ(lr_trace_take(&trace, records, 8, 50000000), 0);
	CHECK(lr_clock_ns() - begin_ns >= 49000000);
	lr_trace_close(&trace);
}

static void *put_many(void *argument)
{
	for (uint64_t i = 0; i < 200000; i++) {
		put(argument, i);
		/* Not always: where others want the processor each may cost milliseconds. */
		if (i % 64 == 0 && i < 20000)
			sched_yield();
	}
	return NULL;
}

/* Writer and reader at once: what is not lost comes whole and in order, and no wait is for good. */
static void passes_records_between_threads(void)
{
	struct lr_trace trace;
	struct lr_trace_record records[100];
	uint64_t taken = 0, next = 0;
	pthread_t writer;

	CHECK_EQ(lr_trace_open(&trace, 64), LR_OK);
	CHECK_EQ(pthread_create(&writer, NULL, put_many, &trace), 0);
	while (next < 200000) {
		uint32_t count = lr_trace_take(&trace, records, 100, 200000000);

		for (uint32_t i = 0; i < count; i++) {
			CHECK(records[i].offset >= next);
			CHECK_EQ(records[i].bytes, ~records[i].offset);
			next = records[i].offset + 1;
		}
		taken += count;
		if (count == 0)
			break;
	}
	CHECK_EQ(pthread_join(writer, NULL), 0);
	taken += lr_trace_take(&trace, records, 100, 0);
	CHECK_EQ(taken + atomic_load(&trace.lost), 200000);
	lr_trace_close(&trace);
}

static const struct check_case cases[] = {
	CHECK_CASE(keeps_order_and_counts_what_it_drops),
	CHECK_CASE(needs_a_power_of_two),
	CHECK_CASE(waits_its_time),
	CHECK_CASE(passes_records_between_threads),
};
CHECK_MAIN(cases)
