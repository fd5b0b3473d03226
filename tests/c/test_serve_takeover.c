/* Whoever serves a peer may be killed at any moment: the next one goes on from the state, and the
 * peer sees no other byte than it would have. */
#include "check.h"

#include "follow.h"
#include "keep.h"
#include "serve_setting.h"

#define PAGES   4096
#define KILLS   50
#define THREADS 3

/* ---- What the peer does: random accesses, and a note of what each page has to be ---- */

enum content { AS_DUMPED, ZEROS, WRITTEN };

struct striped {
	struct peer *peer;
	uint64_t number;
	const char *wrong;
	uint64_t wrong_page;
};

static uint8_t contents[PAGES];
static _Atomic bool is_over;

static bool is_as_noted(const uint8_t *at, uint64_t page)
{
	const uint8_t *dumped = image.regions[0].bytes + page * PAGE;

	switch (contents[page]) {
	case AS_DUMPED:
		return memcmp(at, dumped, PAGE) == 0;
	case ZEROS:
		return kernel_is_zero(at, PAGE);
	default:
		return at[0] == (uint8_t)page && memcmp(at + 1, dumped + 1, PAGE - 1) == 0;
	}
}

/* Pages are dealt out to threads in runs of 16. */
static void *access_stripe(void *argument)
{
	struct striped *mine = argument;
	uint64_t chance = mine->number + 1;

	while (!atomic_load(&is_over) && !mine->wrong) {
		uint64_t run = image_random(&chance) % (PAGES / 16 / THREADS);
		uint64_t first = (run * THREADS + mine->number) * 16;
		uint64_t page = first + image_random(&chance) % 16;
		uint64_t count = 1 + image_random(&chance) % (first + 16 - page);
		uint8_t *at = mine->peer->memory + page * PAGE;

		switch (image_random(&chance) % 4) {
		case 0: /* zeros from then on, whether it had come or not */
			madvise(at, count * PAGE, MADV_DONTNEED);
			memset(contents + page, ZEROS, count);
			break;
		case 1:
			if (contents[page] == AS_DUMPED) {
				*(volatile uint8_t *)at = (uint8_t)page;
				contents[page] = WRITTEN;
			}
			break;
		default:
			if (!is_as_noted(at, page)) {
				mine->wrong = "while it went on";
				mine->wrong_page = page;
			}
		}
	}
	return NULL;
}

/* The number of a page that is wrong, and 1. */
static int64_t access_all(struct peer *peer, uint64_t seconds, uint64_t unused)
{
	struct striped stripes[THREADS] = {0};
	struct pollfd stop = {.fd = peer->socket, .events = POLLIN};
	pthread_t threads[THREADS];

	(void)seconds;
	(void)unused;
	for (uint64_t i = 0; i < THREADS; i++) {
		stripes[i] = (struct striped){.peer = peer, .number = i};
		CHECK_EQ(pthread_create(&threads[i], NULL, access_stripe, &stripes[i]), 0);
	}
	poll(&stop, 1, -1);
	atomic_store(&is_over, true);
	for (uint64_t i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		if (stripes[i].wrong)
			return (int64_t)stripes[i].wrong_page + 1;
	}
	for (uint64_t page = 0; page < PAGES; page++)
		if (!is_as_noted(peer->memory + page * PAGE, page))
			return (int64_t)page + 1;
	return 0;
}

static int64_t nothing(struct peer *peer, uint64_t a, uint64_t b)
{
	(void)peer;
	(void)a;
	(void)b;
	return 0;
}

/* ---- Who serves ---- */

static pid_t start_server(const struct peer *peer, int state, bool with_fill)
{
	int ready[2];
	char byte;
	pid_t pid;

	CHECK_CALL(pipe(ready));
	pid = (pid_t)CHECK_CALL(fork());
	if (pid == 0) {
		lr_session *session;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(ready[0]);
		session = serve(peer, state);
		if (with_fill)
			CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
		CHECK_EQ(write(ready[1], "", 1), 1);
		for (;;)
			pause();
	}
	close(ready[1]);
	CHECK_EQ(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	return pid;
}

static void kill_at_random_moments(bool with_fill, uint64_t seed)
{
	struct peer peer;
	pid_t server;
	int state, status;

	make_image(4096, PAGES, "ddddrdddz");
	state = new_state();
	peer_start(&peer, PAGES, PEER_FEATURES);
	peer_order(&peer, access_all, 0, 0);
	for (int i = 0; i < KILLS; i++) {
		server = start_server(&peer, state, with_fill);
		usleep((useconds_t)(image_random(&seed) % 8000));
		CHECK_CALL(kill(server, SIGKILL));
		/* Not waited for before the next one begins: that has to mind. */
		if (i % 2)
			CHECK_EQ(waitpid(server, &status, 0), server);
	}
	server = start_server(&peer, state, with_fill);
	peer_order(&peer, nothing, 0, 0);
	CHECK_EQ(peer_result(&peer), 0);
	CHECK_EQ(peer_result(&peer), 0);
	/* It has a copy of the peer's connection. */
	CHECK_CALL(kill(server, SIGKILL));
	CHECK_EQ(waitpid(server, &status, 0), server);
	peer_end(&peer);
}

static void survives_being_killed_at_any_moment(void)
{
	kill_at_random_moments(false, 5);
}

static void survives_that_during_a_fill(void)
{
	kill_at_random_moments(true, 6);
}

/* ---- The moments that random ones may miss ---- */

/* Do what a server does that reads what there is into the journal, and dies. */
static void read_and_die(const struct peer *peer, int state)
{
	pid_t pid;
	int status;

	pid = (pid_t)CHECK_CALL(fork());
	if (pid == 0) {
		lr_session *session;
		struct lr_session_stats stats;
		struct pollfd message = {.fd = peer->uffd, .events = POLLIN};

		session = serve(peer, state);
		/* Its threads must not read: they are gone, the rest stays. */
		lr_pager_stop(&session->pager);
		peer_order((struct peer *)peer, give_up, 10, 20);
		CHECK_EQ(poll(&message, 1, -1), 1);
		CHECK(lr_uffd_read_raw(&session->target.uffd, session->kept.journal,
				       LR_UFFD_MESSAGES_MAX)
		      > 0);
		(void)stats;
		kill(getpid(), SIGKILL);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status));
}

static void loses_nothing_that_was_read(void)
{
	lr_session *session;
	struct peer peer;
	int state;

	make_image(65536, PAGES, "d");
	state = new_state();
	peer_start(&peer, PAGES, PEER_FEATURES);
	read_and_die(&peer, state);
	session = serve(&peer, state);
	CHECK_EQ(peer_result(&peer), 0); /* its madvise has returned */
	CHECK_EQ(peer_do(&peer, check_zeros, 10, 20), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 0, 10), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 20, PAGES), 0);
	lr_session_close(session);
	peer_end(&peer);
}

static int64_t move_away(struct peer *peer, uint64_t pages, uint64_t unused)
{
	uint8_t *room = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *moved = mremap(peer->memory, pages * PAGE, pages * PAGE,
				MREMAP_MAYMOVE | MREMAP_FIXED, room);

	(void)unused;
	if (moved == MAP_FAILED)
		return errno;
	peer->memory = moved;
	return 0;
}

/* Where a move was done in the table, and its message is still in the journal, it is not done once
 * more: what is at the new place would count as unmapped. */
static void moves_once(void)
{
	struct peer peer;
	lr_session *session, *dead;
	struct lr_piece piece;
	struct lr_uffd_message messages[LR_UFFD_MESSAGES_MAX];
	struct pollfd ready = {.events = POLLIN};
	int state;

	make_image(65536, PAGES, "d");
	state = new_state();
	peer_start(&peer, PAGES, PEER_FEATURES);
	session = serve(&peer, state);
	lr_pager_stop(&session->pager);
	peer_order(&peer, move_away, PAGES, 0);
	ready.fd = peer.uffd;
	/* The first of a move's two messages, as a pager does it. */
	CHECK_EQ(poll(&ready, 1, -1), 1);
	CHECK_EQ(lr_keep_read(&session->target, messages, LR_UFFD_MESSAGES_MAX), 1);
	CHECK_EQ(messages[0].kind, LR_UFFD_REMAP);
	lr_follow(&session->target, &messages[0]);
	lr_keep_told(&session->target);
	/* As if it had died here. */
	lr_kept_close(&session->kept);
	dead = session;
	session = serve(&peer, state);
	CHECK_EQ(peer_result(&peer), 0);
	CHECK_EQ(stats_of(session).pages_total, PAGES);
	CHECK(lr_target_next(&session->target, 0, &piece));
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	/* (Looked at by the one that writes there, for ThreadSanitizer.) */
	lr_pager_stop(&session->pager);
	CHECK_EQ(session->target.unmapped_count, 0);
	lr_session_close(session);
	lr_session_close(dead);
	peer_end(&peer);
}

/* Pages 0..15 are given up, then they make room for others (from where these lie, as the second
 * message tells), and the messages are still in the journal though they were worked on: what is
 * there now was not given up. */
static int64_t give_up_and_replace(struct peer *self, uint64_t a, uint64_t b)
{
	(void)a;
	(void)b;
	CHECK_EQ(give_up(self, 0, 16), 0);
	return mremap(self->memory + 32 * PAGE, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		      self->memory)
			       == self->memory
		       ? 0
		       : errno;
}

static int64_t check_replaced(struct peer *self, uint64_t a, uint64_t b)
{
	(void)a;
	(void)b;
	return memcmp(self->memory, image.regions[0].bytes + 32 * PAGE, 16 * PAGE) != 0;
}

static void gives_up_what_was_there_then(void)
{
	uint8_t journal[3 * LR_UFFD_MESSAGE_BYTES] = {0};
	struct lr_uffd_message messages[LR_UFFD_MESSAGES_MAX];
	lr_session *session, *dead;
	struct pollfd ready = {.events = POLLIN};
	struct peer peer;
	int state;

	make_image(65536, PAGES, "d");
	state = new_state();
	peer_start(&peer, PAGES, PEER_FEATURES);
	dead = serve(&peer, state);
	lr_pager_stop(&dead->pager);
	peer_order(&peer, give_up_and_replace, 0, 0);
	ready.fd = peer.uffd;
	/* REMOVE, UNMAP of what makes room or REMAP, in whatever order these come. */
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(poll(&ready, 1, -1), 1);
		CHECK_EQ(lr_keep_read(&dead->target, messages, 1), 1);
		memcpy(journal + i * LR_UFFD_MESSAGE_BYTES, dead->kept.journal,
		       LR_UFFD_MESSAGE_BYTES);
		lr_follow(&dead->target, &messages[0]);
		if (messages[0].kind != LR_UFFD_REMOVE)
			lr_keep_told(&dead->target);
	}
	/* As if these had been read at once. */
	memcpy(dead->kept.journal, journal, sizeof(journal));
	lr_kept_close(&dead->kept);
	session = serve(&peer, state);
	CHECK_EQ(peer_result(&peer), 0);
	CHECK_EQ(peer_do(&peer, check_replaced, 0, 0), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 48, PAGES), 0);
	lr_session_close(session);
	lr_session_close(dead);
	peer_end(&peer);
}

/* Two that serve at once would break the rule of one installer. */
static void only_one_serves(void)
{
	struct lr_peer_range range;
	lr_session *first, *second = NULL;
	struct peer peer;
	int state;

	make_image(65536, PAGES, "d");
	state = new_state();
	peer_start(&peer, PAGES, PEER_FEATURES);
	first = serve(&peer, state);
	range = whole_range(&peer);
	CHECK_EQ(try_to_serve(&peer, &range, 1, state, &second), LR_ERR_BUSY);
	lr_session_close(first);
	CHECK_EQ(try_to_serve(&peer, &range, 1, state, &second), LR_OK);
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	lr_session_close(second);
	peer_end(&peer);
}

/* What was unregistered when all had come is nobody's affair any more. */
static void knows_what_was_let_go(void)
{
	lr_session *session;
	struct peer peer;
	int state;

	make_image(65536, PAGES, "dz");
	state = new_state();
	peer_start(&peer, PAGES, PEER_FEATURES);
	session = serve(&peer, state);
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	CHECK_EQ(stats_of(session).pages_total, PAGES);
	CHECK_EQ(stats_of(session).pages_missing, 0);
	lr_session_close(session);
	session = serve(&peer, state);
	CHECK_EQ(stats_of(session).regions_attached, 0);
	CHECK_EQ(stats_of(session).pages_total, PAGES);
	CHECK_EQ(stats_of(session).pages_missing, 0);
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	lr_session_close(session);
	peer_end(&peer);
}

static const struct check_case cases[] = {
	CHECK_CASE_LIMIT(survives_being_killed_at_any_moment, 60),
	CHECK_CASE_LIMIT(survives_that_during_a_fill, 60),
	CHECK_CASE(loses_nothing_that_was_read),
	CHECK_CASE(moves_once),
	CHECK_CASE(gives_up_what_was_there_then),
	CHECK_CASE(only_one_serves),
	CHECK_CASE(knows_what_was_let_go),
};
CHECK_MAIN(cases)
