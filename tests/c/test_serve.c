/* Serving another process's userfaultfd. */
#include "check.h"

#include "serve_setting.h"

#define PAGES 96

/* The literal promise: what another process touches comes from the image. */
static void serves_another_process(void)
{
	struct lr_session_stats stats;
	struct peer peer;
	lr_session *session;

	make_image(65536, PAGES, "ddzrh");
	peer_start(&peer, PAGES, PEER_FEATURES);
	session = serve(&peer, -1);
	stats = stats_of(session);
	CHECK_EQ(stats.pages_total, PAGES);
	CHECK_EQ(stats.pages_missing, PAGES);
	CHECK_EQ(stats.regions_attached, 1);
	CHECK_EQ(peer_do(&peer, check_pages, 20, 21), 0);
	stats = stats_of(session);
	CHECK_EQ(stats.faults, 1);
	CHECK(stats.pages_missing < PAGES);
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	CHECK_EQ(stats_of(session).pages_missing, 0);
	CHECK_EQ(stats_of(session).errors, 0);
	lr_session_close(session);
	peer_end(&peer);
}

/* Firecracker maps parts of one memory file at several addresses, in any order. */
static void serves_pieces(void)
{
	struct lr_peer_range ranges[3];
	struct peer peer;
	lr_session *session = NULL;

	make_image(65536, PAGES, "drz");
	peer_start(&peer, PAGES, PEER_FEATURES);
	for (unsigned i = 0; i < 3; i++)
		ranges[i] = (struct lr_peer_range){
			.address = (uintptr_t)peer.memory + (2 - i) * 20 * PAGE,
			.bytes = 20 * PAGE,
			.offset = i * 30 * PAGE,
		};
	CHECK_EQ(try_to_serve(&peer, ranges, 3, -1, &session), LR_OK);
	CHECK_EQ(stats_of(session).pages_total, 60);
	for (unsigned i = 0; i < 3; i++) {
		/* As seen from a memory that begins where the whole region would. */
		struct peer shifted = peer;

		for (unsigned page = 0; page < 20; page += 7) {
			(void)shifted;
			CHECK_EQ(peer_do(&peer, touch_page, (2 - i) * 20 + page, 0), 0);
		}
	}
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, 15000000000), LR_OK);
	lr_session_close(session);
	peer_end(&peer);
}

static void gives_zeros_for_what_was_given_up(void)
{
	struct peer peer;
	lr_session *session;

	make_image(4096, PAGES, "d");
	peer_start(&peer, PAGES, PEER_FEATURES);
	session = serve(&peer, -1);
	CHECK_EQ(peer_do(&peer, touch_page, 3, 1), 0);
	CHECK_EQ(peer_do(&peer, give_up, 0, 10), 0);
	CHECK_EQ(peer_do(&peer, check_zeros, 0, 10), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 10, PAGES), 0);
	lr_session_close(session);
	peer_end(&peer);
}

/* Everything comes, and then nobody is needed any more. */
static void fills_and_lets_go(void)
{
	struct lr_serve_options options = {.state = -1};
	struct lr_peer_range range;
	struct peer peer;
	lr_session *session;
	uint64_t count;

	make_image(65536, PAGES, "ddzrh");
	peer_start(&peer, PAGES, PEER_FEATURES);
	range = whole_range(&peer);
	options.uffd = peer.uffd;
	options.ranges = &range;
	options.range_count = 1;
	options.event_fd = (int)CHECK_CALL(eventfd(0, EFD_CLOEXEC));
	CHECK_EQ(lr_session_serve(opened, &options, &session, NULL), LR_OK);
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, 15000000000), LR_OK);
	CHECK_EQ(read(options.event_fd, &count, sizeof(count)), sizeof(count));
	CHECK_EQ(stats_of(session).pages_missing, 0);
	lr_session_close(session);
	close(peer.uffd);
	peer.uffd = -1;
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	CHECK_EQ(peer_do(&peer, give_up, 0, PAGES), 0);
	CHECK_EQ(peer_do(&peer, check_zeros, 0, PAGES), 0);
	peer_end(&peer);
}

/* Who stops serving leaves all as it is, and who comes next goes on. */
static void goes_on_from_a_state(void)
{
	struct peer peer;
	lr_session *session;
	int state;

	make_image(4096, PAGES, "d");
	state = new_state();
	peer_start(&peer, PAGES, PEER_FEATURES);
	session = serve(&peer, state);
	CHECK_EQ(peer_do(&peer, touch_page, 0, 1), 0);
	CHECK_EQ(peer_do(&peer, give_up, 0, 10), 0);
	CHECK_EQ(peer_do(&peer, unmap, 90, PAGES), 0);
	lr_session_close(session);
	peer_order(&peer, check_zeros, 0, 10);
	CHECK(peer_waits(&peer, 50));
	session = serve(&peer, state);
	CHECK_EQ(peer_result(&peer), 0);
	CHECK_EQ(stats_of(session).pages_total, 90);
	CHECK_EQ(peer_do(&peer, check_pages, 10, 90), 0);
	lr_session_close(session);
	close(state);
	peer_end(&peer);
}

static const struct check_case cases[] = {
	CHECK_CASE(serves_another_process),
	CHECK_CASE(serves_pieces),
	CHECK_CASE(gives_zeros_for_what_was_given_up),
	CHECK_CASE(fills_and_lets_go),
	CHECK_CASE(goes_on_from_a_state),
};
CHECK_MAIN(cases)
