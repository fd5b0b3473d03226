/* Children that a served process forks: each has what its parent had at that moment, and the
 * image's bytes for what its parent had not loaded. */
#include "check.h"

#include "tree_setting.h"

#define PAGES 256

static struct tree tree;
static struct peer peer;

static void set_up(bool with_fill)
{
	if (!opened)
		make_image(16384, PAGES, "drd");
	tree_start(&tree, &peer, PAGES, with_fill);
}

static void tear_down(void)
{
	close(peer.socket);
	CHECK_CHILD(peer.pid);
	tree_stop(&tree);
}

/* One is served a moment before it counts. */
static void wait_for_members(uint32_t count)
{
	while (atomic_load(&tree.count) < count)
		usleep(1000);
	CHECK_EQ(atomic_load(&tree.count), count);
}

/* ---- What was known of a page when it was forked ---- */

/* Pages 0..15 loaded and written, 16..31 loaded, then given up, 32..47 given up, 48..63 loaded. */
static int64_t prepare(struct peer *self, uint64_t a, uint64_t b)
{
	(void)a;
	(void)b;
	for (uint64_t page = 0; page < 16; page++)
		self->memory[page * PAGE] = 0xA5;
	for (uint64_t page = 16; page < 32; page++)
		CHECK_EQ(touch_page(self, page, page % 2), 0);
	CHECK_EQ(give_up(self, 16, 48), 0);
	for (uint64_t page = 48; page < 64; page++)
		CHECK_EQ(touch_page(self, page, 0), 0);
	return 0;
}

/* 0 where all are so, else a page's number, and 1. */
static int64_t check_prepared(struct peer *self, uint64_t a, uint64_t b)
{
	int64_t wrong;

	(void)a;
	(void)b;
	for (uint64_t page = 0; page < 16; page++) {
		const uint8_t *dumped = image.regions[0].bytes + page * PAGE;

		if (self->memory[page * PAGE] != 0xA5
		    || memcmp(self->memory + page * PAGE + 1, dumped + 1, PAGE - 1) != 0)
			return (int64_t)page + 1;
	}
	wrong = check_zeros(self, 16, 48);
	return wrong ? wrong : check_pages(self, 48, PAGES);
}

static int64_t check_in_child(struct peer *self, uint64_t generations, uint64_t b)
{
	return generations > 0 ? tree_in_child(self, check_in_child, generations - 1, b)
			       : check_prepared(self, 0, 0);
}

static void a_child_has_what_its_parent_had(void)
{
	set_up(false);
	CHECK_EQ(peer_do(&peer, prepare, 0, 0), 0);
	CHECK_EQ(peer_do(&peer, check_in_child, 1, 0), 0);
	CHECK_EQ(stats_of(tree.sessions[0]).pages_missing, PAGES - 64);
	CHECK_EQ(peer_do(&peer, check_in_child, 4, 0), 0);
	CHECK_EQ(peer_do(&peer, check_prepared, 0, 0), 0);
	tear_down();
}

/* It is not told of where nothing is left to load, and then nobody serves it. */
static void a_child_of_a_complete_process_needs_nobody(void)
{
	set_up(true);
	CHECK_EQ(lr_session_wait(tree.sessions[0], -1), LR_OK);
	CHECK_EQ(peer_do(&peer, prepare, 0, 0), 0);
	CHECK_EQ(peer_do(&peer, check_in_child, 3, 0), 0);
	CHECK_EQ(tree.count, 1);
	tear_down();
}

/* What a child gives up is its own affair, and so is what the parent gives up later. */
static int64_t go_different_ways(struct peer *self, uint64_t a, uint64_t b)
{
	int go_on[2], status;
	pid_t pid;
	char byte;

	(void)a;
	(void)b;
	CHECK_CALL(pipe2(go_on, O_CLOEXEC));
	pid = (pid_t)CHECK_CALL(fork());
	if (pid == 0) {
		close(go_on[1]);
		CHECK_EQ(give_up(self, 0, 64), 0);
		CHECK_EQ(read(go_on[0], &byte, 1), 0);
		CHECK_EQ(check_zeros(self, 0, 64), 0);
		CHECK_EQ(check_pages(self, 64, PAGES), 0);
		_exit(0);
	}
	CHECK_EQ(give_up(self, 64, 128), 0);
	close(go_on[1]);
	CHECK_EQ(check_pages(self, 0, 64), 0);
	CHECK_EQ(check_zeros(self, 64, 128), 0);
	CHECK_EQ(check_pages(self, 128, PAGES), 0);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	return status;
}

static void each_goes_its_own_way(void)
{
	for (int with_fill = 0; with_fill < 2; with_fill++) {
		set_up(with_fill);
		CHECK_EQ(peer_do(&peer, go_different_ways, 0, 0), 0);
		tear_down();
	}
}

/* ---- Children that do not live long ---- */

static int64_t be_short(struct peer *self, uint64_t count, uint64_t b)
{
	(void)self;
	(void)b;
	for (uint64_t i = 0; i < count; i++) {
		int status;
		pid_t pid = (pid_t)CHECK_CALL(fork());

		if (pid == 0 && i % 4 == 0)
			execl("/bin/true", "true", NULL);
		if (pid == 0 && i % 4 == 1)
			(void)*(volatile uint8_t *)(self->memory + i * PAGE);
		if (pid == 0)
			_exit(0);
		if (i % 4 == 3)
			kill(pid, SIGKILL);
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK_EQ(i % 4 == 3 || status == 0, 1);
	}
	return 0;
}

static void children_may_end_at_any_moment(void)
{
	for (int with_fill = 0; with_fill < 2; with_fill++) {
		set_up(false);
		tree.with_fill = with_fill; /* theirs */
		CHECK_EQ(peer_do(&peer, be_short, PAGES / 2, 0), 0);
		CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
		tear_down();
	}
}

/* One that only waits for pages, and ends while nobody installs any: that is noticed. */
static int64_t start_idle(struct peer *self, uint64_t a, uint64_t b)
{
	pid_t pid = (pid_t)CHECK_CALL(fork());

	(void)self;
	(void)a;
	(void)b;
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

static void the_end_of_an_idle_one_is_noticed(void)
{
	pid_t pid;

	set_up(false);
	pid = (pid_t)peer_do(&peer, start_idle, 0, 0);
	wait_for_members(2);
	CHECK_CALL(kill(pid, SIGKILL));
	while (tree.sessions[1])
		usleep(1000);
	CHECK_EQ(stats_of(tree.sessions[0]).is_gone, 0);
	tear_down();
}

/* ---- More than are taken ---- */

#define MANY (LR_CHILDREN_MAX + 20)

static int64_t fork_many(struct peer *self, uint64_t count, uint64_t unused)
{
	pid_t pids[MANY];
	int status;

	(void)unused;
	for (uint64_t i = 0; i < count; i++) {
		pids[i] = (pid_t)CHECK_CALL(fork());
		if (pids[i] == 0)
			_exit(check_pages(self, i, i + 4) != 0);
	}
	for (uint64_t i = 0; i < count; i++) {
		CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
		CHECK_EQ(status, 0);
	}
	return 0;
}

static uint32_t count_pending(struct lr_child *children)
{
	int count = lr_state_children(tree.fds[0].state, children, LR_CHILDREN_MAX);

	CHECK(count >= 0);
	return (uint32_t)count;
}

static void more_than_can_be_pending_wait(void)
{
	struct lr_child children[LR_CHILDREN_MAX];

	set_up(false);
	atomic_store(&tree.is_shy, true);
	peer_order(&peer, fork_many, MANY, 0);
	while (count_pending(children) < LR_CHILDREN_MAX)
		usleep(1000);
	kernel_settle();
	CHECK_EQ(count_pending(children), LR_CHILDREN_MAX);
	for (uint32_t i = 0; i < LR_CHILDREN_MAX; i++) {
		CHECK_EQ(children[i].number, i + 1);
		CHECK(lr_uffd_is_one(children[i].uffd));
	}
	CHECK(peer_waits(&peer, 0));
	atomic_store(&tree.is_shy, false);
	CHECK_EQ(peer_result(&peer), 0);
	wait_for_members(MANY + 1);
	CHECK_EQ(count_pending(children), 0);
	CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
	tear_down();
}

/* A session that ends while they wait can be gone on with. */
static void what_was_not_taken_is_there_for_the_next(void)
{
	struct lr_child children[LR_CHILDREN_MAX];
	lr_session *session;
	uint32_t count;

	set_up(false);
	atomic_store(&tree.is_shy, true);
	peer_order(&peer, fork_many, MANY, 0);
	while (count_pending(children) < LR_CHILDREN_MAX)
		usleep(1000);
	atomic_store(&tree.is_over, true);
	CHECK_EQ(pthread_join(tree.thread, NULL), 0);
	lr_session_close(tree.sessions[0]);
	CHECK_EQ(count_pending(children), LR_CHILDREN_MAX);
	CHECK_EQ(tree_try(tree.fds[0].uffd, tree.fds[0].state, tree.event_fd, NULL, 0, &session),
		 LR_OK);
	tree.sessions[0] = session;
	count = tree_take(&tree);
	CHECK(count >= LR_CHILDREN_MAX);
	atomic_store(&tree.is_shy, false);
	atomic_store(&tree.is_over, false);
	CHECK_EQ(pthread_create(&tree.thread, NULL, tree_run, &tree), 0);
	CHECK_EQ(peer_result(&peer), 0);
	wait_for_members(MANY + 1);
	tear_down();
}

/* No descriptor is to be had for a while. */
static void forks_wait_for_descriptors(void)
{
	struct rlimit limit, none;
	int taken[1024], count = 0;

	set_up(false);
	atomic_store(&tree.is_shy, true);
	CHECK_CALL(getrlimit(RLIMIT_NOFILE, &limit));
	none = limit;
	none.rlim_cur = 200;
	CHECK_CALL(setrlimit(RLIMIT_NOFILE, &none));
	while ((taken[count] = dup(tree.event_fd)) >= 0)
		count++;
	peer_order(&peer, fork_many, 5, 0);
	CHECK(peer_waits(&peer, 200));
	/* For one userfaultfd, and not for its state. */
	close(taken[--count]);
	CHECK(peer_waits(&peer, 200));
	while (count > 0)
		close(taken[--count]);
	CHECK_CALL(setrlimit(RLIMIT_NOFILE, &limit));
	atomic_store(&tree.is_shy, false);
	CHECK_EQ(peer_result(&peer), 0);
	wait_for_members(6);
	tear_down();
}

/* ---- What is refused ---- */

static void what_cannot_be_is_refused(void)
{
	struct lr_child child = {.uffd = -1, .state = -1, .number = 77};
	struct lr_serve_options options = {.event_fd = -1, .state = -1};
	lr_session *session = NULL;
	int state;

	set_up(false);
	options.uffd = tree.fds[0].uffd;
	options.flags = LR_SERVE_ZERO_OUTSIDE;
	CHECK_EQ(lr_session_serve(opened, &options, &session, NULL), LR_ERR_UNSUPPORTED);
	options.flags = TREE_FLAGS; /* without a state */
	CHECK_EQ(lr_session_serve(opened, &options, &session, NULL), LR_ERR_ARGUMENT);
	options.flags = 4;
	CHECK_EQ(lr_session_serve(opened, &options, &session, NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_next_child(tree.sessions[0], &child), 0);
	CHECK_EQ(lr_session_child_is_kept(tree.sessions[0], 77), LR_ERR_NOT_FOUND);
	CHECK_EQ(lr_session_child_is_kept(tree.sessions[0], 0), LR_ERR_NOT_FOUND);
	CHECK_EQ(lr_state_children(tree.event_fd, &child, 1), LR_ERR_STATE);
	CHECK_EQ(lr_state_children(-1, &child, 1), LR_ERR_STATE);
	state = new_state();
	CHECK_EQ(lr_state_children(state, &child, 1), 0);
	CHECK_EQ(lr_state_set_child(state, &child), LR_ERR_NOT_FOUND);
	tear_down();
}

static const struct check_case cases[] = {
	CHECK_CASE(a_child_has_what_its_parent_had),
	CHECK_CASE(a_child_of_a_complete_process_needs_nobody),
	CHECK_CASE(each_goes_its_own_way),
	CHECK_CASE(children_may_end_at_any_moment),
	CHECK_CASE(the_end_of_an_idle_one_is_noticed),
	CHECK_CASE(more_than_can_be_pending_wait),
	CHECK_CASE(what_was_not_taken_is_there_for_the_next),
	CHECK_CASE(forks_wait_for_descriptors),
	CHECK_CASE(what_cannot_be_is_refused),
};
CHECK_MAIN(cases)
