/* Whole processes: memory that is mapped by and by, what is in no range, and all that threads may
 * do with it while they fork. */
#include "check.h"

#include <sched.h>

#include "children.h"
#include "follow.h"
#include "install.h"
#include "keep.h"
#include "together.h"
#include "tree_setting.h"

#include "tree_storm.h"

static struct tree tree;
static struct peer peer;

static void tear_down(void)
{
	close(peer.socket);
	CHECK_CHILD(peer.pid);
	tree_stop(&tree);
}

/* ---- Memory that is mapped by and by ---- */

#define PAGES 64

/* Where nothing is mapped, nor will be by the kernel itself: far below what it has mapped last. */
static uint8_t *place;

static void find_place(void)
{
	size_t bytes = 1u << 30;
	uint8_t *found =
		mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(found != MAP_FAILED);
	CHECK_CALL(munmap(found, bytes));
	place = found;
}

/* A peer that has a userfaultfd, and none of the memory that it is about to have. */
static lr_session *begin_early(int state, int event_fd, uint32_t granularity)
{
	struct lr_peer_range range = {.bytes = PAGES * PAGE};
	struct lr_serve_options options = {
		.event_fd = event_fd,
		.state = state,
		.granularity = granularity,
		.flags = TREE_FLAGS,
		.ranges = &range,
		.range_count = 1,
	};
	lr_session *session = NULL;

	tree_need_forks();
	find_place();
	range.address = (uintptr_t)place;
	peer_start(&peer, 1, TREE_FEATURES);
	options.uffd = peer.uffd;
	CHECK_EQ(lr_session_serve(opened, &options, &session, NULL), LR_OK);
	return session;
}

static int64_t map_part(struct peer *self, uint64_t first, uint64_t end)
{
	self->memory = place;
	self->pages = PAGES;
	if (mmap(place + first * PAGE, (end - first) * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0)
	    == MAP_FAILED)
		return errno;
	return kernel_register(self->uffd, place + first * PAGE, end - first, NULL);
}

static int64_t check_there(struct peer *self, uint64_t first, uint64_t end)
{
	return check_pages(self, first, end);
}

/* Clusters that are there in part, runs of them that are not, and a peer that ends before all is.
 */
static void what_is_not_mapped_yet_is_not_given_up(void)
{
	make_image(65536, PAGES, "ddrdz");
	for (uint32_t granularity = 0; granularity < 2; granularity++) {
		int state = new_state();
		lr_session *session = begin_early(state, -1, granularity);
		uint64_t done;

		/* In the middle of a cluster, at its end, and at the next one's beginning. */
		CHECK_EQ(peer_do(&peer, map_part, 5, 7), 0);
		CHECK_EQ(peer_do(&peer, check_there, 6, 7), 0);
		CHECK_EQ(peer_do(&peer, map_part, 12, 20), 0);
		CHECK_EQ(peer_do(&peer, check_there, 15, 18), 0);
		CHECK_EQ(lr_session_fill(session, NULL), LR_ERR_BUSY);
		CHECK_EQ(lr_session_populate(session, 0, 0, PAGE, -1, &done, NULL), LR_ERR_BUSY);
		CHECK_EQ(stats_of(session).pages_missing, PAGES - 4);
		/* Who goes on knows that it is still so. */
		lr_session_close(session);
		CHECK_EQ(tree_try(peer.uffd, state, -1, NULL, 0, &session), LR_OK);
		CHECK_EQ(lr_session_fill(session, NULL), LR_ERR_BUSY);
		CHECK_EQ(peer_do(&peer, map_part, 0, 5), 0);
		CHECK_EQ(peer_do(&peer, check_there, 0, 1), 0);
		CHECK_EQ(peer_do(&peer, map_part, 7, 12), 0);
		CHECK_EQ(peer_do(&peer, map_part, 20, PAGES), 0);
		CHECK_EQ(stats_of(session).pages_missing, PAGES - 5);
		CHECK_EQ(lr_session_settle(session), LR_OK);
		/* And that it is not, later. */
		lr_session_close(session);
		CHECK_EQ(tree_try(peer.uffd, state, -1, NULL, 0, &session), LR_OK);
		if (granularity)
			CHECK_EQ(peer_do(&peer, check_there, 0, PAGES), 0);
		CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
		CHECK_EQ(lr_session_wait(session, -1), LR_OK);
		CHECK_EQ(stats_of(session).errors, 0);
		CHECK_EQ(stats_of(session).pages_missing, 0);
		CHECK_EQ(peer_do(&peer, check_there, 0, PAGES), 0);
		lr_session_close(session);
		close(state);
		peer_end(&peer);
	}
}

/* Also where it was there when it was asked for, and is not when it would be put there. */
static void what_is_not_there_counts_once_all_is_mapped(void)
{
	struct lr_installed installed;
	lr_session *session;

	make_image(65536, PAGES, "d");
	session = begin_early(new_state(), -1, 0);
	CHECK_EQ(peer_do(&peer, map_part, 3, 4), 0);
	CHECK_EQ(lr_install(&session->target, LR_INSTALL_COPY, (uintptr_t)place + 3 * PAGE,
			    image.regions[0].bytes + 3 * PAGE, 2 * PAGE, &installed),
		 LR_OK);
	CHECK_EQ(installed.pages, 1);
	CHECK_EQ(installed.bytes, PAGE);
	CHECK_EQ(lr_session_settle(session), LR_OK);
	CHECK_EQ(lr_install(&session->target, LR_INSTALL_COPY, (uintptr_t)place + 4 * PAGE,
			    image.regions[0].bytes + 4 * PAGE, 2 * PAGE, &installed),
		 LR_OK);
	CHECK_EQ(installed.pages, 0);
	CHECK_EQ(installed.bytes, 2 * PAGE);
	CHECK_EQ(peer_do(&peer, check_there, 3, 4), 0);
	lr_session_close(session);
	peer_end(&peer);
}

/* After that what is not there was given up, and holds nothing up. */
static void what_is_not_there_in_the_end_is_passed_over(void)
{
	lr_session *session;

	make_image(65536, PAGES, "d");
	session = begin_early(new_state(), -1, 0);
	CHECK_EQ(peer_do(&peer, map_part, 3, 30), 0);
	CHECK_EQ(lr_session_settle(session), LR_OK);
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	CHECK_EQ(stats_of(session).errors, 0);
	CHECK_EQ(stats_of(session).pages_missing, 0);
	CHECK_EQ(peer_do(&peer, check_there, 3, 30), 0);
	lr_session_close(session);
	peer_end(&peer);
}

/* ---- What is in no range ---- */

static int64_t check_stray(struct peer *self, uint64_t page, uint64_t is_write)
{
	if (!kernel_is_zero(self->memory + page * PAGE, PAGE))
		return 1;
	if (is_write)
		self->memory[page * PAGE] = 7;
	return 0;
}

static int64_t check_seven(struct peer *self, uint64_t page, uint64_t unused)
{
	(void)unused;
	return self->memory[page * PAGE] != 7;
}

static int64_t close_own(struct peer *self, uint64_t a, uint64_t b)
{
	(void)a;
	(void)b;
	return close(self->uffd);
}

static void what_is_in_no_range_is_zeros(void)
{
	struct lr_peer_range ranges[2];
	lr_session *session = NULL;
	int event_fd = (int)CHECK_CALL(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));

	make_image(16384, PAGES, "d");
	for (uint64_t count = 0; count < 3; count++) {
		tree_need_forks();
		peer_start(&peer, 4 * PAGES, TREE_FEATURES);
		for (uint64_t i = 0; i < count; i++)
			ranges[i] = (struct lr_peer_range){
				.address = (uintptr_t)peer.memory + (i * 40 + 3) * PAGE,
				.bytes = 20 * PAGE,
				.offset = i * 30 * PAGE,
			};
		CHECK_EQ(tree_try(peer.uffd, new_state(), event_fd, ranges, count, &session),
			 LR_OK);
		CHECK_EQ(lr_session_settle(session), LR_OK);
		CHECK_EQ(peer_do(&peer, check_stray, 2, 1), 0);
		CHECK_EQ(stats_of(session).faults, 1);
		/* As far as to the next range, and no further than is given at once. */
		CHECK_EQ(stats_of(session).answers[0][LR_ACTION_ZEROPAGE], 1);
		CHECK(stats_of(session).pages_zeroed <= 16);
		CHECK_EQ(peer_do(&peer, check_stray, 100, 0), 0);
		CHECK_EQ(peer_do(&peer, check_stray, 4 * PAGES - 1, 1), 0);
		CHECK_EQ(stats_of(session).pages_total, count * 20);
		CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
		CHECK_EQ(lr_session_wait(session, -1), LR_OK);
		CHECK_EQ(stats_of(session).pages_missing, 0);
		CHECK_EQ(stats_of(session).errors, 0);
		lr_session_close(session);
		/* Nobody is needed any more; the end of the userfaultfd makes it plain memory. */
		close(peer.uffd);
		peer.uffd = -1;
		CHECK_EQ(peer_do(&peer, close_own, 0, 0), 0);
		CHECK_EQ(peer_do(&peer, check_seven, 2, 0), 0);
		CHECK_EQ(peer_do(&peer, check_stray, 200, 0), 0);
		peer_end(&peer);
	}
}

/* ---- Storms ---- */

static void storm_with(bool with_fill, uint64_t forks, uint64_t seed)
{
	storm_prepare();
	make_image(16384, STORM_ALL, "drdz");
	tree_start(&tree, &peer, STORM_ALL, with_fill);
	storm_is_well(peer_do(&peer, storm_all, forks, seed));
	tear_down();
}

static void threads_may_do_anything(void)
{
	storm_with(false, 150, 1);
}

static void threads_may_do_anything_during_fills(void)
{
	storm_with(true, 150, 2);
}

/* ---- Forks while another thread moves memory ---- */

/* A thread of real-time priority moves pages to and fro, and interrupts the one that forks wherever
 * it is: also between its having copied the memory and its telling of it. */
struct mover {
	uint8_t *places[2];
	size_t bytes;
	_Atomic bool is_over;
};

static void bind_to_first(void)
{
	cpu_set_t all, one;
	int first = 0;

	CHECK_CALL(sched_getaffinity(0, sizeof(all), &all));
	while (!CPU_ISSET(first, &all))
		first++;
	CPU_ZERO(&one);
	CPU_SET(first, &one);
	CHECK_CALL(sched_setaffinity(0, sizeof(one), &one));
}

static void *move_to_and_fro(void *argument)
{
	struct mover *mover = argument;
	struct sched_param urgent = {.sched_priority = 1};

	bind_to_first();
	sched_setscheduler(0, SCHED_FIFO, &urgent);
	for (unsigned i = 0; !atomic_load(&mover->is_over); i++) {
		CHECK(mremap(mover->places[i % 2], mover->bytes, mover->bytes,
			     MREMAP_MAYMOVE | MREMAP_FIXED, mover->places[(i + 1) % 2])
		      == mover->places[(i + 1) % 2]);
		usleep(1 + i % 64);
	}
	return NULL;
}

static int64_t fork_beside_a_mover(struct peer *self, uint64_t forks, uint64_t unused)
{
	struct mover mover = {.bytes = 16 * PAGE};
	int64_t wrong = 0;
	pthread_t thread;

	(void)unused;
	mover.places[0] = self->memory + 16 * PAGE;
	mover.places[1] = place;
	bind_to_first();
	CHECK_EQ(pthread_create(&thread, NULL, move_to_and_fro, &mover), 0);
	for (uint64_t i = 0; i < forks && !wrong; i++) {
		int status;
		pid_t pid = (pid_t)CHECK_CALL(fork());

		if (pid == 0) {
			unsigned char there[16];
			int places = 0;

			for (int j = 0; j < 2; j++) {
				if (mincore(mover.places[j], mover.bytes, there) < 0)
					continue;
				places++;
				if (memcmp(mover.places[j], image.regions[0].bytes + 16 * PAGE,
					   mover.bytes)
				    != 0)
					_exit(2 + j);
			}
			_exit(places != 1);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		wrong = status;
	}
	atomic_store(&mover.is_over, true);
	pthread_join(thread, NULL);
	return wrong;
}

static void forks_may_come_while_memory_is_moved(void)
{
	make_image(16384, 256, "d");
	find_place();
	tree_start(&tree, &peer, 256, false);
	CHECK_EQ(peer_do(&peer, fork_beside_a_mover, 300, 0), 0);
	tear_down();
}

/* The same, made sure of: the messages of both are worked on in the wrong order. */

enum change { MOVE, MOVE_ONTO, UNMAP };

static void change_memory(struct peer *self, enum change change)
{
	uint8_t *from = self->memory + 16 * PAGE;
	uint8_t *to = change == MOVE ? place : self->memory + 64 * PAGE;

	if (change == UNMAP)
		CHECK_CALL(munmap(from, 16 * PAGE));
	else
		CHECK(mremap(from, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
}

/* Whether what a child has is what it must have, the change done before, or not. */
static int check_changed(struct peer *self, enum change change, bool is_done)
{
	const uint8_t *dumped = image.regions[0].bytes;
	uint8_t *to = change == MOVE ? place : self->memory + 64 * PAGE;

	if (check_pages(self, 0, 16) != 0 || check_pages(self, 32, 64) != 0)
		return 1;
	if (!is_done && check_pages(self, 16, 32) != 0)
		return 2;
	if (!is_done && change == MOVE_ONTO && check_pages(self, 64, 80) != 0)
		return 3;
	return is_done && change != UNMAP && memcmp(to, dumped + 16 * PAGE, 16 * PAGE) != 0 ? 4 : 0;
}

static int64_t fork_and_change(struct peer *self, uint64_t change, uint64_t is_done_first)
{
	int status;
	pid_t pid;

	if (is_done_first)
		change_memory(self, (enum change)change);
	pid = (pid_t)CHECK_CALL(fork());
	if (pid == 0)
		_exit(check_changed(self, (enum change)change, is_done_first));
	if (!is_done_first)
		change_memory(self, (enum change)change);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	return status;
}

static void work_on(struct lr_target *target, const struct lr_uffd_message *message)
{
	if (message->kind == LR_UFFD_FORK) {
		CHECK_EQ(lr_keep_child(target, message->child, target->kept->told + 1), LR_OK);
	} else {
		lr_together_note(target, message);
		lr_follow(target, message);
	}
	lr_keep_told(target);
}

static void mix_up(enum change change, bool is_done_first)
{
	int count = change == UNMAP ? 2 : change == MOVE ? 3 : 4;
	struct lr_uffd_message messages[4], fork = {0};
	lr_session *session = NULL, *of_child = NULL;
	struct lr_peer_range range;
	struct lr_child child;
	int state = new_state();

	peer_start(&peer, 256, TREE_FEATURES);
	range = whole_range(&peer);
	CHECK_EQ(tree_try(peer.uffd, state, -1, &range, 1, &session), LR_OK);
	CHECK_EQ(lr_session_settle(session), LR_OK);
	lr_pager_stop(&session->pager);
	peer_order(&peer, fork_and_change, change, is_done_first);
	for (int i = 0, others = 0; i < count; i++) {
		struct lr_uffd_message message;

		CHECK_EQ(kernel_poll(peer.uffd, -1), POLLIN);
		CHECK_EQ(lr_keep_read(&session->target, &message, 1), 1);
		if (message.kind == LR_UFFD_FORK)
			fork = message;
		else
			messages[others++] = message;
	}
	CHECK_EQ(fork.kind, LR_UFFD_FORK);
	if (is_done_first)
		work_on(&session->target, &fork);
	for (int i = 0; i < count - 1; i++)
		work_on(&session->target, &messages[i]);
	if (!is_done_first)
		work_on(&session->target, &fork);
	CHECK_EQ(lr_session_next_child(session, &child), 0);
	/* Nothing is under way any more. */
	while (!lr_together_end(&session->target))
		usleep(1000);
	CHECK_EQ(lr_session_next_child(session, &child), 1);
	CHECK_EQ(tree_try(child.uffd, child.state, -1, NULL, 0, &of_child), LR_OK);
	CHECK_EQ(stats_of(of_child).pages_total, !is_done_first ? 256 : change == MOVE ? 256 : 240);
	CHECK_EQ(peer_result(&peer), 0);
	lr_session_close(of_child);
	lr_session_close(session);
	peer_end(&peer);
}

static void what_came_second_may_have_been_first(void)
{
	make_image(16384, 256, "d");
	tree_need_forks();
	find_place();
	for (int done = 0; done < 2; done++)
		for (enum change change = MOVE; change <= UNMAP; change++)
			mix_up(change, done);
}

static const struct check_case cases[] = {
	CHECK_CASE(what_came_second_may_have_been_first),
	CHECK_CASE(what_is_not_mapped_yet_is_not_given_up),
	CHECK_CASE(what_is_not_there_counts_once_all_is_mapped),
	CHECK_CASE(what_is_not_there_in_the_end_is_passed_over),
	CHECK_CASE(what_is_in_no_range_is_zeros),
	CHECK_CASE(forks_may_come_while_memory_is_moved),
	CHECK_CASE_LIMIT(threads_may_do_anything, 120),
	CHECK_CASE_LIMIT(threads_may_do_anything_during_fills, 120),
};
CHECK_MAIN(cases)
