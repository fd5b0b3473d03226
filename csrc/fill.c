#include "fill.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define STACK_BYTES (256u << 10)
/* How much is loaded between two looks at the memory that is left. */
#define STEP_BYTES (1u << 20)

/* Only what nobody else wants of the processors and of the disk. */
static void yield_to_all(void)
{
	struct sched_param none = {0};

	if (sched_setscheduler(0, SCHED_IDLE, &none) < 0)
		setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19);
	/* ioprio_set(IOPRIO_WHO_PROCESS, this thread, IOPRIO_CLASS_IDLE), which has no header. */
	syscall(SYS_ioprio_set, 1, 0, 3 << 13);
}

/* A failure that says something of one cluster, which is fenced, or of one region, which was
 * closed: the rest goes on. */
static bool goes_on(int code)
{
	return code != LR_ERR_NOMEM && code != LR_ERR_GONE;
}

static int fill_range(struct lr_fill *fill, struct lr_range *range)
{
	uint64_t cluster_size = fill->pager->target->image->info.cluster_size;
	uint64_t cluster = range->region.first_cluster, run;
	uint64_t end = cluster + range->region.cluster_count, unchecked = STEP_BYTES;
	struct lr_problem problem = {0};
	int code = LR_OK;

	while (cluster < end && goes_on(code) && lr_range_state(range) == LR_RANGE_ACTIVE
	       && !atomic_load_explicit(&fill->is_stopping, memory_order_relaxed)) {
		if (unchecked >= STEP_BYTES) {
			if (!lr_headroom_allows(&fill->headroom, STEP_BYTES + cluster_size))
				return LR_ERR_NOMEM;
			unchecked = 0;
		}
		code = lr_feed_load(&fill->feed, range, cluster, end, &run, &problem);
		/* The program closed all descriptors: the pager has its own, this thread not. */
		if (code < 0 && problem.os_error == EBADF)
			return LR_ERR_GONE;
		cluster += run;
		unchecked += cluster_size;
	}
	return code;
}

/* The clusters that are wanted first. */
static int fill_first(struct lr_fill *fill)
{
	const struct lr_image *image = fill->pager->target->image;
	struct lr_problem problem = {0};
	int code = LR_OK, last;
	uint64_t run;

	for (uint64_t i = 0; i < fill->first_count && goes_on(code)
			     && !atomic_load_explicit(&fill->is_stopping, memory_order_relaxed);
	     i++) {
		uint64_t cluster = fill->first[i];
		int64_t region = lr_image_region_of_cluster(image, cluster);
		struct lr_range *range = &fill->pager->target->ranges[region < 0 ? 0 : region];

		if (lr_range_state(range) != LR_RANGE_ACTIVE)
			continue;
		if (!lr_headroom_allows(&fill->headroom, STEP_BYTES + image->info.cluster_size))
			return LR_ERR_NOMEM;
		code = lr_feed_load(&fill->feed, range, cluster, cluster + 1, &run, &problem);
		if (code < 0 && problem.os_error == EBADF)
			return LR_ERR_GONE;
	}
	last = lr_feed_finish(&fill->feed, NULL);
	return goes_on(code) ? last : code;
}

static void set_state(_Atomic uint32_t *state, int code)
{
	/* Release: partner of the acquire in lr_fill_wait. */
	atomic_store_explicit(state, goes_on(code) ? LR_FILL_COMPLETE : LR_FILL_STOPPED,
			      memory_order_release);
	syscall(SYS_futex, state, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void *run(void *argument)
{
	struct lr_fill *fill = argument;
	struct lr_target *target = fill->pager->target;
	int code = fill_first(fill), last;

	set_state(&fill->first_state, code);
	yield_to_all();
	for (uint32_t i = 0;
	     i < target->image->info.region_count && goes_on(code) && !fill->first_only; i++)
		code = fill_range(fill, &target->ranges[i]);
	last = lr_feed_finish(&fill->feed, NULL);
	set_state(&fill->state, goes_on(code) ? last : code);
	return NULL;
}

static int start_thread(struct lr_fill *fill)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error;

	if (pthread_attr_init(&attributes))
		return LR_ERR_NOMEM;
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&fill->thread, &attributes, run, fill);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (error)
		return error == ENOMEM ? LR_ERR_NOMEM : LR_ERR_LIMIT;
	pthread_setname_np(fill->thread, "lazyrestore-fill");
	return LR_OK;
}

/* A copy: the caller's memory may be lazy, and may change. */
static int copy_first(struct lr_fill *fill, const struct lr_fill_options *options)
{
	uint64_t cluster_count = fill->pager->target->image->info.cluster_count;

	if (!options || options->first_count == 0)
		return LR_OK;
	if (!options->first || options->first_count > cluster_count)
		return LR_ERR_ARGUMENT;
	fill->first = malloc(options->first_count * sizeof(*fill->first));
	if (!fill->first)
		return LR_ERR_NOMEM;
	memcpy(fill->first, options->first, options->first_count * sizeof(*fill->first));
	fill->first_count = options->first_count;
	for (uint64_t i = 0; i < fill->first_count; i++)
		if (fill->first[i] >= cluster_count)
			return LR_ERR_ARGUMENT;
	return LR_OK;
}

static void give_back(struct lr_fill *fill)
{
	atomic_store_explicit(&fill->state, LR_FILL_NONE, memory_order_relaxed);
	atomic_store_explicit(&fill->first_state, LR_FILL_NONE, memory_order_relaxed);
	lr_headroom_close(&fill->headroom);
	lr_feed_close(&fill->feed);
	free(fill->first);
	fill->first = NULL;
	fill->first_count = 0;
}

int lr_fill_start(struct lr_fill *fill, struct lr_pager *pager,
		  const struct lr_fill_options *options)
{
	int code;

	if (fill->is_started)
		return LR_ERR_BUSY;
	fill->pager = pager;
	fill->first_only = options && options->first_only;
	code = copy_first(fill, options);
	if (code == LR_OK)
		code = lr_feed_open(&fill->feed, pager);
	if (code == LR_OK) {
		code = lr_headroom_open(&fill->headroom, "/");
		if (code < 0)
			lr_feed_close(&fill->feed);
	}
	if (code < 0) {
		free(fill->first);
		fill->first = NULL;
		fill->first_count = 0;
		return code;
	}
	atomic_store_explicit(&fill->state, LR_FILL_RUNNING, memory_order_relaxed);
	atomic_store_explicit(&fill->first_state, LR_FILL_RUNNING, memory_order_relaxed);
	code = start_thread(fill);
	fill->is_started = code == LR_OK;
	if (code < 0)
		give_back(fill);
	return code;
}

static int result_of(uint32_t state)
{
	switch (state) {
	case LR_FILL_COMPLETE:
		return LR_OK;
	case LR_FILL_STOPPED:
		return LR_ERR_NOMEM;
	case LR_FILL_RUNNING:
		return LR_ERR_TIMEOUT;
	default:
		return LR_ERR_ARGUMENT;
	}
}

int lr_fill_wait(_Atomic uint32_t *state, int64_t timeout_ns)
{
	uint64_t begin_ns = lr_clock_ns();
	uint32_t seen;

	/* Acquire: partner of the release in set_state. */
	while ((seen = atomic_load_explicit(state, memory_order_acquire)) == LR_FILL_RUNNING) {
		uint64_t passed_ns = lr_clock_ns() - begin_ns;
		uint64_t left_ns = timeout_ns < 0 ? 1000000000 : (uint64_t)timeout_ns - passed_ns;
		struct timespec left;

		if (timeout_ns >= 0 && passed_ns >= (uint64_t)timeout_ns)
			break;
		left.tv_sec = (time_t)(left_ns / 1000000000);
		left.tv_nsec = (long)(left_ns % 1000000000);
		syscall(SYS_futex, state, FUTEX_WAIT_PRIVATE, seen, &left, NULL, 0);
	}
	return result_of(seen);
}

void lr_fill_abandon(struct lr_fill *fill)
{
	/* Maybe it was just being started. */
	atomic_store_explicit(&fill->state, LR_FILL_NONE, memory_order_relaxed);
	atomic_store_explicit(&fill->first_state, LR_FILL_NONE, memory_order_relaxed);
	if (!fill->is_started)
		return;
	fill->is_started = false;
	give_back(fill);
}

void lr_fill_stop(struct lr_fill *fill)
{
	struct sched_param none = {0};

	if (!fill->is_started)
		return;
	atomic_store_explicit(&fill->is_stopping, true, memory_order_relaxed);
	/* It is waited for now: not at the lowest priority any more, where that is allowed. */
	pthread_setschedparam(fill->thread, SCHED_OTHER, &none);
	pthread_join(fill->thread, NULL);
	lr_fill_abandon(fill);
}
