/* Loading a range now, in the calling thread. */
#include <stdlib.h>
#include <unistd.h>

#include "session.h"

/* One that nobody uses, or a new one. */
static int take_feed(struct lr_session *session, struct lr_feed **ret_feed)
{
	struct lr_feed *feed;
	int code;

	pthread_mutex_lock(&session->feeds_lock);
	for (feed = session->feeds; feed && feed->is_taken; feed = feed->next_feed)
		continue;
	if (feed)
		feed->is_taken = true;
	pthread_mutex_unlock(&session->feeds_lock);
	*ret_feed = feed;
	if (feed)
		return LR_OK;
	feed = calloc(1, sizeof(*feed));
	if (!feed)
		return LR_ERR_NOMEM;
	code = lr_feed_open(feed, &session->pager);
	if (code < 0) {
		free(feed);
		return code;
	}
	feed->is_taken = true;
	pthread_mutex_lock(&session->feeds_lock);
	feed->next_feed = session->feeds;
	session->feeds = feed;
	pthread_mutex_unlock(&session->feeds_lock);
	*ret_feed = feed;
	return LR_OK;
}

static void give_back(struct lr_session *session, struct lr_feed *feed)
{
	pthread_mutex_lock(&session->feeds_lock);
	feed->is_taken = false;
	pthread_mutex_unlock(&session->feeds_lock);
}

void lr_populate_close(struct lr_session *session)
{
	while (session->feeds) {
		struct lr_feed *next = session->feeds->next_feed;

		lr_feed_close(session->feeds);
		free(session->feeds);
		session->feeds = next;
	}
}

static uint64_t clusters_a_page(const struct lr_feed *feed)
{
	const struct lr_target *target = feed->pager->target;

	return target->is_huge ? target->host_page / target->image->info.cluster_size : 1;
}

/* Load [cluster, end); *ret_reached is the first that may not be there. */
static int load(struct lr_feed *feed, struct lr_range *range, uint64_t cluster, uint64_t end,
		uint64_t deadline_ns, uint64_t *ret_reached, struct lr_problem *ret_problem)
{
	struct lr_problem problem = {.cluster = LR_NOWHERE}, rest = {.cluster = LR_NOWHERE};
	uint64_t first = cluster, run;
	bool is_late = false;
	int code = LR_OK, last;

	while (cluster < end && code == LR_OK && !is_late) {
		if (lr_range_state(range) == LR_RANGE_PLAIN)
			run = end - cluster; /* all of it was brought */
		else if (lr_range_state(range) != LR_RANGE_ACTIVE)
			code = lr_problem_set(&problem, LR_ERR_CLOSED, 0, cluster, LR_NOWHERE);
		else
			code = lr_feed_load(feed, range, cluster, end, &run, &problem);
		cluster += code == LR_OK ? run : 0;
		is_late = lr_clock_ns() >= deadline_ns;
	}
	/* What was begun before may have failed too: the first failure is what counts. */
	last = lr_feed_finish(feed, &rest);
	if (last < 0 && (code == LR_OK || rest.cluster < problem.cluster)) {
		code = last;
		problem = rest;
	}
	*ret_reached = cluster;
	if (code < 0) {
		*ret_reached =
			problem.cluster >= first && problem.cluster < end ? problem.cluster : first;
		/* A larger page has none of its clusters where one could not be loaded. */
		*ret_reached -=
			(*ret_reached - range->region.first_cluster) % clusters_a_page(feed);
		if (*ret_reached < first)
			*ret_reached = first;
		if (ret_problem)
			*ret_problem = problem;
		return code;
	}
	if (cluster < end)
		return lr_problem_set(ret_problem, LR_ERR_TIMEOUT, 0, cluster, LR_NOWHERE);
	return LR_OK;
}

int lr_session_populate(lr_session *session, uint32_t region, uint64_t offset, uint64_t length,
			int64_t timeout_ns, uint64_t *ret_done, struct lr_problem *ret_problem)
{
	int code;
	struct lr_range *range = lr_session_range(session, region, &code);
	uint64_t cluster_size = session->image->info.cluster_size;
	uint64_t deadline_ns = timeout_ns < 0 ? UINT64_MAX : lr_clock_ns() + (uint64_t)timeout_ns;
	uint64_t first, reached = 0, done = 0;
	struct lr_feed *feed;

	if (range && (offset > range->region.length || length > range->region.length - offset))
		code = LR_ERR_ARGUMENT;
	else if (range && atomic_load(&session->target.is_mapping))
		code = LR_ERR_BUSY;
	if (code == LR_OK && length > 0)
		code = take_feed(session, &feed);
	if (code < 0)
		lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	if (code == LR_OK && length > 0) {
		first = range->region.first_cluster;
		code = load(feed, range, first + offset / cluster_size,
			    first + (offset + length - 1) / cluster_size + 1, deadline_ns, &reached,
			    ret_problem);
		give_back(session, feed);
		reached = (reached - first) * cluster_size;
		done = reached > offset ? reached - offset : 0;
	}
	*ret_done = done < length ? done : length;
	return code;
}
