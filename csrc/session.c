#include "session.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "early.h"
#include "witness.h"

#define WANTED_FEATURES                                                                            \
	(LR_UFFD_FEATURE_THREAD_ID | LR_UFFD_FEATURE_EXACT_ADDRESS | LR_UFFD_FEATURE_POISON        \
	 | LR_UFFD_FEATURE_EVENT_REMOVE | LR_UFFD_FEATURE_EVENT_REMAP                              \
	 | LR_UFFD_FEATURE_EVENT_UNMAP | LR_UFFD_FEATURE_MOVE)

/* Where system calls get no answer in any case, the kind that serves them has nothing more. */
static uint32_t privilege_of(const struct lr_session_options *options)
{
	if (options->fault_mode == LR_FAULT_INLINE && options->privilege == LR_PRIVILEGE_FULL)
		return LR_PRIVILEGE_AUTO;
	return options->privilege;
}

static int open_uffd(lr_session *session, const struct lr_session_options *options,
		     struct lr_problem *ret_problem)
{
	bool is_inline = options->fault_mode == LR_FAULT_INLINE;
	int code = lr_uffd_open(&session->target.uffd, privilege_of(options),
				WANTED_FEATURES | (is_inline ? LR_UFFD_FEATURE_SIGBUS : 0),
				ret_problem);

	if (code == LR_OK && is_inline && !(session->target.uffd.features & LR_UFFD_FEATURE_SIGBUS))
		return lr_problem_set(ret_problem, LR_ERR_UNSUPPORTED, 0, LR_NOWHERE, LR_NOWHERE);
	return code;
}

int lr_session_start(struct lr_session *session, struct lr_problem *ret_problem)
{
	int code = lr_pager_start(&session->pager, &session->target, session->trace_records,
				  ret_problem);

	if (code < 0 || session->fault_mode != LR_FAULT_INLINE)
		return code;
	code = lr_inline_open(&session->in_thread, &session->pager);
	if (code < 0) {
		lr_pager_stop(&session->pager);
		lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	}
	return code;
}

static void close_target(lr_session *session)
{
	lr_witness_close(&session->target);
	lr_record_close(&session->record);
	lr_target_close(&session->target);
}

static int start_record(lr_session *session)
{
	int code = lr_record_open(&session->record, session->image->info.cluster_count);

	if (code < 0)
		lr_target_close(&session->target);
	else
		session->target.record = &session->record;
	return code;
}

int lr_session_open(const lr_image *image, const struct lr_session_options *options,
		    lr_session **ret_session, struct lr_problem *ret_problem)
{
	struct lr_session_options defaults = {0};
	lr_session *session;
	int code;

	if (!image || !ret_session
	    || (options
		&& (options->on_error > LR_ON_ERROR_ABORT
		    || options->granularity > LR_GRANULARITY_PAGE
		    || options->fault_mode > LR_FAULT_INLINE)))
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	if (!options)
		options = &defaults;
	session = calloc(1, sizeof(*session));
	if (!session)
		return lr_problem_set(ret_problem, LR_ERR_NOMEM, 0, LR_NOWHERE, LR_NOWHERE);
	session->image = image;
	session->pid = getpid();
	session->trace_records = options->trace_records;
	session->fault_mode = options->fault_mode;
	pthread_mutex_init(&session->feeds_lock, NULL);
	code = lr_target_open(&session->target, image, 0);
	if (code == LR_OK && options->record)
		code = start_record(session);
	if (code < 0) {
		free(session);
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	}
	session->target.on_error = options->on_error;
	session->target.granularity = options->granularity;
	session->target.is_shared = options->fault_mode == LR_FAULT_INLINE;
	/* A child must not get a copy of a userfaultfd that it does not know of. */
	lr_fork_block();
	code = open_uffd(session, options, ret_problem);
	if (code == LR_OK)
		code = lr_session_start(session, ret_problem);
	if (code == LR_OK)
		lr_fork_watch(session);
	else
		close_target(session);
	lr_fork_unblock();
	if (code < 0) {
		free(session);
		return code;
	}
	lr_image_hold(image);
	*ret_session = session;
	return LR_OK;
}

struct lr_range *lr_session_range(lr_session *session, uint32_t region, int *ret_code)
{
	*ret_code = LR_OK;
	if (region >= session->image->info.region_count)
		*ret_code = LR_ERR_NOT_FOUND;
	else if (session->pid != getpid())
		*ret_code = LR_ERR_CLOSED;
	return *ret_code == LR_OK ? &session->target.ranges[region] : NULL;
}

/* The same for memory of this process. */
static struct lr_range *own_range(lr_session *session, uint32_t region, int *ret_code)
{
	if (!session->target.is_remote)
		return lr_session_range(session, region, ret_code);
	*ret_code = LR_ERR_ARGUMENT;
	return NULL;
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
	/* The range is `changing`, so this is not taken for its owner's wish. */
	code = lr_early_drop(range->start, range->bytes, ret_problem);
	/* What is still told of memory that was here before must not be taken for this. */
	lr_target_settle_down(&session->target, range->start);
	if (code == LR_OK && madvise(start, range->bytes, MADV_DONTFORK) < 0)
		code = lr_problem_from_errno(ret_problem, errno);
	/* Nothing was promised of this memory yet: it may go back to being ordinary. */
	if (code < 0)
		lr_uffd_unregister(&session->target.uffd, range->start, range->bytes);
	return code;
}

/* Change a range's state, and tell those who touched it meanwhile. */
static bool change(lr_session *session, struct lr_range *range, enum lr_range_state from,
		   enum lr_range_state to)
{
	bool is_done = lr_range_change(range, from, to);

	if (is_done && lr_inline_is_on(&session->in_thread))
		lr_inline_wake(range);
	return is_done;
}

/* Take a range out of the look-up and wake who waits there: their memory is gone, or fenced. */
static void let_go(lr_session *session, struct lr_range *range)
{
	struct lr_piece piece;

	while (lr_target_take(&session->target, range, &piece))
		lr_uffd_wake(&session->target.uffd, piece.start, piece.end - piece.start);
}

static int attach(lr_session *session, struct lr_range *range, uint64_t start, bool is_owned,
		  struct lr_problem *ret_problem)
{
	uint64_t host_page = session->target.host_page;
	uint64_t pages = range->region.length / host_page + (range->region.length % host_page != 0);
	int code;

	if (start % host_page || start == 0 || pages == 0 || start > UINT64_MAX - pages * host_page)
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	lr_fork_block();
	code = lr_target_enter(&session->target, range, start, pages * host_page);
	if (code < 0) {
		lr_fork_unblock();
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	}
	range->is_owned = is_owned;
	code = register_range(session, range, ret_problem);
	if (code < 0)
		let_go(session, range);
	else
		lr_fork_taken(session, range->start, range->start + range->bytes);
	change(session, range, LR_RANGE_CHANGING, code == LR_OK ? LR_RANGE_ACTIVE : LR_RANGE_IDLE);
	lr_fork_unblock();
	if (code < 0)
		return code;
	lr_pager_wait_ready(&session->pager);
	/* Who touched it since it was registered was read and left: have him ask again. */
	lr_uffd_wake(&session->target.uffd, range->start, range->bytes);
	return LR_OK;
}

int lr_session_attach(lr_session *session, uint32_t region, void *address,
		      struct lr_problem *ret_problem)
{
	int code;
	struct lr_range *range = own_range(session, region, &code);

	if (!range)
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	return attach(session, range, (uint64_t)(uintptr_t)address, false, ret_problem);
}

int lr_session_map(lr_session *session, uint32_t region, void **ret_address,
		   struct lr_problem *ret_problem)
{
	int code;
	struct lr_range *range = own_range(session, region, &code);
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

int lr_session_suspend(lr_session *session, uint32_t region)
{
	int code;
	struct lr_range *range = own_range(session, region, &code);

	if (!range)
		return code;
	/* Ordinary memory needs nothing. */
	if (!lr_range_change(range, LR_RANGE_ACTIVE, LR_RANGE_SUSPENDED))
		return lr_range_state(range) == LR_RANGE_PLAIN ? LR_OK : LR_ERR_CLOSED;
	lr_loader_quiesce(&session->pager.loader);
	return LR_OK;
}

int lr_session_resume(lr_session *session, uint32_t region)
{
	int code;
	struct lr_range *range = own_range(session, region, &code);
	struct lr_piece piece;
	uint64_t offset = 0;

	if (!range)
		return code;
	if (!change(session, range, LR_RANGE_SUSPENDED, LR_RANGE_ACTIVE))
		return lr_range_state(range) == LR_RANGE_PLAIN ? LR_OK : LR_ERR_CLOSED;
	/* Faults that came meanwhile were read and left: have them asked again. */
	while (lr_target_find_offset(&session->target, range, offset, &piece)) {
		lr_uffd_wake(&session->target.uffd, piece.start, piece.end - piece.start);
		offset = piece.offset + (piece.end - piece.start);
	}
	return LR_OK;
}

int lr_session_detach(lr_session *session, uint32_t region)
{
	int code;
	struct lr_range *range = own_range(session, region, &code);
	struct lr_piece piece;

	if (!range)
		return code;
	if (!lr_range_change(range, LR_RANGE_SUSPENDED, LR_RANGE_GONE)
	    && !lr_range_change(range, LR_RANGE_ACTIVE, LR_RANGE_GONE)
	    && !lr_range_change(range, LR_RANGE_PLAIN, LR_RANGE_GONE))
		return LR_ERR_CLOSED;
	/* Also where it was suspended: by another thread, maybe, that still waits. */
	lr_loader_quiesce(&session->pager.loader);
	lr_target_settle_down(&session->target, range->start);
	lr_fork_block();
	while (lr_target_take(&session->target, range, &piece)) {
		/* Still there: its owner unmaps it next, and need not wait for that to be read. Nor
		 * may anyone read zeros there. */
		mprotect((void *)(uintptr_t)piece.start, piece.end - piece.start, PROT_NONE);
		lr_uffd_unregister(&session->target.uffd, piece.start, piece.end - piece.start);
		lr_uffd_wake(&session->target.uffd, piece.start, piece.end - piece.start);
	}
	lr_fork_unblock();
	if (lr_inline_is_on(&session->in_thread))
		lr_inline_wake(range);
	return LR_OK;
}

int lr_session_fill(lr_session *session, const struct lr_fill_options *options)
{
	/* Of a whole process the rest is registered as well, and more is mapped all the time. */
	bool is_released = !session->target.is_zero_outside;

	return session->pid == getpid() ? lr_fill_start(&session->fill, &session->pager, options,
							is_released ? lr_session_release : NULL)
					: LR_ERR_CLOSED;
}

int lr_session_wait_first(lr_session *session, int64_t timeout_ns)
{
	return session->pid == getpid() ? lr_fill_wait(&session->fill.first_state, timeout_ns)
					: LR_ERR_CLOSED;
}

int lr_session_wait(lr_session *session, int64_t timeout_ns)
{
	return session->pid == getpid() ? lr_fill_wait(&session->fill.state, timeout_ns)
					: LR_ERR_CLOSED;
}

/* What is fenced stays so. A munmap to come must not wait for a userfaultfd of which a child has a
 * copy. */
static void make_ordinary(lr_session *session, const struct lr_piece *piece)
{
	uint64_t bytes = piece->end - piece->start;

	lr_uffd_unregister(&session->target.uffd, piece->start, bytes);
	madvise((void *)(uintptr_t)piece->start, bytes, MADV_DOFORK);
}

/* What a caller left attached: ours is unmapped; memory of his stays, so what is missing there must
 * not become zeros when the userfaultfd goes. */
static void release_range(lr_session *session, struct lr_range *range)
{
	struct lr_piece piece;

	if (!range->is_owned)
		lr_loader_fence_rest(&session->target, range);
	while (lr_target_take(&session->target, range, &piece)) {
		if (range->is_owned)
			munmap((void *)(uintptr_t)piece.start, piece.end - piece.start);
		else
			make_ordinary(session, &piece);
		lr_uffd_wake(&session->target.uffd, piece.start, piece.end - piece.start);
	}
	change(session, range, LR_RANGE_CLOSING, LR_RANGE_GONE);
}

/* What its owner unmapped or moved just before must have left the look-up: somebody else's memory
 * may lie there by now, and would be unmapped, or fenced, in its stead. */
static void release_all(lr_session *session)
{
	uint32_t count = session->image->info.region_count;
	bool is_settled = false;

	for (uint32_t i = 0; i < count; i++) {
		struct lr_range *range = &session->target.ranges[i];

		if (lr_range_state(range) != LR_RANGE_CLOSING)
			continue;
		if (!is_settled)
			lr_target_settle_down(&session->target, range->start);
		is_settled = true;
		release_range(session, range);
	}
}

void lr_session_close(lr_session *session)
{
	uint32_t count;

	if (!session || session->pid != getpid())
		return;
	if (session->target.is_remote) {
		lr_session_stop_serving(session);
		return;
	}
	lr_fill_stop(&session->fill);
	/* A child has the session, or nothing of it. */
	lr_fork_block();
	lr_fork_forget(session);
	lr_inline_begin_close(&session->in_thread);
	count = session->image->info.region_count;
	for (uint32_t i = 0; i < count; i++) {
		struct lr_range *range = &session->target.ranges[i];

		/* One that is suspended is unmapped by now, or stays: then it is fenced. */
		if (!lr_range_change(range, LR_RANGE_ACTIVE, LR_RANGE_CLOSING))
			lr_range_change(range, LR_RANGE_SUSPENDED, LR_RANGE_CLOSING);
	}
	lr_loader_quiesce(&session->pager.loader);
	release_all(session);
	lr_inline_close(&session->in_thread);
	lr_pager_stop(&session->pager);
	lr_populate_close(session);
	close_target(session);
	lr_fork_unblock();
	pthread_mutex_destroy(&session->feeds_lock);
	lr_image_close((lr_image *)session->image);
	free(session);
}
