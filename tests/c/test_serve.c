/* Serving another process's userfaultfd. */
#include "check.h"

#include "cgroup.h"
#include "serve_setting.h"

#define PAGES 96

static struct cgroup limited;

static int64_t enter_limited(struct peer *peer, uint64_t a, uint64_t b)
{
	(void)peer;
	(void)a;
	(void)b;
	cgroup_enter(&limited, 1);
	return 0;
}

static int64_t punch(struct peer *peer, uint64_t first, uint64_t end)
{
	return madvise(peer->memory + first * PAGE, (end - first) * PAGE, MADV_REMOVE) < 0 ? errno
											   : 0;
}

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

/* Bytes of the region at `offset` are at `page` there. */
static int64_t check_moved(struct peer *peer, uint64_t page, uint64_t offset)
{
	return memcmp(peer->memory + page * PAGE, image.regions[0].bytes + offset, 20 * PAGE) != 0;
}

/* Firecracker maps parts of one memory file at several addresses, in any order. */
static void serves_pieces(void)
{
	make_image(65536, PAGES, "drz");
	for (int with_fill = 0; with_fill < 2; with_fill++) {
		struct lr_peer_range ranges[3];
		lr_session *session = NULL;
		struct peer peer;

		peer_start(&peer, PAGES, PEER_FEATURES);
		for (unsigned i = 0; i < 3; i++)
			ranges[i] = (struct lr_peer_range){
				.address = (uintptr_t)peer.memory + (2 - i) * 20 * PAGE,
				.bytes = 20 * PAGE,
				.offset = i * 30 * PAGE,
			};
		CHECK_EQ(try_to_serve(&peer, ranges, 3, -1, &session), LR_OK);
		CHECK_EQ(stats_of(session).pages_total, 60);
		CHECK_EQ(stats_of(session).pages_missing, 60);
		if (with_fill) {
			CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
			CHECK_EQ(lr_session_wait(session, -1), LR_OK);
			/* Five of six; but two workers may come to decode the same one. */
			CHECK(stats_of(session).clusters_decoded >= 5);
			CHECK(stats_of(session).clusters_decoded <= 5 + 1);
			lr_session_close(session);
			close(peer.uffd);
			peer.uffd = -1;
		}
		for (unsigned i = 0; i < 3; i++)
			CHECK_EQ(peer_do(&peer, check_moved, (2 - i) * 20, i * 30 * PAGE), 0);
		if (!with_fill)
			lr_session_close(session);
		peer_end(&peer);
	}
}

/* Of several regions some, and a last page that is not whole. */
static void serves_several_regions(void)
{
	struct lr_peer_range ranges[2];
	lr_session *session = NULL;
	struct peer peer;

	image_init(&image, PAGE, 16384);
	image_add(&image, "one", 10 * PAGE, "d");
	image_add(&image, "two", 20 * PAGE - 100, "r");
	image_add(&image, "three", 5 * PAGE + 1, "dz");
	image_build(&image);
	image_publish(&image);
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	peer_start(&peer, PAGES, PEER_FEATURES);
	ranges[0] = (struct lr_peer_range){
		.address = (uintptr_t)peer.memory + 40 * PAGE, .bytes = 6 * PAGE, .region = 2};
	ranges[1] = (struct lr_peer_range){
		.address = (uintptr_t)peer.memory, .bytes = 10 * PAGE, .region = 0};
	CHECK_EQ(try_to_serve(&peer, ranges, 2, -1, &session), LR_OK);
	CHECK_EQ(stats_of(session).pages_total, 16);
	CHECK_EQ(stats_of(session).regions_attached, 2);
	CHECK_EQ(peer_do(&peer, check_pages, 0, 10), 0);
	CHECK_EQ(peer_do(&peer, check_zeros, 45, 45), 0);
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	CHECK_EQ(stats_of(session).pages_missing, 0);
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

/* Memory of a file in memory, shared, as QEMU has it. */
static void serves_shared_memory(void)
{
	int file = (int)CHECK_CALL(memfd_create("guest", MFD_CLOEXEC));
	const uint8_t *view;
	lr_session *session;
	struct peer peer;

	make_image(65536, PAGES, "ddzrh");
	CHECK_CALL(ftruncate(file, PAGES * PAGE));
	peer_start_at(&peer, PAGES, PEER_FEATURES, file);
	session = serve(&peer, -1);
	CHECK_EQ(peer_do(&peer, check_pages, 30, 40), 0);
	CHECK_EQ(peer_do(&peer, touch_page, 2, 1), 0);
	CHECK_EQ(peer_do(&peer, punch, 0, 5), 0);
	CHECK_EQ(peer_do(&peer, check_zeros, 0, 5), 0);
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	CHECK_EQ(stats_of(session).pages_missing, 0);
	CHECK_EQ(stats_of(session).errors, 0);
	lr_session_close(session);
	close(peer.uffd);
	peer.uffd = -1;
	CHECK_EQ(peer_do(&peer, check_zeros, 0, 5), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 5, PAGES), 0);
	view = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, file, 0);
	CHECK(view != MAP_FAILED);
	CHECK_MEM(view + 5 * PAGE, image.regions[0].bytes + 5 * PAGE, (PAGES - 5) * PAGE);
	peer_end(&peer);
}

/* A child of who serves has nothing of it, nor does it hold anything up. */
static void children_have_nothing_of_it(void)
{
	int go_on[2], state, status;
	lr_session *session;
	struct peer peer;
	pid_t child;
	char byte;

	make_image(4096, PAGES, "d");
	state = new_state();
	peer_start(&peer, PAGES, PEER_FEATURES);
	CHECK_CALL(pipe(go_on));
	session = serve(&peer, state);
	CHECK_EQ(peer_do(&peer, check_pages, 0, 10), 0);
	child = (pid_t)CHECK_CALL(fork());
	if (child == 0) {
		struct lr_session_stats stats;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		lr_session_get_stats(session, &stats);
		CHECK_EQ(stats.faults, 0);
		CHECK_EQ(lr_session_fill(session, NULL), LR_ERR_CLOSED);
		lr_session_close(session);
		close(peer.socket);
		close(go_on[1]);
		_exit(read(go_on[0], &byte, 1) == 0 ? 0 : 1);
	}
	CHECK_EQ(peer_do(&peer, check_pages, 10, 50), 0);
	lr_session_close(session);
	session = serve(&peer, state);
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	close(go_on[1]);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	lr_session_close(session);
	peer_end(&peer);
}

/* What is for memory of one's own is refused. */
static void is_not_for_own_memory(void)
{
	lr_session *session, *own;
	struct peer peer;
	void *memory;

	make_image(4096, PAGES, "d");
	peer_start(&peer, PAGES, PEER_FEATURES);
	session = serve(&peer, -1);
	CHECK_EQ(lr_session_map(session, 0, &memory, NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_attach(session, 0, kernel_map(PAGES), NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_suspend(session, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_resume(session, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_detach(session, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_open(opened, NULL, &own, NULL), LR_OK);
	CHECK_EQ(lr_session_retry(own), LR_ERR_ARGUMENT);
	lr_session_close(own);
	lr_session_close(session);
	peer_end(&peer);
}

/* A guest that lives in a small cgroup is not killed by a fill that has all the machine. */
static void fills_within_the_peers_limit(void)
{
	struct lr_session_stats stats;
	lr_session *session;
	struct peer peer;
	int status;

#if CHECK_SANITIZER_FACTOR != 1
	SKIP("a sanitizer's own memory counts against the limit");
#endif
	cgroup_make(&limited, 48u << 20);
	make_image(65536, 16384, "d");
	peer_start(&peer, 16384, PEER_FEATURES);
	CHECK_EQ(peer_do(&peer, enter_limited, 0, 0), 0);
	session = serve(&peer, -1);
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_ERR_NOMEM);
	stats = stats_of(session);
	CHECK_EQ(stats.is_gone, 0);
	CHECK(stats.pages_copied > 1000);
	CHECK(stats.pages_missing > 4000);
	CHECK_EQ(waitpid(peer.pid, &status, WNOHANG), 0);
	/* And it is served on. */
	CHECK_EQ(peer_do(&peer, touch_page, 16383, 0), 0);
	lr_session_close(session);
	peer_end(&peer);
	cgroup_remove(&limited);
}

static const struct check_case cases[] = {
	CHECK_CASE(serves_another_process),
	CHECK_CASE(serves_pieces),
	CHECK_CASE(gives_zeros_for_what_was_given_up),
	CHECK_CASE(fills_and_lets_go),
	CHECK_CASE(goes_on_from_a_state),
	CHECK_CASE(serves_several_regions),
	CHECK_CASE(serves_shared_memory),
	CHECK_CASE(children_have_nothing_of_it),
	CHECK_CASE(is_not_for_own_memory),
	CHECK_CASE(fills_within_the_peers_limit),
};
CHECK_MAIN(cases)
