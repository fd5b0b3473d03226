/* What cannot be loaded for a peer: fenced, or held until it can be. Never zeros. */
#include "check.h"

#include "serve_setting.h"

#define PAGES   64
#define DAMAGED 16 /* the first page of the cluster that is */

static struct peer peer;
static int event_fd;
static uint64_t payload;

static void set_damaged(bool is_damaged)
{
	uint8_t byte;

	CHECK_EQ(pread(image.fd, &byte, 1, (off_t)payload), 1);
	byte = is_damaged ? (uint8_t)~image.file[payload] : image.file[payload];
	CHECK_EQ(pwrite(image.fd, &byte, 1, (off_t)payload), 1);
}

static lr_session *set_up(uint32_t on_error)
{
	struct lr_cluster_info info;
	struct lr_peer_range range;
	struct lr_serve_options options = {.state = -1, .on_error = on_error};
	lr_session *session;
	lr_reader *reader;

	make_image(16384, PAGES, "d");
	CHECK_EQ(lr_reader_open(opened, &reader), LR_OK);
	CHECK_EQ(lr_reader_get_cluster(reader, DAMAGED / 4, &info, NULL), LR_OK);
	lr_reader_close(reader);
	payload = info.payload_offset;
	set_damaged(true);
	peer_start(&peer, PAGES, PEER_FEATURES);
	range = whole_range(&peer);
	event_fd = (int)CHECK_CALL(eventfd(0, EFD_CLOEXEC));
	options.uffd = peer.uffd;
	options.event_fd = event_fd;
	options.ranges = &range;
	options.range_count = 1;
	CHECK_EQ(lr_session_serve(opened, &options, &session, NULL), LR_OK);
	return session;
}

static void wait_for_event(void)
{
	uint64_t count;

	CHECK_EQ(read(event_fd, &count, sizeof(count)), sizeof(count));
}

static void fences(void)
{
	lr_session *session = set_up(LR_ON_ERROR_FENCE);
	struct lr_load_error error;

	if (!(session->target.uffd.features & LR_UFFD_FEATURE_POISON))
		SKIP("this kernel has no UFFDIO_POISON (Linux 6.6)");
	CHECK_EQ(peer_do(&peer, touch_page, DAMAGED + 1, 0), SIGBUS);
	wait_for_event();
	CHECK_EQ(lr_session_get_errors(session, 0, &error, 1), 1);
	CHECK_EQ(error.code, LR_ERR_CHECKSUM);
	CHECK_EQ(error.fenced, 1);
	CHECK_EQ(peer_do(&peer, check_pages, 0, DAMAGED), 0);
	CHECK_EQ(peer_do(&peer, check_pages, DAMAGED + 4, PAGES), 0);
	/* It stays so without us, and until it can be loaded. */
	lr_session_close(session);
	CHECK_EQ(peer_do(&peer, touch_page, DAMAGED, 0), SIGBUS);
	peer_end(&peer);
}

/* Before Linux 6.6 nothing can be done with another process's memory to that end: it waits. */
static void never_gives_zeros_where_it_cannot_fence(void)
{
	lr_session *session = set_up(LR_ON_ERROR_FENCE);
	struct lr_load_error error;

	lr_pager_stop(&session->pager);
	session->target.uffd.features &= ~LR_UFFD_FEATURE_POISON;
	CHECK_EQ(lr_session_start(session, NULL), LR_OK);
	peer_order(&peer, check_pages, DAMAGED, PAGES);
	wait_for_event();
	CHECK(peer_waits(&peer, 50));
	CHECK_EQ(lr_session_get_errors(session, 0, &error, 1), 1);
	CHECK_EQ(error.fenced, 0);
	set_damaged(false);
	CHECK_EQ(lr_session_retry(session), LR_OK);
	CHECK_EQ(peer_result(&peer), 0);
	lr_session_close(session);
	peer_end(&peer);
}

static void holds_until_it_can_be_loaded(void)
{
	lr_session *session = set_up(LR_ON_ERROR_HOLD);
	struct lr_load_error error;

	peer_order(&peer, check_pages, DAMAGED, PAGES);
	wait_for_event();
	CHECK(peer_waits(&peer, 50));
	CHECK_EQ(lr_session_get_errors(session, 0, &error, 1), 1);
	CHECK_EQ(error.code, LR_ERR_CHECKSUM);
	CHECK_EQ(error.fenced, 0);
	CHECK_EQ(error.offset, DAMAGED * PAGE);
	/* Tried again it fails again, and says so again. */
	CHECK_EQ(lr_session_retry(session), LR_OK);
	wait_for_event();
	CHECK_EQ(stats_of(session).errors, 2);
	CHECK(peer_waits(&peer, 50));
	set_damaged(false);
	CHECK_EQ(lr_session_retry(session), LR_OK);
	CHECK_EQ(peer_result(&peer), 0);
	lr_session_close(session);
	peer_end(&peer);
}

/* A fill goes past it, and does not let go of the memory. */
static void holds_what_a_fill_could_not_load(void)
{
	lr_session *session = set_up(LR_ON_ERROR_HOLD);

	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	wait_for_event();
	CHECK_EQ(stats_of(session).errors, 1);
	CHECK_EQ(stats_of(session).pages_missing, 4);
	CHECK_EQ(peer_do(&peer, check_pages, 0, DAMAGED), 0);
	peer_order(&peer, check_pages, DAMAGED, PAGES);
	CHECK(peer_waits(&peer, 50));
	/* Whoever waits has not been told of for good: the next who serves hears of him. */
	lr_session_close(session);
	set_damaged(false);
	session = serve(&peer, -1);
	CHECK_EQ(peer_result(&peer), 0);
	lr_session_close(session);
	peer_end(&peer);
}

static const struct check_case cases[] = {
	CHECK_CASE(fences),
	CHECK_CASE(never_gives_zeros_where_it_cannot_fence),
	CHECK_CASE(holds_until_it_can_be_loaded),
	CHECK_CASE(holds_what_a_fill_could_not_load),
};
CHECK_MAIN(cases)
