/* What a session tells of itself. */
#include <string.h>
#include <unistd.h>

#include "session.h"

static void count_pages(struct lr_target *target, struct lr_session_stats *stats)
{
	struct lr_piece piece;

	for (uint64_t address = 0; lr_target_next(target, address, &piece); address = piece.end) {
		uint64_t first = lr_target_page(target, piece.range, piece.offset);
		uint64_t pages = (piece.end - piece.start) / target->host_page;

		stats->pages_total += pages;
		stats->pages_missing +=
			lr_pageset_count_missing(&target->clusters, first, first + pages);
	}
}

static void gather_stats(lr_session *session, struct lr_session_stats *stats)
{
	struct lr_loader *loader = &session->pager.loader;

	pthread_mutex_lock(&loader->busy);
	stats->faults = loader->faults;
	stats->pages_copied = loader->pages_copied;
	stats->pages_zeroed = loader->pages_zeroed;
	stats->clusters_decoded = loader->clusters_decoded;
	stats->payload_bytes_read = loader->payload_bytes_read;
	memcpy(stats->answers, loader->answers, sizeof stats->answers);
	stats->service = loader->service;
	pthread_mutex_unlock(&loader->busy);
	stats->fill = atomic_load_explicit(&session->fill.state, memory_order_relaxed);
	stats->trace_lost = atomic_load_explicit(&session->pager.trace.lost, memory_order_relaxed);
	pthread_mutex_lock(&session->target.lock);
	stats->errors = session->target.error_count;
	stats->regions_attached = session->target.attached;
	stats->pages_total = session->target.plain_pages;
	pthread_mutex_unlock(&session->target.lock);
	stats->is_gone = atomic_load(&session->target.is_gone);
	count_pages(&session->target, stats);
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
	/* Whoever was woken by a fence finds it recorded. */
	lr_loader_quiesce(&session->pager.loader);
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

uint64_t lr_session_get_touched(lr_session *session, uint64_t first, struct lr_touched *ret_touched,
				uint64_t room)
{
	if (session->pid != getpid())
		return 0;
	/* Nothing is locked meanwhile: the caller's memory may be lazy. */
	return lr_record_get(&session->record, first, ret_touched, room);
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
