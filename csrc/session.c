#include "session.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "install.h"

#define WANTED_FEATURES                                                                            \
	(LR_UFFD_FEATURE_THREAD_ID | LR_UFFD_FEATURE_EXACT_ADDRESS | LR_UFFD_FEATURE_POISON)

/* How much populate takes on between two looks at the clock where the index has one entry for many
 * zero clusters. */
#define ZERO_STEP_BYTES (16u << 20)

int lr_session_open(const lr_image *image, const struct lr_session_options *options,
		    lr_session **ret_session, struct lr_problem *ret_problem)
{
	struct lr_session_options defaults = {0};
	lr_session *session;
	int code;

	if (!image || !ret_session)
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	if (!options)
		options = &defaults;
	session = calloc(1, sizeof(*session));
	if (!session)
		return lr_problem_set(ret_problem, LR_ERR_NOMEM, 0, LR_NOWHERE, LR_NOWHERE);
	session->image = image;
	session->pid = getpid();
	code = lr_target_open(&session->target, image);
	if (code < 0) {
		free(session);
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	}
	code = lr_uffd_open(&session->target.uffd, options->privilege, WANTED_FEATURES,
			    ret_problem);
	if (code == LR_OK) {
		code = lr_loader_open(&session->ahead, &session->target, false);
		if (code < 0)
			lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	}
	if (code == LR_OK)
		code = lr_pager_start(&session->pager, &session->target, options->trace_records,
				      ret_problem);
	if (code < 0) {
		lr_loader_close(&session->ahead);
		lr_target_close(&session->target);
		free(session);
		return code;
	}
	lr_image_hold(image);
	lr_fork_watch(session);
	*ret_session = session;
	return LR_OK;
}

/* A session's range by its region's number; NULL with the code where there is none, or in a forked
 * child. */
static struct lr_range *get_range(lr_session *session, uint32_t region, int *ret_code)
{
	if (region >= session->image->info.region_count) {
		*ret_code = LR_ERR_NOT_FOUND;
		return NULL;
	}
	if (session->pid != getpid()) {
		*ret_code = LR_ERR_CLOSED;
		return NULL;
	}
	*ret_code = LR_OK;
	return &session->target.ranges[region];
}

/* Pages that are there before the first fault would stay, as zeros: mlockall(MCL_FUTURE) makes
 * such. Drop them. */
static int drop_early_pages(const struct lr_range *range, struct lr_problem *ret_problem)
{
	void *start = (void *)(uintptr_t)range->start;

	if (madvise(start, range->bytes, MADV_DONTNEED) == 0)
		return LR_OK;
	if (errno == EINVAL && munlock(start, range->bytes) == 0
	    && madvise(start, range->bytes, MADV_DONTNEED) == 0)
		return LR_OK;
	return lr_problem_from_errno(ret_problem, errno);
}

static int register_range(lr_session *session, const struct lr_range *range,
			  struct lr_problem *ret_problem)
{
	void *start = (void *)(uintptr_t)range->start;
	int code = lr_uffd_register(&session->target.uffd, range->start, range->bytes, ret_problem);

	/* Nothing to undo, and nothing that may be undone: where another userfaultfd holds the
	 * range, kernels before 6.17 would take it from that one, and its pages would read as
	 * zeros. */
	if (code < 0)
		return code;
	code = drop_early_pages(range, ret_problem);
	if (code == LR_OK && madvise(start, range->bytes, MADV_DONTFORK) < 0)
		code = lr_problem_from_errno(ret_problem, errno);
	/* Nothing was promised of this memory yet: it may go back to being ordinary. */
	if (code < 0)
		lr_uffd_unregister(&session->target.uffd, range->start, range->bytes);
	return code;
}

static int attach(lr_session *session, struct lr_range *range, uint64_t start, bool is_owned,
		  struct lr_problem *ret_problem)
{
	uint64_t host_page = session->target.host_page;
	uint64_t pages = range->region.length / host_page + (range->region.length % host_page != 0);
	int code;

	if (start % host_page || start == 0 || pages == 0 || start > UINT64_MAX - pages * host_page)
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	code = lr_target_enter(&session->target, range, start, pages * host_page);
	if (code < 0)
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	range->is_owned = is_owned;
	code = register_range(session, range, ret_problem);
	if (code < 0) {
		lr_target_remove(&session->target, range);
		lr_range_change(range, LR_RANGE_CHANGING, LR_RANGE_IDLE);
		return code;
	}
	lr_range_change(range, LR_RANGE_CHANGING, LR_RANGE_ACTIVE);
	/* Who touched it since it was registered was read and left: have him ask again. */
	lr_uffd_wake(&session->target.uffd, range->start, range->bytes);
	return LR_OK;
}

int lr_session_attach(lr_session *session, uint32_t region, void *address,
		      struct lr_problem *ret_problem)
{
	int code;
	struct lr_range *range = get_range(session, region, &code);

	if (!range)
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	return attach(session, range, (uint64_t)(uintptr_t)address, false, ret_problem);
}

int lr_session_map(lr_session *session, uint32_t region, void **ret_address,
		   struct lr_problem *ret_problem)
{
	int code;
	struct lr_range *range = get_range(session, region, &code);
	void *memory;

	if (!range)
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	if (range->region.length == 0)
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	memory = mmap(NULL, range->region.length, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return lr_problem_from_errno(ret_problem, errno);
	code = attach(session, range, (uint64_t)(uintptr_t)memory, true, ret_problem);
	if (code < 0) {
		munmap(memory, range->region.length);
		return code;
	}
	*ret_address = memory;
	return LR_OK;
}

/* Wait until nothing is installed in a range that is not active any more. */
static void quiesce(lr_session *session)
{
	lr_loader_quiesce(&session->pager.loader);
	lr_loader_quiesce(&session->ahead);
}

int lr_session_suspend(lr_session *session, uint32_t region)
{
	int code;
	struct lr_range *range = get_range(session, region, &code);

	if (!range)
		return code;
	if (!lr_range_change(range, LR_RANGE_ACTIVE, LR_RANGE_SUSPENDED))
		return LR_ERR_CLOSED;
	quiesce(session);
	return LR_OK;
}

int lr_session_resume(lr_session *session, uint32_t region)
{
	int code;
	struct lr_range *range = get_range(session, region, &code);

	if (!range)
		return code;
	if (!lr_range_change(range, LR_RANGE_SUSPENDED, LR_RANGE_ACTIVE))
		return LR_ERR_CLOSED;
	/* Faults that came meanwhile were read and left: have them asked again. */
	lr_uffd_wake(&session->target.uffd, range->start, range->bytes);
	return LR_OK;
}

static void let_go(lr_session *session, struct lr_range *range)
{
	lr_target_remove(&session->target, range);
	/* Who waits for a page of memory that is gone waits for good unless he is woken. */
	lr_uffd_wake(&session->target.uffd, range->start, range->bytes);
}

int lr_session_detach(lr_session *session, uint32_t region)
{
	int code;
	struct lr_range *range = get_range(session, region, &code);

	if (!range)
		return code;
	if (!lr_range_change(range, LR_RANGE_SUSPENDED, LR_RANGE_GONE)
	    && !lr_range_change(range, LR_RANGE_ACTIVE, LR_RANGE_GONE))
		return LR_ERR_CLOSED;
	/* Also where it was suspended: by another thread, maybe, that still waits. */
	quiesce(session);
	let_go(session, range);
	return LR_OK;
}

static uint64_t deadline_of(int64_t timeout_ns)
{
	return timeout_ns < 0 ? UINT64_MAX : lr_clock_ns() + (uint64_t)timeout_ns;
}

int lr_session_populate(lr_session *session, uint32_t region, uint64_t offset, uint64_t length,
			int64_t timeout_ns, uint64_t *ret_done, struct lr_problem *ret_problem)
{
	int code;
	struct lr_range *range = get_range(session, region, &code);
	uint64_t cluster_size = session->image->info.cluster_size;
	uint64_t deadline_ns = deadline_of(timeout_ns);
	uint64_t cluster, end;

	*ret_done = 0;
	if (range && (offset > range->region.length || length > range->region.length - offset))
		code = LR_ERR_ARGUMENT;
	if (code < 0)
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	cluster = range->region.first_cluster + offset / cluster_size;
	end = length ? range->region.first_cluster + (offset + length - 1) / cluster_size + 1
		     : cluster;
	while (cluster < end) {
		uint64_t run = 1, reached;
		uint64_t step = end - cluster;

		if (step > ZERO_STEP_BYTES / cluster_size)
			step = ZERO_STEP_BYTES / cluster_size;
		pthread_mutex_lock(&session->ahead.busy);
		if (lr_range_state(range) == LR_RANGE_ACTIVE)
			code = lr_loader_load(&session->ahead, range, cluster, step, &run,
					      ret_problem);
		else
			code = lr_problem_set(ret_problem, LR_ERR_CLOSED, 0, cluster, LR_NOWHERE);
		pthread_mutex_unlock(&session->ahead.busy);
		if (code < 0)
			return code;
		cluster += run;
		reached = (cluster - range->region.first_cluster) * cluster_size;
		*ret_done = reached - offset < length ? reached - offset : length;
		if (cluster < end && lr_clock_ns() >= deadline_ns)
			return lr_problem_set(ret_problem, LR_ERR_TIMEOUT, 0, cluster, LR_NOWHERE);
	}
	return LR_OK;
}

static void add_loader_stats(struct lr_loader *loader, struct lr_session_stats *stats)
{
	pthread_mutex_lock(&loader->busy);
	stats->faults += loader->faults;
	stats->pages_copied += loader->pages_copied;
	stats->pages_zeroed += loader->pages_zeroed;
	stats->clusters_decoded += loader->decoder.clusters_decoded;
	stats->payload_bytes_read += loader->decoder.payload_bytes_read;
	lr_histogram_merge(&stats->service, &loader->service);
	pthread_mutex_unlock(&loader->busy);
}

static void gather_stats(lr_session *session, struct lr_session_stats *stats)
{
	add_loader_stats(&session->pager.loader, stats);
	add_loader_stats(&session->ahead, stats);
	stats->trace_lost = atomic_load_explicit(&session->pager.trace.lost, memory_order_relaxed);
	pthread_mutex_lock(&session->target.lock);
	stats->errors = session->target.error_count;
	stats->regions_attached = session->target.attached;
	pthread_mutex_unlock(&session->target.lock);
}

void lr_session_get_stats(lr_session *session, struct lr_session_stats *ret_stats)
{
	struct lr_session_stats stats = {
		.features = session->target.uffd.features,
		.privilege = session->target.uffd.privilege,
	};
	/* Gathered here, not there: the caller's memory may be lazy, and its fault would wait for
	 * the locks that are held. */
	if (session->pid == getpid())
		gather_stats(session, &stats);
	*ret_stats = stats;
}
uint32_t lr_session_get_errors(lr_session *session, uint64_t first,
			       struct lr_load_error *ret_errors, uint32_t room)
{
	struct lr_target *target = &session->target;
	uint32_t count = 0;

	if (session->pid != getpid())
		return 0;
	for (; count < room && first < LR_ERRORS_KEPT; count++, first++) {
		struct lr_load_error error;
		bool is_there;

		/* Not copied under the lock: the caller's memory may be lazy (see above). */
		pthread_mutex_lock(&target->lock);
		is_there = first < target->error_count;
		if (is_there)
			error = target->errors[first];
		pthread_mutex_unlock(&target->lock);
		if (!is_there)
			break;
		ret_errors[count] = error;
	}
	return count;
}

uint32_t lr_session_read_trace(lr_session *session, struct lr_trace_record *ret_records,
			       uint32_t room, int64_t timeout_ns)
{
	if (session->pid != getpid())
		return 0;
	/* Whoever touched a page goes on before its fault is recorded: wait for that moment. */
	lr_loader_quiesce(&session->pager.loader);
	return lr_trace_take(&session->pager.trace, ret_records, room, timeout_ns);
}

/* Fence what was not loaded. */
static void fence_missing(lr_session *session, struct lr_range *range)
{
	const struct lr_region_info *region = &range->region;
	uint64_t cluster_size = session->image->info.cluster_size;
	uint64_t begin = 0;

	while (begin < region->cluster_count) {
		uint64_t end = begin, offset = begin * cluster_size, bytes;

		while (end < region->cluster_count
		       && lr_pageset_get(&session->target.clusters, region->first_cluster + end)
				  != LR_STATE_PRESENT)
			end++;
		bytes = end < region->cluster_count ? end * cluster_size - offset
						    : range->bytes - offset;
		if (end > begin)
			lr_install_fence(&session->target, range, range->start + offset, bytes);
		begin = end + 1;
	}
}

/* What a caller left attached: ours is unmapped; memory of his stays, so what is missing there must
 * not become zeros. */
static void release_range(lr_session *session, struct lr_range *range)
{
	if (range->is_owned)
		munmap((void *)(uintptr_t)range->start, range->bytes);
	else
		fence_missing(session, range);
	lr_range_change(range, LR_RANGE_CHANGING, LR_RANGE_GONE);
	let_go(session, range);
}

void lr_session_close(lr_session *session)
{
	uint32_t count;

	if (!session || session->pid != getpid())
		return;
	lr_fork_forget(session);
	/* First all, then wait: a loader that has no memory for one range would keep the others. */
	count = session->image->info.region_count;
	for (uint32_t i = 0; i < count; i++)
		lr_range_change(&session->target.ranges[i], LR_RANGE_ACTIVE, LR_RANGE_CHANGING);
	quiesce(session);
	for (uint32_t i = 0; i < count; i++)
		if (lr_range_state(&session->target.ranges[i]) == LR_RANGE_CHANGING)
			release_range(session, &session->target.ranges[i]);
	lr_pager_stop(&session->pager);
	lr_loader_close(&session->ahead);
	lr_target_close(&session->target);
	lr_image_close((lr_image *)session->image);
	free(session);
}
