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
		code = lr_loader_open(&session->ahead, &session->target);
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

static int attach(lr_session *session, struct lr_range *range, uint64_t start,
		  struct lr_problem *ret_problem)
{
	uint64_t host_page = session->target.host_page;
	uint64_t pages = range->region.length / host_page + (range->region.length % host_page != 0);
	int code;

	if (start % host_page || start == 0 || pages == 0)
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	if (lr_range_state(range) != LR_RANGE_IDLE)
		return lr_problem_set(ret_problem, LR_ERR_BUSY, 0, LR_NOWHERE, LR_NOWHERE);
	range->start = start;
	range->bytes = pages * host_page;
	code = lr_uffd_register(&session->target.uffd, range->start, range->bytes, ret_problem);
	if (code == LR_OK)
		code = drop_early_pages(range, ret_problem);
	if (code == LR_OK && madvise((void *)(uintptr_t)start, range->bytes, MADV_DONTFORK) < 0)
		code = lr_problem_from_errno(ret_problem, errno);
	if (code < 0) {
		/* Nothing was promised of this memory yet: it may go back to being ordinary. */
		lr_uffd_unregister(&session->target.uffd, range->start, range->bytes);
		return code;
	}
	lr_range_set_state(range, LR_RANGE_ACTIVE);
	lr_target_enter(&session->target, range);
	return LR_OK;
}

int lr_session_attach(lr_session *session, uint32_t region, void *address,
		      struct lr_problem *ret_problem)
{
	int code;
	struct lr_range *range = get_range(session, region, &code);

	if (!range)
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	return attach(session, range, (uint64_t)(uintptr_t)address, ret_problem);
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
	code = attach(session, range, (uint64_t)(uintptr_t)memory, ret_problem);
	if (code < 0) {
		munmap(memory, range->region.length);
		return code;
	}
	range->is_owned = true;
	*ret_address = memory;
	return LR_OK;
}

int lr_session_suspend(lr_session *session, uint32_t region)
{
	int code;
	struct lr_range *range = get_range(session, region, &code);

	if (!range)
		return code;
	if (lr_range_state(range) != LR_RANGE_ACTIVE)
		return LR_ERR_CLOSED;
	lr_range_set_state(range, LR_RANGE_SUSPENDED);
	lr_loader_quiesce(&session->pager.loader);
	lr_loader_quiesce(&session->ahead);
	return LR_OK;
}

int lr_session_resume(lr_session *session, uint32_t region)
{
	int code;
	struct lr_range *range = get_range(session, region, &code);

	if (!range)
		return code;
	if (lr_range_state(range) != LR_RANGE_SUSPENDED)
		return LR_ERR_CLOSED;
	lr_range_set_state(range, LR_RANGE_ACTIVE);
	/* Faults that came meanwhile were read and left: have them asked again. */
	lr_uffd_wake(&session->target.uffd, range->start, range->bytes);
	return LR_OK;
}

int lr_session_detach(lr_session *session, uint32_t region)
{
	int code;
	struct lr_range *range = get_range(session, region, &code);

	if (!range)
		return code;
	if (lr_range_state(range) == LR_RANGE_ACTIVE)
		lr_session_suspend(session, region);
	if (lr_range_state(range) != LR_RANGE_SUSPENDED)
		return LR_ERR_CLOSED;
	lr_range_set_state(range, LR_RANGE_GONE);
	lr_target_remove(&session->target, range);
	/* Who waits for a page of memory that is gone waits for good unless he is woken. */
	lr_uffd_wake(&session->target.uffd, range->start, range->bytes);
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

void lr_session_get_stats(lr_session *session, struct lr_session_stats *ret_stats)
{
	*ret_stats = (struct lr_session_stats){
		.features = session->target.uffd.features,
		.privilege = session->target.uffd.privilege,
	};
	if (session->pid != getpid())
		return;
	add_loader_stats(&session->pager.loader, ret_stats);
	add_loader_stats(&session->ahead, ret_stats);
	ret_stats->trace_lost =
		atomic_load_explicit(&session->pager.trace.lost, memory_order_relaxed);
	pthread_mutex_lock(&session->target.lock);
	ret_stats->errors = session->target.error_count;
	ret_stats->regions_attached = session->target.attached;
	pthread_mutex_unlock(&session->target.lock);
}

uint32_t lr_session_get_errors(lr_session *session, uint64_t first,
			       struct lr_load_error *ret_errors, uint32_t room)
{
	uint32_t count = 0;
	uint64_t kept;

	if (session->pid != getpid())
		return 0;
	pthread_mutex_lock(&session->target.lock);
	kept = session->target.error_count < LR_ERRORS_KEPT ? session->target.error_count
							    : LR_ERRORS_KEPT;
	for (; count < room && first + count < kept; count++)
		ret_errors[count] = session->target.errors[first + count];
	pthread_mutex_unlock(&session->target.lock);
	return count;
}

uint32_t lr_session_read_trace(lr_session *session, struct lr_trace_record *ret_records,
			       uint32_t room, int64_t timeout_ns)
{
	return session->pid == getpid()
		       ? lr_trace_take(&session->pager.trace, ret_records, room, timeout_ns)
		       : 0;
}

/* What a caller left attached: ours is unmapped; memory of his stays, so what is missing there must
 * not become zeros. */
static void release_range(lr_session *session, struct lr_range *range)
{
	bool is_owned = range->is_owned;

	lr_session_suspend(session, range->number);
	if (is_owned)
		munmap((void *)(uintptr_t)range->start, range->bytes);
	else
		lr_install_fence(&session->target, range, range->start, range->bytes);
	lr_session_detach(session, range->number);
}

void lr_session_close(lr_session *session)
{
	if (!session || session->pid != getpid())
		return;
	lr_fork_forget(session);
	for (uint32_t i = 0; i < session->image->info.region_count; i++)
		if (lr_range_state(&session->target.ranges[i]) == LR_RANGE_ACTIVE)
			release_range(session, &session->target.ranges[i]);
	lr_pager_stop(&session->pager);
	lr_loader_close(&session->ahead);
	lr_target_close(&session->target);
	lr_image_close((lr_image *)session->image);
	free(session);
}
