/* A peer that forks, as a process does that CRIU restores, and a thread that serves it and all that
 * come of it. Include after check.h. */
#ifndef LR_TESTS_TREE_SETTING_H
#define LR_TESTS_TREE_SETTING_H

#include "serve_setting.h"

/* What CRIU asks for. */
#define TREE_FEATURES                                                                              \
	(UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP            \
	 | UFFD_FEATURE_EVENT_REMAP)
#define TREE_FLAGS   (LR_SERVE_ZERO_OUTSIDE | LR_SERVE_CHILDREN)
#define TREE_MEMBERS 16384

/* Who serves: all members' sessions, as they come. */
struct tree {
	int event_fd;
	_Atomic bool with_fill; /* of the children; of the first, at the start */
	_Atomic bool is_over;
	/* Do not take children. */
	_Atomic bool is_shy;
	_Atomic uint32_t count;
	lr_session *_Atomic sessions[TREE_MEMBERS];
	struct {
		int32_t uffd, state;
	} fds[TREE_MEMBERS];
	pthread_t thread;
};

/* Tells of forks takes a right. */
static inline void tree_need_forks(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK};
	int fd = kernel_open_raw(O_CLOEXEC | O_NONBLOCK);

	if (ioctl(fd, UFFDIO_API, &api) < 0)
		SKIP("UFFD_FEATURE_EVENT_FORK is not allowed here: %s", strerror(errno));
	close(fd);
}

static inline int tree_try(int uffd, int state, int event_fd, const struct lr_peer_range *ranges,
			   uint64_t count, lr_session **ret_session)
{
	struct lr_serve_options options = {
		.uffd = uffd,
		.state = state,
		.event_fd = event_fd,
		.flags = TREE_FLAGS,
		.ranges = ranges,
		.range_count = count,
	};

	return lr_session_serve(opened, &options, ret_session, NULL);
}

/* False where it is gone already. */
static inline bool tree_add(struct tree *tree, int uffd, int state,
			    const struct lr_peer_range *range)
{
	uint32_t number = atomic_load(&tree->count);
	lr_session *session = NULL;
	int code;

	CHECK(number < TREE_MEMBERS);
	do
		code = tree_try(uffd, state, tree->event_fd, range, range ? 1 : 0, &session);
	while (code == LR_ERR_BUSY);
	if (code == LR_ERR_GONE)
		return false;
	CHECK_EQ(code, LR_OK);
	tree->sessions[number] = session;
	tree->fds[number].uffd = uffd;
	tree->fds[number].state = state;
	atomic_store(&tree->count, number + 1);
	return true;
}

static inline void tree_fill(struct tree *tree, uint32_t number)
{
	if (tree->with_fill)
		CHECK_EQ(lr_session_fill(tree->sessions[number],
					 &(struct lr_fill_options){.threads = 1}),
			 LR_OK);
}

/* Serve the children that there are. */
static inline uint32_t tree_take(struct tree *tree)
{
	uint32_t taken = 0;

	for (uint32_t i = 0; i < atomic_load(&tree->count); i++) {
		struct lr_child child;

		while (tree->sessions[i] && lr_session_next_child(tree->sessions[i], &child) > 0) {
			uint32_t number = atomic_load(&tree->count);

			CHECK(child.uffd >= 0);
			CHECK(child.state >= 0);
			CHECK_EQ(fcntl(child.uffd, F_GETFD), FD_CLOEXEC);
			CHECK_EQ(fcntl(child.state, F_GETFD), FD_CLOEXEC);
			if (tree_add(tree, child.uffd, child.state, NULL)) {
				tree_fill(tree, number);
			} else {
				close(child.uffd);
				close(child.state);
			}
			CHECK_EQ(lr_session_child_is_kept(tree->sessions[i], child.number), LR_OK);
			taken++;
		}
	}
	return taken;
}

static inline void tree_end(struct tree *tree, uint32_t number)
{
	lr_session_close(tree->sessions[number]);
	close(tree->fds[number].uffd);
	close(tree->fds[number].state);
	tree->sessions[number] = NULL;
}

/* Of those that ended, and whose children were taken after that. (Not the first, which the tests
 * look at.) */
static inline void tree_tidy(struct tree *tree)
{
	for (uint32_t i = 1; i < atomic_load(&tree->count); i++) {
		if (!tree->sessions[i] || !stats_of(tree->sessions[i]).is_gone)
			continue;
		tree_take(tree);
		tree_end(tree, i);
	}
}

static inline void *tree_run(void *argument)
{
	struct tree *tree = argument;
	struct pollfd ready = {.fd = tree->event_fd, .events = POLLIN};
	uint64_t count;

	while (!atomic_load(&tree->is_over)) {
		if (poll(&ready, 1, 20) > 0)
			CHECK_EQ(read(tree->event_fd, &count, sizeof(count)), sizeof(count));
		if (!atomic_load(&tree->is_shy))
			tree_take(tree);
		tree_tidy(tree);
	}
	return NULL;
}

/* A peer with the image's one region, and who serves it. */
static inline void tree_start(struct tree *tree, struct peer *peer, size_t pages, bool with_fill)
{
	struct lr_peer_range range;

	tree_need_forks();
	peer_start(peer, pages, TREE_FEATURES);
	memset(tree, 0, sizeof(*tree));
	tree->with_fill = with_fill;
	tree->event_fd = (int)CHECK_CALL(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	range = whole_range(peer);
	CHECK(tree_add(tree, peer->uffd, new_state(), &range));
	peer->uffd = -1;
	CHECK_EQ(lr_session_settle(tree->sessions[0]), LR_OK);
	tree_fill(tree, 0);
	CHECK_EQ(pthread_create(&tree->thread, NULL, tree_run, tree), 0);
}

static inline void tree_stop(struct tree *tree)
{
	atomic_store(&tree->is_over, true);
	CHECK_EQ(pthread_join(tree->thread, NULL), 0);
	for (uint32_t i = 0; i < atomic_load(&tree->count); i++) {
		if (!tree->sessions[i])
			continue;
		CHECK_EQ(stats_of(tree->sessions[i]).errors, 0);
		tree_end(tree, i);
	}
}

/* ---- In the peer ---- */

/* Run something in a child of the peer: its result, -1 where the child died. */
static inline int64_t tree_in_child(struct peer *peer, peer_function *run, uint64_t a, uint64_t b)
{
	int64_t result = -1;
	int results[2], status;
	pid_t pid;

	CHECK_CALL(pipe2(results, O_CLOEXEC));
	pid = (pid_t)CHECK_CALL(fork());
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		result = run(peer, a, b);
		CHECK_EQ(write(results[1], &result, sizeof(result)), sizeof(result));
		_exit(0);
	}
	close(results[1]);
	if (read(results[0], &result, sizeof(result)) != sizeof(result))
		result = -1;
	close(results[0]);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	return result;
}

#endif
