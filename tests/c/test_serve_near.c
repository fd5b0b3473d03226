/* The thread that serves on the toucher's processor, where that is another process's: and not where
 * its threads are not known. */
#include "check.h"

#include <sched.h>

#include "serve_setting.h"

#define PAGES 6000

static struct peer peer;
static uint64_t next;

static unsigned processors(void)
{
	cpu_set_t allowed;

	CHECK_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
	return (unsigned)CPU_COUNT(&allowed);
}

static lr_session *set_up(uint64_t features, bool knows_pid)
{
	struct lr_peer_range range;
	struct lr_serve_options options = {.state = -1, .event_fd = -1};
	lr_session *session;

	if (processors() < 2)
		SKIP("one processor: there is nothing to be near to");
	if (!opened)
		make_image(4096, PAGES, "ddz");
	peer_start(&peer, PAGES, features);
	range = whole_range(&peer);
	options.uffd = peer.uffd;
	options.pid = knows_pid ? peer.pid : 0;
	options.ranges = &range;
	options.range_count = 1;
	CHECK_EQ(lr_session_serve(opened, &options, &session, NULL), LR_OK);
	session->pager.near.ignores_load = true;
	next = 0;
	return session;
}

static uint32_t rounds(const lr_session *session)
{
	return atomic_load(&session->pager.near.rounds);
}

static void touch_some(lr_session *session)
{
	uint32_t before = rounds(session);

	for (int tries = 0; rounds(session) == before && tries < 40 && next < PAGES; tries++) {
		uint64_t end = next + 100 < PAGES ? next + 100 : PAGES;

		CHECK_EQ(peer_do(&peer, check_pages, next, end), 0);
		next = end;
		if (tries > 2)
			usleep(50000);
	}
}

static void serves_a_peers_thread(void)
{
	lr_session *session = set_up(PEER_FEATURES, true);

	touch_some(session);
	if (atomic_load(&session->pager.near.is_unfit))
		SKIP("this thread may not choose its scheduling class");
	if (rounds(session) == 0)
		SKIP("it was never given the turn: others keep each processor busy");
	/* Where that is was found. */
	CHECK(atomic_load(&session->pager.near.processor) >= 0);
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	CHECK_EQ(stats_of(session).pages_missing, 0);
	lr_session_close(session);
	peer_end(&peer);
}

static void is_of_no_use_without_numbers_of_threads(void)
{
	lr_session *session = set_up(PEER_FEATURES & ~(uint64_t)UFFD_FEATURE_THREAD_ID, true);

	CHECK_EQ(peer_do(&peer, check_pages, 0, 1000), 0);
	CHECK_EQ(rounds(session), 0);
	lr_session_close(session);
	peer_end(&peer);
}

static void is_not_there_without_the_peers_number(void)
{
	lr_session *session = set_up(PEER_FEATURES, false);

	CHECK(!session->pager.near.is_running);
	CHECK_EQ(peer_do(&peer, check_pages, 0, 1000), 0);
	lr_session_close(session);
	peer_end(&peer);
}

static void stops_when_the_peer_ends(void)
{
	for (int i = 0; i < 10; i++) {
		lr_session *session = set_up(PEER_FEATURES, true);

		touch_some(session);
		peer_order(&peer, check_pages, next, PAGES);
		usleep(500u * (unsigned)i);
		peer_kill(&peer);
		lr_session_close(session);
	}
}

static const struct check_case cases[] = {
	CHECK_CASE(serves_a_peers_thread),
	CHECK_CASE(is_of_no_use_without_numbers_of_threads),
	CHECK_CASE(is_not_there_without_the_peers_number),
	CHECK_CASE(stops_when_the_peer_ends),
};
CHECK_MAIN(cases)
