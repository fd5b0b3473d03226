/* lr_hello and lr_wakeup_cost: they measure every page, and leave the process as it was. */
#include "check.h"
#include "kernel.h"

#include <dirent.h>
#include <lazyrestore.h>
#include <sched.h>
#include <sys/resource.h>

#define PAGES 200u

static struct lr_hello_options options_for(uint32_t pages)
{
	(void)kernel_features(); /* or skip */
	return (struct lr_hello_options){.pages = pages, .privilege = LR_PRIVILEGE_AUTO};
}

static long faults_so_far(void)
{
	struct rusage usage;

	CHECK_CALL(getrusage(RUSAGE_SELF, &usage));
	/* Some kernels call one major that had to be asked for again. */
	return usage.ru_minflt + usage.ru_majflt;
}

/* Each page is a fault of its own, and each takes some time. */
static void hello(struct lr_hello_options options)
{
	uint32_t latency_ns[PAGES] = {0};
	long before = faults_so_far();

	CHECK_EQ(lr_hello(&options, latency_ns, NULL), LR_OK);
	CHECK(faults_so_far() - before >= (long)PAGES);
	for (unsigned i = 0; i < PAGES; i++)
		CHECK(latency_ns[i] > 100);
}

static void answers_reads(void)
{
	hello(options_for(PAGES));
}

static void answers_on_one_core(void)
{
	struct lr_hello_options options = options_for(PAGES);
	cpu_set_t before, after;

	options.one_core = 1;
	CHECK_CALL(sched_getaffinity(0, sizeof(before), &before));
	hello(options);
	CHECK_CALL(sched_getaffinity(0, sizeof(after), &after));
	CHECK(CPU_EQUAL(&before, &after));
}

static void answers_writes(void)
{
	struct lr_hello_options options = options_for(PAGES);

	options.is_write = 1;
	hello(options);
	options.zeropage = 1;
	hello(options);
}

/* Memory that the process locks is there before it is registered: nothing would ever fault. */
static void answers_where_memory_is_locked(void)
{
	if (mlockall(MCL_FUTURE) < 0)
		SKIP("mlockall: %s", strerror(errno));
	hello(options_for(PAGES));
}

/* The answering thread stays until the last touch, however late it runs. */
static void ends_every_time(void)
{
	struct lr_hello_options options = options_for(2);
	uint32_t latency_ns[2];

	for (unsigned i = 0; i < 1000; i++) {
		options.one_core = i % 2;
		CHECK_EQ(lr_hello(&options, latency_ns, NULL), LR_OK);
	}
}

static void refuses_no_pages(void)
{
	struct lr_hello_options options = options_for(0);
	uint32_t latency_ns = 0;

	CHECK_EQ(lr_hello(&options, &latency_ns, NULL), LR_ERR_ARGUMENT);
	options.pages = UINT64_MAX / 2;
	CHECK_EQ(lr_hello(&options, &latency_ns, NULL), LR_ERR_ARGUMENT);
}

static unsigned open_files(void)
{
	DIR *folder = opendir("/proc/self/fd");
	unsigned count = 0;

	CHECK(folder);
	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

static void leaves_nothing_behind(void)
{
	struct lr_hello_options options = options_for(PAGES);
	struct lr_wakeup_cost cost;
	uint32_t latency_ns[PAGES];
	unsigned before = open_files();

	for (unsigned i = 0; i < 3; i++) {
		CHECK_EQ(lr_hello(&options, latency_ns, NULL), LR_OK);
		CHECK_EQ(lr_wakeup_cost(1000000, &cost), LR_OK);
	}
	CHECK_EQ(open_files(), before);
}

static void measures_waking(void)
{
	struct lr_wakeup_cost cost;
	cpu_set_t mine, one;
	int core = 0;

	CHECK_CALL(sched_getaffinity(0, sizeof(mine), &mine));
	CHECK_EQ(lr_wakeup_cost(30000000, &cost), LR_OK);
	CHECK(cost.one_core_ns > 0);
	CHECK_EQ(cost.two_cores_ns > 0, CPU_COUNT(&mine) > 1);
	/* On one core there is nothing else to measure. */
	while (!CPU_ISSET((size_t)core, &mine))
		core++;
	CPU_ZERO(&one);
	CPU_SET((size_t)core, &one);
	CHECK_CALL(sched_setaffinity(0, sizeof(one), &one));
	CHECK_EQ(lr_wakeup_cost(10000000, &cost), LR_OK);
	CHECK(cost.one_core_ns > 0);
	CHECK_EQ(cost.two_cores_ns, 0);
	CHECK_EQ(cost.kept_awake_ns, 0);
}

static const struct check_case cases[] = {
	CHECK_CASE(answers_reads),         CHECK_CASE(answers_on_one_core),
	CHECK_CASE(answers_writes),        CHECK_CASE(answers_where_memory_is_locked),
	CHECK_CASE(ends_every_time),       CHECK_CASE(refuses_no_pages),
	CHECK_CASE(leaves_nothing_behind), CHECK_CASE(measures_waking),
};

CHECK_MAIN(cases)
