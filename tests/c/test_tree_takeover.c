/* Who serves a tree of processes may be killed at any moment, also between reading of a child and
 * noting it: whoever goes on has all of them, and they see no other byte than they would have. */
#include "check.h"

#include <sys/pidfd.h>
#include <sys/stat.h>

#include "follow.h"
#include "keep.h"
#include "tree_setting.h"

#include "tree_storm.h"

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

#define KEPT_MAX 4096
#define KILLS    40

/* What this process, who is not killed, has of all members. */
static struct {
	uint32_t count;
	int32_t uffds[KEPT_MAX], states[KEPT_MAX];
} kept;

/* Who serves, and who has his table of descriptors when he is killed. */
struct server {
	pid_t pid, holder;
	int socket;
};

static struct peer peer;

/* Until the next server has them: he may find that a child needs nobody. */
static int loose[KEPT_MAX];
static uint32_t loose_count;

static ino_t file_of(int fd)
{
	struct stat file;

	CHECK_CALL(fstat(fd, &file));
	return file.st_ino;
}

static void keep_both(int uffd, int state)
{
	CHECK(kept.count < KEPT_MAX);
	kept.uffds[kept.count] = uffd;
	kept.states[kept.count++] = state;
}

/* ---- Who serves ---- */

static void send_both(int socket, int uffd, int state)
{
	char control[CMSG_SPACE(2 * sizeof(int))] = {0}, byte = 0;
	struct iovec part = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int fds[2] = {uffd, state};

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(header), fds, sizeof(fds));
	CHECK_EQ(sendmsg(socket, &message, MSG_NOSIGNAL), 1);
}

static bool is_member(const struct tree *tree, int state)
{
	for (uint32_t i = 0; i < tree->count; i++)
		if (tree->sessions[i] && file_of(tree->fds[i].state) == file_of(state))
			return true;
	return false;
}

static void take_children(struct tree *tree, lr_session *session, int socket)
{
	struct lr_child child;

	while (lr_session_next_child(session, &child) > 0) {
		uint32_t number = tree->count;

		CHECK(child.uffd >= 0);
		CHECK(child.state >= 0);
		if (is_member(tree, child.state)) {
			/* It was handed over, and then he was killed. */
			CHECK_EQ(lr_session_child_is_kept(session, child.number), LR_OK);
			close(child.uffd);
			close(child.state);
			continue;
		}
		send_both(socket, child.uffd, child.state);
		CHECK_EQ(lr_session_child_is_kept(session, child.number), LR_OK);
		if (tree_add(tree, child.uffd, child.state, NULL))
			tree_fill(tree, number);
	}
}

/* Ends with who has his descriptors, and does nothing. */
static void hold(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

static void serve_all(int socket, bool with_fill)
{
	static struct tree tree;
	struct pollfd ready;
	uint64_t count;
	pid_t holder;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	holder = (pid_t)CHECK_CALL(
		syscall(SYS_clone, CLONE_FILES | CLONE_PARENT | SIGCHLD, 0L, 0L, 0L, 0L));
	if (holder == 0)
		hold();
	CHECK_EQ(write(socket, &holder, sizeof(holder)), sizeof(holder));
	tree.with_fill = with_fill;
	tree.event_fd = (int)CHECK_CALL(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	for (uint32_t i = 0; i < kept.count; i++)
		if (tree_add(&tree, kept.uffds[i], kept.states[i], NULL))
			tree_fill(&tree, tree.count - 1);
	ready = (struct pollfd){.fd = tree.event_fd, .events = POLLIN};
	for (;;) {
		for (uint32_t i = 0; i < tree.count; i++) {
			/* When it is gone, none comes any more. */
			bool is_gone = tree.sessions[i] && stats_of(tree.sessions[i]).is_gone;

			if (tree.sessions[i])
				take_children(&tree, tree.sessions[i], socket);
			if (is_gone)
				tree_end(&tree, i);
		}
		if (poll(&ready, 1, 20) > 0)
			CHECK_EQ(read(tree.event_fd, &count, sizeof(count)), sizeof(count));
	}
}

static struct server start_server(bool with_fill)
{
	struct server server;
	int sockets[2];

	CHECK_CALL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
	server.pid = (pid_t)CHECK_CALL(fork());
	if (server.pid == 0)
		serve_all(sockets[1], with_fill);
	close(sockets[1]);
	server.socket = sockets[0];
	CHECK_EQ(read(server.socket, &server.holder, sizeof(server.holder)), sizeof(pid_t));
	while (loose_count > 0)
		close(loose[--loose_count]);
	return server;
}

/* ---- Who goes on ---- */

static void take_handed_over(int socket)
{
	char control[CMSG_SPACE(2 * sizeof(int))], byte;

	for (;;) {
		struct iovec part = {.iov_base = &byte, .iov_len = 1};
		struct msghdr message = {.msg_iov = &part,
					 .msg_iovlen = 1,
					 .msg_control = control,
					 .msg_controllen = sizeof(control)};
		int fds[2];

		if (recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1)
			return;
		memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fds));
		keep_both(fds[0], fds[1]);
	}
}

static int take_from(int pidfd, int number)
{
	CHECK(loose_count < KEPT_MAX);
	if (number < 0)
		return -1;
	loose[loose_count] = (int)CHECK_CALL(syscall(SYS_pidfd_getfd, pidfd, number, 0));
	return loose[loose_count++];
}

/* Returns how many were pending; *ret_raw of them had just been read. */
static uint32_t take_pending(int pidfd, uint32_t *ret_raw)
{
	uint32_t pending = 0;

	for (uint32_t i = 0; i < kept.count; i++) {
		struct lr_child children[LR_CHILDREN_MAX];
		int count = lr_state_children(kept.states[i], children, LR_CHILDREN_MAX);

		CHECK(count >= 0);
		for (int j = 0; j < count; j++) {
			*ret_raw += children[j].state < 0;
			children[j].uffd = take_from(pidfd, children[j].uffd);
			children[j].state = take_from(pidfd, children[j].state);
			CHECK(lr_uffd_is_one(children[j].uffd));
			CHECK_EQ(lr_state_set_child(kept.states[i], &children[j]), LR_OK);
			pending++;
		}
	}
	return pending;
}

/* After he was killed: nothing of his is left when this returns. */
static uint32_t succeed(struct server *server, uint32_t *ret_raw)
{
	int pidfd = (int)CHECK_CALL(syscall(SYS_pidfd_open, server->holder, 0)), status;
	uint32_t pending;

	take_handed_over(server->socket);
	pending = take_pending(pidfd, ret_raw);
	CHECK_CALL(kill(server->holder, SIGKILL));
	CHECK_EQ(waitpid(server->holder, &status, 0), server->holder);
	close(pidfd);
	close(server->socket);
	return pending;
}

static void kill_server(struct server *server)
{
	int status;

	CHECK_CALL(kill(server->pid, SIGKILL));
	CHECK_EQ(waitpid(server->pid, &status, 0), server->pid);
	CHECK(WIFSIGNALED(status));
}

/* A peer, and its first state. */
static void begin(size_t pages)
{
	struct lr_peer_range range;
	lr_session *session = NULL;
	int state;

	tree_need_forks();
	peer_start(&peer, pages, TREE_FEATURES);
	range = whole_range(&peer);
	state = new_state();
	CHECK_EQ(tree_try(peer.uffd, state, -1, &range, 1, &session), LR_OK);
	CHECK_EQ(lr_session_settle(session), LR_OK);
	lr_session_close(session);
	keep_both(peer.uffd, state);
}

static void kill_at_random_moments(bool with_fill, uint64_t seed)
{
	struct rlimit limit;
	struct server server;
	uint32_t pending = 0, raw = 0;
	uint64_t chance = seed;

	CHECK_CALL(getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = limit.rlim_max;
	CHECK_CALL(setrlimit(RLIMIT_NOFILE, &limit));
	storm_prepare();
	make_image(16384, STORM_ALL, "drdz");
	begin(STORM_ALL);
	server = start_server(with_fill);
	peer_order(&peer, storm_all, 200, seed);
	for (int i = 0; i < KILLS && peer_waits(&peer, 0); i++) {
		usleep((useconds_t)(image_random(&chance) % 15000));
		kill_server(&server);
		pending += succeed(&server, &raw);
		server = start_server(with_fill);
	}
	storm_is_well(peer_result(&peer));
	kill_server(&server);
	succeed(&server, &raw);
	close(peer.socket);
	CHECK_CHILD(peer.pid);
	printf("(%u were pending, %u of them just read)\n", pending, raw);
}

static void survive_being_killed_at_any_moment(void)
{
	kill_at_random_moments(false, 3);
}

static void survive_that_during_fills(void)
{
	kill_at_random_moments(true, 4);
}

/* ---- The moments that random ones may miss ---- */

static int64_t check_prepared(struct peer *self, uint64_t a, uint64_t b)
{
	int64_t wrong = check_zeros(self, 8, 16);

	(void)a;
	(void)b;
	return wrong ? wrong : check_pages(self, 16, STORM_ALL);
}

static int64_t fork_and_check(struct peer *self, uint64_t a, uint64_t b)
{
	CHECK_EQ(give_up(self, 8, 16), 0);
	return tree_in_child(self, check_prepared, a, b);
}

/* Of a child it was read, and nothing more: what was given up before is known to it, though that
 * was read in the same moment, or is so in the next. */
static void a_child_that_was_just_read_is_not_lost(void)
{
	lr_session *dead, *session = NULL, *of_child = NULL;
	struct pollfd message = {.events = POLLIN};
	struct lr_child child, again;
	int state;

	make_image(16384, STORM_ALL, "d");
	begin(STORM_ALL);
	state = kept.states[0];
	CHECK_EQ(tree_try(peer.uffd, state, -1, NULL, 0, &dead), LR_OK);
	lr_pager_stop(&dead->pager);
	peer_order(&peer, fork_and_check, 0, 0);
	message.fd = peer.uffd;
	/* The madvise, as a pager does it, and then the fork, of which it is killed. */
	for (int i = 0; i < 2; i++) {
		struct lr_uffd_message found;

		CHECK_EQ(poll(&message, 1, -1), 1);
		CHECK_EQ(lr_keep_read(&dead->target, &found, 1), 1);
		CHECK_EQ(found.kind, i == 0 ? LR_UFFD_REMOVE : LR_UFFD_FORK);
		if (i == 0) {
			lr_follow(&dead->target, &found);
			lr_keep_done(&dead->target);
		}
	}
	lr_kept_close(&dead->kept);
	CHECK_EQ(lr_state_children(state, &child, 1), 1);
	CHECK_EQ(child.state, -1);
	CHECK_EQ(child.number, 1);
	CHECK(lr_uffd_is_one(child.uffd));
	/* In another table it would have another number. */
	again = (struct lr_child){.uffd = dup(child.uffd), .state = -1, .number = 1};
	CHECK_EQ(lr_state_set_child(state, &again), LR_OK);
	close(child.uffd);
	CHECK_EQ(tree_try(peer.uffd, state, -1, NULL, 0, &session), LR_OK);
	CHECK_EQ(lr_session_next_child(session, &child), 1);
	CHECK_EQ(child.uffd, again.uffd);
	CHECK_EQ(child.number, 1);
	CHECK_EQ(lr_state_children(state, &again, 1), 1);
	CHECK_EQ(again.state, child.state);
	CHECK_EQ(tree_try(child.uffd, child.state, -1, NULL, 0, &of_child), LR_OK);
	CHECK_EQ(lr_session_child_is_kept(session, 1), LR_OK);
	CHECK_EQ(lr_state_children(state, &again, 1), 0);
	CHECK_EQ(peer_result(&peer), 0);
	CHECK_EQ(peer_do(&peer, check_prepared, 0, 0), 0);
	lr_session_close(of_child);
	lr_session_close(session);
	lr_session_close(dead);
	close(peer.socket);
	CHECK_CHILD(peer.pid);
}

/* Who read that somebody touches what is in no range, and dies, has him wait for good, unless the
 * next one has him ask again. */
static void who_waits_outside_of_all_asks_again(void)
{
	struct lr_peer_range range;
	lr_session *dead, *session = NULL;
	struct pollfd message = {.events = POLLIN};
	struct lr_uffd_message found;
	int state = -1;

	tree_need_forks();
	make_image(16384, 4, "d");
	state = new_state();
	peer_start(&peer, 64, TREE_FEATURES);
	range = (struct lr_peer_range){.address = (uintptr_t)peer.memory, .bytes = 4 * PAGE};
	CHECK_EQ(tree_try(peer.uffd, state, -1, &range, 1, &dead), LR_OK);
	CHECK_EQ(lr_session_settle(dead), LR_OK);
	lr_pager_stop(&dead->pager);
	peer_order(&peer, check_zeros, 50, 51);
	message.fd = peer.uffd;
	CHECK_EQ(poll(&message, 1, -1), 1);
	CHECK_EQ(lr_keep_read(&dead->target, &found, 1), 1);
	lr_kept_close(&dead->kept);
	CHECK_EQ(tree_try(peer.uffd, state, -1, NULL, 0, &session), LR_OK);
	CHECK_EQ(peer_result(&peer), 0);
	lr_session_close(session);
	lr_session_close(dead);
	peer_end(&peer);
}

static const struct check_case cases[] = {
	CHECK_CASE(a_child_that_was_just_read_is_not_lost),
	CHECK_CASE(who_waits_outside_of_all_asks_again),
	CHECK_CASE_LIMIT(survive_being_killed_at_any_moment, 120),
	CHECK_CASE_LIMIT(survive_that_during_fills, 120),
};
CHECK_MAIN(cases)
