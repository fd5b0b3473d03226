/* Peers that do what they should not, or end: whoever serves them goes on, does not spin, and can
 * stop at any moment. */
#include "check.h"

#include <time.h>

#include "serve_setting.h"

#define PAGES 2048

static struct peer peer;

static void set_up(uint64_t features)
{
	make_image(16384, PAGES, "ddzr");
	peer_start(&peer, PAGES, features);
}

static lr_session *serve_with(int event_fd, uint32_t on_error)
{
	struct lr_peer_range range = whole_range(&peer);
	struct lr_serve_options options = {
		.uffd = peer.uffd,
		.state = -1,
		.pid = peer.pid,
		.event_fd = event_fd,
		.on_error = on_error,
		.ranges = &range,
		.range_count = 1,
	};
	lr_session *session = NULL;

	CHECK_EQ(lr_session_serve(opened, &options, &session, NULL), LR_OK);
	return session;
}

static int64_t clock_of(clockid_t clock)
{
	struct timespec now;

	CHECK_CALL(clock_gettime(clock, &now));
	return now.tv_sec * 1000000000 + now.tv_nsec;
}

/* How much the pager's thread takes of a processor, in percent of what one gets that wants all:
 * others may be busy here. */
static unsigned use_of_processor(lr_session *session, unsigned milliseconds)
{
	int64_t begun, used, own = clock_of(CLOCK_THREAD_CPUTIME_ID), end;
	clockid_t clock;

	CHECK_EQ(pthread_getcpuclockid(session->pager.thread, &clock), 0);
	begun = clock_of(clock);
	end = own + milliseconds * 1000000ll;
	while (clock_of(CLOCK_THREAD_CPUTIME_ID) < end)
		continue;
	used = clock_of(clock) - begun;
	return (unsigned)(used * 100 / (clock_of(CLOCK_THREAD_CPUTIME_ID) - own));
}

/* Whether it sleeps in the end: it may have something to do at first. */
static bool comes_to_rest(lr_session *session, unsigned limit, unsigned milliseconds)
{
	for (int tries = 0; tries < 5; tries++)
		if (use_of_processor(session, milliseconds) < limit)
			return true;
	return false;
}

/* ---- What these peers do ---- */

static void *make_it_block(void *argument)
{
	const struct peer *self = argument;

	for (;;)
		fcntl(self->uffd, F_SETFL, 0);
	return NULL;
}

static void *take_messages(void *argument)
{
	const struct peer *self = argument;
	struct uffd_msg message;

	for (;;)
		if (read(self->uffd, &message, sizeof(message)) < 0)
			sched_yield();
	return NULL;
}

static void *touch_all(void *argument)
{
	const struct peer *self = argument;

	for (size_t page = 0; page < self->pages; page++)
		(void)*(volatile uint8_t *)(self->memory + page * PAGE);
	return NULL;
}

static int64_t start(struct peer *self, uint64_t function, uint64_t unused)
{
	void *(*run)(void *) = (void *(*)(void *))(uintptr_t)function;
	pthread_t thread;

	(void)unused;
	return pthread_create(&thread, NULL, run, self);
}

static int64_t close_uffd(struct peer *self, uint64_t a, uint64_t b)
{
	(void)a;
	(void)b;
	return close(self->uffd);
}

static int64_t unregister(struct peer *self, uint64_t first, uint64_t end)
{
	return kernel_unregister(self->uffd, self->memory + first * PAGE, end - first);
}

static void start_there(void *(*run)(void *))
{
	CHECK_EQ(peer_do(&peer, start, (uintptr_t)run, 0), 0);
}

/* ---- */

static void makes_reading_block(void)
{
	lr_session *session;

	set_up(PEER_FEATURES);
	session = serve_with(-1, LR_ON_ERROR_FENCE);
	start_there(make_it_block);
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES / 2), 0);
	CHECK(comes_to_rest(session, 30, 200));
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	lr_session_close(session);
	peer_kill(&peer);
}

static void takes_its_own_messages(void)
{
	lr_session *session;

	set_up(PEER_FEATURES);
	session = serve_with(-1, LR_ON_ERROR_FENCE);
	start_there(take_messages);
	start_there(touch_all);
	usleep(50000);
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	CHECK(comes_to_rest(session, 50, 100));
	lr_session_close(session);
	peer_kill(&peer);
}

/* Kernels before 6.10 cannot be told at each read not to wait: there a peer can have the pager wait
 * for good, which is seen when it is to stop. */
static void has_the_pager_wait_for_good(bool with_fill)
{
	lr_session *session;

#if defined(__SANITIZE_ADDRESS__)
	SKIP("AddressSanitizer takes the stack of a thread that was cancelled for overwritten");
#endif
	set_up(PEER_FEATURES);
	session = serve_with(-1, LR_ON_ERROR_FENCE);
	start_there(make_it_block);
	lr_pager_stop(&session->pager);
	session->target.uffd.reads_no_wait = false;
	/* What a peer has to be lucky for: that this is undone again before each read. */
	session->target.uffd.is_adopted = false;
	CHECK_EQ(lr_session_start(session, NULL), LR_OK);
	CHECK_EQ(peer_do(&peer, check_pages, 0, 10), 0);
	usleep(50000);
	if (with_fill)
		CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	lr_session_close(session);
	peer_kill(&peer);
}

static void has_an_old_kernels_pager_wait(void)
{
	has_the_pager_wait_for_good(false);
}

static void has_it_wait_during_a_fill(void)
{
	has_the_pager_wait_for_good(true);
}

static void closes_its_own_copy(void)
{
	lr_session *session;

	set_up(PEER_FEATURES);
	session = serve_with(-1, LR_ON_ERROR_FENCE);
	CHECK_EQ(peer_do(&peer, close_uffd, 0, 0), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	lr_session_close(session);
	peer_end(&peer);
}

/* Without messages of it: what is installed there is refused, and that is all. */
static void unregisters_and_unmaps_untold(void)
{
	lr_session *session;

	set_up(0);
	session = serve_with(-1, LR_ON_ERROR_FENCE);
	CHECK_EQ(peer_do(&peer, check_pages, 0, 100), 0);
	CHECK_EQ(peer_do(&peer, unregister, 200, 300), 0);
	CHECK_EQ(peer_do(&peer, unmap, 400, 1000), 0);
	CHECK_EQ(peer_do(&peer, check_zeros, 200, 300), 0);
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	CHECK_EQ(stats_of(session).errors, 0);
	CHECK_EQ(peer_do(&peer, check_pages, 0, 200), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 300, 400), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 1000, PAGES), 0);
	lr_session_close(session);
	peer_end(&peer);
}

static void ends_at_any_moment(void)
{
	uint64_t chance = 3;

	make_image(16384, PAGES, "ddzr");
	for (int i = 0; i < 20; i++) {
		int event_fd = (int)CHECK_CALL(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
		lr_session *session;
		int waited;

		peer_start(&peer, PAGES, PEER_FEATURES);
		session = serve_with(event_fd, LR_ON_ERROR_FENCE);
		start_there(touch_all);
		if (i % 2)
			CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
		usleep((useconds_t)(image_random(&chance) % 5000));
		peer_kill(&peer);
		if (i % 4 == 1) {
			waited = lr_session_wait(session, -1);
			CHECK(waited == LR_OK || waited == LR_ERR_NOMEM);
			CHECK_EQ(waited == LR_ERR_NOMEM, stats_of(session).is_gone);
		}
		CHECK(comes_to_rest(session, 50, 20));
		lr_session_close(session);
		close(event_fd);
	}
}

/* It is told of: by the statistics, and by the eventfd. */
static void is_noted_when_it_ended(void)
{
	int event_fd = (int)CHECK_CALL(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	uint64_t count, done;
	lr_session *session;

	set_up(PEER_FEATURES);
	session = serve_with(event_fd, LR_ON_ERROR_FENCE);
	CHECK_EQ(stats_of(session).is_gone, 0);
	peer_kill(&peer);
	CHECK_ERRNO(read(event_fd, &count, sizeof(count)), EAGAIN);
	CHECK_EQ(lr_session_populate(session, 0, 0, PAGE, -1, &done, NULL), LR_ERR_GONE);
	CHECK_EQ(stats_of(session).is_gone, 1);
	CHECK_EQ(read(event_fd, &count, sizeof(count)), sizeof(count));
	CHECK_EQ(stats_of(session).errors, 0);
	lr_session_close(session);
}

static const struct check_case cases[] = {
	CHECK_CASE(makes_reading_block),
	CHECK_CASE(takes_its_own_messages),
	CHECK_CASE(has_an_old_kernels_pager_wait),
	CHECK_CASE(has_it_wait_during_a_fill),
	CHECK_CASE(closes_its_own_copy),
	CHECK_CASE(unregisters_and_unmaps_untold),
	CHECK_CASE(ends_at_any_moment),
	CHECK_CASE(is_noted_when_it_ended),
};
CHECK_MAIN(cases)
