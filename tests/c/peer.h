/*
 * A peer: a child with memory of its own and a userfaultfd for it, which it hands over. What the
 * child shall do are functions of the test, run there one after another. Include after check.h.
 *
 *     static int64_t touch(struct peer *peer, uint64_t page, uint64_t) { return ...; }
 *     peer_start(&peer, pages, PEER_FEATURES, 0);
 *     CHECK_EQ(peer_do(&peer, touch, 5, 0), 0);
 */
#ifndef LR_TESTS_PEER_H
#define LR_TESTS_PEER_H

#include <sys/socket.h>

#include "kernel.h"

#define PEER_FEATURES                                                                              \
	(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP           \
	 | UFFD_FEATURE_THREAD_ID)

struct peer {
	pid_t pid;
	int socket;
	int uffd;
	uint8_t *memory; /* in the child */
	size_t pages;
};

typedef int64_t peer_function(struct peer *peer, uint64_t a, uint64_t b);

struct peer_order {
	peer_function *run;
	uint64_t a, b;
};

static inline void peer_send(int socket, const void *data, size_t bytes, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {.iov_base = (void *)data, .iov_len = bytes};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (fd >= 0) {
		message.msg_control = control;
		message.msg_controllen = sizeof(control);
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof(int));
	}
	CHECK_EQ(sendmsg(socket, &message, MSG_NOSIGNAL), bytes);
}

/* False where the other side is gone. */
static inline bool peer_receive(int socket, void *ret_data, size_t bytes, int *ret_fd)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {.iov_base = ret_data, .iov_len = bytes};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	message.msg_control = control;
	message.msg_controllen = sizeof(control);
	ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
	struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
	if (ret_fd)
		*ret_fd = -1;
	if (header && ret_fd)
		memcpy(ret_fd, CMSG_DATA(header), sizeof(int));
	return got == (ssize_t)bytes;
}

/* In the child: obey until nobody orders any more. */
static inline void peer_run(struct peer *peer)
{
	struct peer_order order;

	while (peer_receive(peer->socket, &order, sizeof(order), NULL)) {
		int64_t result = order.run(peer, order.a, order.b);

		peer_send(peer->socket, &result, sizeof(result), -1);
	}
	_exit(0);
}

#define PEER_HUGE (-2)

/* `memory_fd`: mapped shared, or -1 for private memory, or PEER_HUGE for that in pages of 2 MiB. */
static inline void peer_start_at(struct peer *peer, size_t pages, uint64_t features, int memory_fd)
{
	int sockets[2];

	CHECK_CALL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets));
	memset(peer, 0, sizeof(*peer));
	peer->pages = pages;
	fflush(NULL);
	peer->pid = (pid_t)CHECK_CALL(fork());
	if (peer->pid == 0) {
		struct rlimit none = {0, 0};

		setrlimit(RLIMIT_CORE, &none);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(sockets[0]);
		peer->pid = getpid();
		peer->socket = sockets[1];
		peer->uffd = kernel_open(features);
		if (memory_fd >= 0)
			peer->memory = mmap(NULL, pages * KERNEL_PAGE, PROT_READ | PROT_WRITE,
					    MAP_SHARED, memory_fd, 0);
		else if (memory_fd == PEER_HUGE)
			peer->memory = mmap(NULL, pages * KERNEL_PAGE, PROT_READ | PROT_WRITE,
					    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB
						    | (21 << MAP_HUGE_SHIFT),
					    -1, 0);
		else
			peer->memory = kernel_map(pages);
		if (peer->memory == MAP_FAILED && memory_fd == PEER_HUGE)
			SKIP("no huge pages to be had here: %s", strerror(errno));
		CHECK(peer->memory != MAP_FAILED);
		CHECK_EQ(kernel_register(peer->uffd, peer->memory, pages, NULL), 0);
		peer_send(peer->socket, &peer->memory, sizeof(peer->memory), peer->uffd);
		peer_run(peer);
	}
	close(sockets[1]);
	peer->socket = sockets[0];
	if (!peer_receive(peer->socket, &peer->memory, sizeof(peer->memory), &peer->uffd)) {
		CHECK_CHILD(peer->pid);
		CHECK_FAIL("the peer ended");
	}
	CHECK(peer->uffd >= 0);
}

static inline void peer_start(struct peer *peer, size_t pages, uint64_t features)
{
	peer_start_at(peer, pages, features, -1);
}

/* Have something done there; peer_result waits for it. */
static inline void peer_order(struct peer *peer, peer_function *run, uint64_t a, uint64_t b)
{
	struct peer_order order = {.run = run, .a = a, .b = b};

	peer_send(peer->socket, &order, sizeof(order), -1);
}

static inline int64_t peer_result(struct peer *peer)
{
	int64_t result;

	CHECK(peer_receive(peer->socket, &result, sizeof(result), NULL));
	return result;
}

static inline int64_t peer_do(struct peer *peer, peer_function *run, uint64_t a, uint64_t b)
{
	peer_order(peer, run, a, b);
	return peer_result(peer);
}

/* True where it has not answered after a while: it waits for a page. */
static inline bool peer_waits(struct peer *peer, int timeout_ms)
{
	struct pollfd answer = {.fd = peer->socket, .events = POLLIN};

	return poll(&answer, 1, timeout_ms) == 0;
}

static inline void peer_end(struct peer *peer)
{
	close(peer->socket);
	if (peer->uffd >= 0)
		close(peer->uffd);
	CHECK_CHILD(peer->pid);
}

static inline void peer_kill(struct peer *peer)
{
	int status;

	kill(peer->pid, SIGKILL);
	CHECK_EQ(waitpid(peer->pid, &status, 0), peer->pid);
	close(peer->socket);
	if (peer->uffd >= 0)
		close(peer->uffd);
}

#endif
