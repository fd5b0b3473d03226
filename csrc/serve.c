/*
 * Serving the faults of another process, the peer, which handed over its userfaultfd.
 *
 * It is a session like any other, over a target that is remote. But nothing can be done with the
 * memory itself, and nothing that the peer hands over or does later may be relied on: its ranges
 * are checked, its state is (kept.h), its userfaultfd may be drained or made to block, and it may
 * end at any moment. What goes wrong there is its own loss.
 *
 * A child of fork() has nothing of it: fork.c does not know it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adopt.h"
#include "children.h"
#include "jobs.h"
#include "keep.h"
#include "pieces.h"
#include "session.h"

#define HUGE_PAGE   (2u << 20)
#define SERVE_FLAGS (LR_SERVE_ZERO_OUTSIDE | LR_SERVE_CHILDREN)

static int fail(struct lr_problem *ret_problem, int code)
{
	return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
}

/* The page size that was asked for, or an error. */
static int64_t page_size_of(uint32_t page_size)
{
	uint32_t own = (uint32_t)sysconf(_SC_PAGESIZE);

	if (page_size && page_size != own && page_size != HUGE_PAGE)
		return LR_ERR_ARGUMENT;
	return page_size ? page_size : own;
}

static struct lr_kept_kind kind_of(const lr_image *image, uint32_t page_size)
{
	struct lr_kept_kind kind;

	/* Compared as bytes. */
	memset(&kind, 0, sizeof(kind));
	memcpy(kind.digest, image->info.digest, sizeof(kind.digest));
	kind.clusters = image->info.cluster_count;
	kind.pages = lr_target_pages(image, page_size);
	kind.cluster_size = image->info.cluster_size;
	kind.page_size = page_size;
	kind.regions = image->info.region_count;
	kind.pieces_max = lr_pieces_max(image);
	return kind;
}

int lr_serve_state(const lr_image *image, uint32_t page_size, int32_t *ret_fd,
		   struct lr_problem *ret_problem)
{
	struct lr_kept_kind kind;
	int64_t page;

	if (!image || !ret_fd)
		return fail(ret_problem, LR_ERR_ARGUMENT);
	page = page_size_of(page_size);
	if (page < 0)
		return fail(ret_problem, (int)page);
	kind = kind_of(image, (uint32_t)page);
	return lr_kept_create(&kind, ret_fd, ret_problem);
}

/* Addresses of 56 bits are the most that a process may have, and 64 KiB what may be left free at
 * their beginning. How many there are of them is not known of another's. */
static void wake_everything(struct lr_target *target)
{
	for (int bits = 56; bits > 31; bits--)
		for (uint64_t start = target->host_page; start <= 65536; start *= 16)
			if (lr_uffd_wake(&target->uffd, start,
					 (1ull << bits) - target->host_page - start))
				return;
}

/* Whoever waits anywhere asks again. */
static void wake_all(struct lr_target *target)
{
	struct lr_piece piece;

	/* Also where there is no piece. */
	if (target->is_zero_outside) {
		wake_everything(target);
		return;
	}
	for (uint64_t address = 0; lr_target_next(target, address, &piece); address = piece.end)
		lr_uffd_wake(&target->uffd, piece.start, piece.end - piece.start);
}

/* ---- Beginning ---- */

static int by_address(const void *a, const void *b)
{
	const struct lr_peer_range *left = a, *right = b;

	return left->address < right->address ? -1 : left->address > right->address;
}

static int add_ranges(struct lr_target *target, const struct lr_serve_options *options)
{
	struct lr_peer_range *sorted;
	int code = LR_OK;

	if (options->range_count == 0 && target->is_zero_outside)
		return LR_OK;
	if (!options->ranges || options->range_count == 0
	    || options->range_count > target->pieces_max)
		return LR_ERR_ARGUMENT;
	/* A copy also because the caller's may change. */
	sorted = malloc(options->range_count * sizeof(*sorted));
	if (!sorted)
		return LR_ERR_NOMEM;
	memcpy(sorted, options->ranges, options->range_count * sizeof(*sorted));
	qsort(sorted, options->range_count, sizeof(*sorted), by_address);
	for (uint64_t i = 0; i < options->range_count && code == LR_OK; i++)
		code = lr_target_add(target, sorted[i].region, sorted[i].address, sorted[i].bytes,
				     sorted[i].offset, 0);
	free(sorted);
	return code == LR_OK ? lr_target_finish_adding(target, true) : code;
}

/* All of it is registered, or is so from now on, and is memory of such pages. */
static int check_ranges(struct lr_target *target, struct lr_problem *ret_problem)
{
	struct lr_piece piece;

	/* Some of it may not be mapped yet, or be something else that is to make room. */
	if (target->is_zero_outside) {
		if (lr_uffd_is_gone(&target->uffd, target->host_page))
			return fail(ret_problem, LR_ERR_GONE);
		return LR_OK;
	}
	for (uint64_t address = 0; lr_target_next(target, address, &piece); address = piece.end) {
		bool has_zeropage = false;
		int code = lr_uffd_check(&target->uffd, piece.start, piece.end - piece.start,
					 &has_zeropage, ret_problem);

		/* The kernel says of that, too, that there is no memory. */
		if (code < 0 && lr_uffd_is_gone(&target->uffd, target->host_page))
			return fail(ret_problem, LR_ERR_GONE);
		if (code == LR_ERR_NOMEM)
			return code;
		/* Only hugetlb's has no zero page. */
		if (code < 0 || has_zeropage != !target->zeros)
			return fail(ret_problem, LR_ERR_ARGUMENT);
	}
	return LR_OK;
}

static int open_kept(struct lr_session *session, int fd, struct lr_problem *ret_problem)
{
	struct lr_target *target = &session->target;
	struct lr_kept_kind kind = kind_of(session->image, target->host_page);
	int code = lr_kept_open(&session->kept, fd, &kind, ret_problem);

	if (code < 0)
		return code;
	lr_pageset_open(&target->clusters, target->clusters.clusters, target->clusters.pages,
			session->kept.states, session->kept.settled);
	target->kept = &session->kept;
	atomic_store(&target->is_mapping,
		     target->is_zero_outside && !atomic_load(&session->kept.header->is_settled));
	return LR_OK;
}

/* What lies where: as it was left, or as it is said to be now. */
static int find_pieces(struct lr_session *session, const struct lr_serve_options *options,
		       struct lr_problem *ret_problem)
{
	struct lr_target *target = &session->target;
	bool is_there = false;
	int code = LR_OK;

	if (target->kept)
		code = lr_keep_load(target, &is_there);
	if (code == LR_OK && !is_there)
		code = add_ranges(target, options);
	if (code < 0)
		return fail(ret_problem, code);
	if (is_there) {
		/* Its children may live on, and are told of by nobody else. */
		if (target->is_zero_outside && !lr_children_any(target)
		    && lr_uffd_is_gone(&target->uffd, target->host_page))
			return fail(ret_problem, LR_ERR_GONE);
		return LR_OK;
	}
	code = check_ranges(target, ret_problem);
	if (code == LR_OK && target->kept)
		lr_keep_save(target, NULL);
	return code;
}

/* Whether threads' numbers there mean the same here. */
static bool is_same_namespace(int32_t pid)
{
	char path[48], own[64], other[64];
	ssize_t own_bytes = readlink("/proc/self/ns/pid", own, sizeof(own)), other_bytes;

	snprintf(path, sizeof(path), "/proc/%d/ns/pid", pid);
	other_bytes = readlink(path, other, sizeof(other));
	return own_bytes > 0 && own_bytes == other_bytes
	       && memcmp(own, other, (size_t)own_bytes) == 0;
}

static int set_up(struct lr_session *session, const struct lr_serve_options *options,
		  struct lr_problem *ret_problem)
{
	struct lr_target *target = &session->target;
	int code = lr_adopt(&target->uffd, options->uffd, options->flags & LR_SERVE_CHILDREN,
			    ret_problem);

	if (code < 0)
		return code;
	target->is_remote = true;
	target->is_zero_outside = options->flags & LR_SERVE_ZERO_OUTSIDE;
	target->takes_children = options->flags & LR_SERVE_CHILDREN;
	atomic_store(&target->is_mapping, target->is_zero_outside);
	target->on_error = options->on_error;
	target->granularity = options->granularity;
	target->peer = options->pid;
	target->are_threads_known = options->pid && is_same_namespace(options->pid);
	if (options->event_fd >= 0) {
		target->event_fd = fcntl(options->event_fd, F_DUPFD_CLOEXEC, 3);
		if (target->event_fd < 0)
			return lr_problem_from_errno(ret_problem, errno);
	}
	if (options->record) {
		code = lr_record_open(&session->record, session->image->info.cluster_count);
		if (code < 0)
			return fail(ret_problem, code);
		target->record = &session->record;
	}
	if (options->state >= 0)
		code = open_kept(session, options->state, ret_problem);
	if (code == LR_OK)
		code = find_pieces(session, options, ret_problem);
	if (code == LR_OK) {
		/* Whoever waits for a predecessor, which may have read what he asked: before the
		 * pager begins, so that he has asked again by then. */
		wake_all(target);
		code = lr_session_start(session, ret_problem);
	}
	if (code == LR_OK)
		lr_pager_wait_ready(&session->pager);
	if (code == LR_OK && target->kept && session->pager.has_own_descriptors)
		lr_kept_leave_lock(target->kept);
	return code;
}

static void tear_down(struct lr_session *session)
{
	struct lr_target *target = &session->target;

	lr_record_close(&session->record);
	if (target->event_fd >= 0)
		close(target->event_fd);
	lr_target_close(target);
	if (target->kept)
		lr_kept_close(target->kept);
	pthread_mutex_destroy(&session->feeds_lock);
	free(session);
}

int lr_session_serve(const lr_image *image, const struct lr_serve_options *options,
		     lr_session **ret_session, struct lr_problem *ret_problem)
{
	lr_session *session;
	int64_t page;
	int code;

	if (!image || !options || !ret_session || options->on_error == LR_ON_ERROR_ABORT
	    || options->on_error > LR_ON_ERROR_HOLD || options->granularity > LR_GRANULARITY_PAGE
	    || options->pid < 0 || options->flags & ~SERVE_FLAGS
	    || (options->flags & LR_SERVE_CHILDREN && options->state < 0))
		return fail(ret_problem, LR_ERR_ARGUMENT);
	page = page_size_of(options->page_size);
	if (page < 0)
		return fail(ret_problem, (int)page);
	session = calloc(1, sizeof(*session));
	if (!session)
		return fail(ret_problem, LR_ERR_NOMEM);
	session->image = image;
	session->pid = getpid();
	session->trace_records = options->trace_records;
	code = lr_target_open(&session->target, image, (uint32_t)page);
	if (code < 0) {
		free(session);
		return fail(ret_problem, code);
	}
	pthread_mutex_init(&session->feeds_lock, NULL);
	code = set_up(session, options, ret_problem);
	if (code < 0) {
		tear_down(session);
		return code;
	}
	lr_image_hold(image);
	*ret_session = session;
	return LR_OK;
}

/* ---- After that ---- */

int lr_session_retry(lr_session *session)
{
	struct lr_loader *loader = &session->pager.loader;
	struct lr_pageset *clusters = &session->target.clusters;

	if (session->pid != getpid() || !session->target.is_remote)
		return LR_ERR_ARGUMENT;
	/* What fails again is an error once more. */
	pthread_mutex_lock(&loader->busy);
	for (uint64_t i = 0; i < clusters->clusters; i++)
		if (lr_pageset_get(clusters, i) == LR_STATE_FENCED)
			lr_pageset_put(clusters, i, LR_STATE_MISSING);
	pthread_mutex_unlock(&loader->busy);
	wake_all(&session->target);
	return LR_OK;
}

void lr_session_stop_serving(lr_session *session)
{
	lr_image *image = (lr_image *)session->image;

	/* What is under way ends where it is. */
	for (uint32_t i = 0; i < image->info.region_count; i++)
		lr_range_change(&session->target.ranges[i], LR_RANGE_ACTIVE, LR_RANGE_CLOSING);
	lr_pager_unblock(&session->pager);
	lr_fill_stop(&session->fill);
	lr_pager_stop(&session->pager);
	lr_populate_close(session);
	tear_down(session);
	lr_image_close(image);
}
