/* Serving a process whose memory is in huge pages (hugetlb), as Firecracker's guests may be. */
#include "check.h"

#include "huge_pool.h"
#include "serve_setting.h"

#define PAGES (HUGE / PAGE) /* small ones in a huge one */

static struct peer peer;

static void start(size_t huge_pages, const char *pattern)
{
	make_image(65536, huge_pages * PAGES, pattern);
	peer_start_at(&peer, huge_pages * PAGES, PEER_FEATURES, PEER_HUGE);
}

static int try_to_serve_as(uint32_t page_size, uint32_t on_error, int state,
			   lr_session **ret_session)
{
	struct lr_peer_range range = whole_range(&peer);
	struct lr_serve_options options = {
		.uffd = peer.uffd,
		.state = state,
		.pid = peer.pid,
		.event_fd = -1,
		.page_size = page_size,
		.on_error = on_error,
		.ranges = &range,
		.range_count = 1,
	};

	return lr_session_serve(opened, &options, ret_session, NULL);
}

static lr_session *serve_huge(int state)
{
	lr_session *session = NULL;

	CHECK_EQ(try_to_serve_as(HUGE, LR_ON_ERROR_FENCE, state, &session), LR_OK);
	return session;
}

static int huge_state(void)
{
	int32_t fd = -1;

	CHECK_EQ(lr_serve_state(opened, HUGE, &fd, NULL), LR_OK);
	return fd;
}

static void faults_and_a_balloon(void)
{
	struct lr_session_stats stats;
	lr_session *session;

	start(6, "hrzzdddhz");
	session = serve_huge(-1);
	CHECK_EQ(peer_do(&peer, check_pages, PAGES, 2 * PAGES), 0);
	CHECK_EQ(peer_do(&peer, give_up, 0, 2 * PAGES), 0);
	CHECK_EQ(peer_do(&peer, check_zeros, 0, 2 * PAGES), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 2 * PAGES, 5 * PAGES), 0);
	stats = stats_of(session);
	CHECK_EQ(stats.faults, 6);
	CHECK_EQ(stats.pages_copied, 4);
	CHECK_EQ(stats.pages_zeroed, 2);
	CHECK_EQ(stats.pages_total, 6);
	CHECK_EQ(stats.pages_missing, 1);
	CHECK_EQ(stats.errors, 0);
	lr_session_close(session);
	peer_end(&peer);
}

static void a_fill_completes(void)
{
	lr_session *session;

	start(6, "hrzzdddhz");
	session = serve_huge(-1);
	CHECK_EQ(peer_do(&peer, give_up, 3 * PAGES, 4 * PAGES), 0);
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	CHECK_EQ(stats_of(session).pages_missing, 0);
	lr_session_close(session);
	/* Nobody serves it any more, and nobody needs to. */
	CHECK_EQ(peer_do(&peer, check_pages, 0, 3 * PAGES), 0);
	CHECK_EQ(peer_do(&peer, check_zeros, 3 * PAGES, 4 * PAGES), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 4 * PAGES, 6 * PAGES), 0);
	peer_end(&peer);
}

static void the_next_one_goes_on(void)
{
	lr_session *session;
	int state;

	start(6, "rd");
	state = huge_state();
	session = serve_huge(state);
	CHECK_EQ(peer_do(&peer, check_pages, 0, 2 * PAGES), 0);
	CHECK_EQ(peer_do(&peer, give_up, PAGES, 3 * PAGES), 0);
	lr_session_close(session);
	peer_order(&peer, check_pages, 5 * PAGES, 6 * PAGES);
	session = serve_huge(state);
	CHECK_EQ(peer_result(&peer), 0);
	CHECK_EQ(peer_do(&peer, check_zeros, PAGES, 3 * PAGES), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 3 * PAGES, 6 * PAGES), 0);
	CHECK_EQ(stats_of(session).errors, 0);
	lr_session_close(session);
	close(state);
	peer_end(&peer);
}

/* Killed wherever it is in its fill, again and again. */
static void it_is_killed_while_it_fills(void)
{
	int state;

	start(12, "rd");
	state = huge_state();
	for (int i = 0; i < 6; i++) {
		pid_t pager = fork();

		CHECK(pager >= 0);
		if (pager == 0) {
			lr_session *session = serve_huge(state);

			lr_session_fill(session, NULL);
			for (;;)
				pause();
		}
		/* Something of it comes, and then some way on. */
		CHECK_EQ(peer_do(&peer, check_pages, (uint64_t)i * PAGES, (uint64_t)i * PAGES + 1),
			 0);
		usleep((useconds_t)(500 * i));
		kill(pager, SIGKILL);
		CHECK_EQ(waitpid(pager, NULL, 0), pager);
	}
	lr_session *session = serve_huge(state);

	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	CHECK_EQ(peer_do(&peer, check_pages, 0, 12 * PAGES), 0);
	CHECK_EQ(stats_of(session).errors, 0);
	lr_session_close(session);
	close(state);
	peer_end(&peer);
}

static void a_broken_cluster_is_an_error(void)
{
	struct lr_load_error error;
	lr_session *session = NULL;

	start(3, "r");
	image.file[image_get(image.file + image_entry_offset(&image, 50), 8) + 7] ^= 1;
	image_publish(&image);
	lr_image_close(opened);
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	CHECK_EQ(try_to_serve_as(HUGE, LR_ON_ERROR_HOLD, -1, &session), LR_OK);
	peer_order(&peer, touch_page, 2 * PAGES - 1, 0);
	while (lr_session_get_errors(session, 0, &error, 1) == 0)
		usleep(1000);
	CHECK_EQ(error.cluster, 50);
	CHECK_EQ(error.offset, HUGE);
	CHECK_EQ(error.length, HUGE);
	CHECK(peer_waits(&peer, 50));
	lr_session_close(session);
	session = serve_huge(-1);
	if (!(stats_of(session).features & KERNEL_FEATURE_POISON))
		SKIP("no UFFDIO_POISON before Linux 6.6");
	CHECK_EQ(peer_result(&peer), SIGBUS);
	CHECK_EQ(peer_do(&peer, touch_page, PAGES, 0), SIGBUS);
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 2 * PAGES, 3 * PAGES), 0);
	lr_session_close(session);
	peer_end(&peer);
}

/* Pages of another size than is said would get the wrong ones, or none. */
static void the_size_of_pages_must_be_true(void)
{
	struct peer small;
	lr_session *session = NULL;

	start(2, "d");
	CHECK_EQ(try_to_serve_as(0, LR_ON_ERROR_FENCE, -1, &session), LR_ERR_ARGUMENT);
	CHECK_EQ(try_to_serve_as(4096, LR_ON_ERROR_FENCE, -1, &session), LR_ERR_ARGUMENT);
	CHECK_EQ(try_to_serve_as(1u << 20, LR_ON_ERROR_FENCE, -1, &session), LR_ERR_ARGUMENT);
	peer_end(&peer);
	peer_start(&small, 3 * PAGES, PEER_FEATURES);
	peer = small;
	peer.memory += (HUGE - (uintptr_t)peer.memory % HUGE) % HUGE;
	peer.pages = 2 * PAGES;
	CHECK_EQ(try_to_serve_as(HUGE, LR_ON_ERROR_FENCE, -1, &session), LR_ERR_ARGUMENT);
	peer_end(&small);
}

static const struct check_case cases[] = {
	CHECK_CASE(faults_and_a_balloon),         CHECK_CASE(a_fill_completes),
	CHECK_CASE(the_next_one_goes_on),         CHECK_CASE(it_is_killed_while_it_fills),
	CHECK_CASE(a_broken_cluster_is_an_error), CHECK_CASE(the_size_of_pages_must_be_true),
};
HUGE_MAIN(cases)
