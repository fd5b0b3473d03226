#include "talk.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "stats.h"

/* How long a look at whether it is given up may be away. */
#define SLICE_MS 100u

static bool is_given_up(const struct lr_talk *talk)
{
	/* Acquire: partner of the release of who gives up, though nothing is read by it. */
	return talk->is_given_up && atomic_load_explicit(talk->is_given_up, memory_order_acquire);
}

static int fail(struct lr_talk *talk, int os_error)
{
	talk->os_error = os_error;
	switch (os_error) {
	case ECONNREFUSED:
	case ECONNRESET:
	case EPIPE:
		return LR_ERR_GONE;
	case ETIMEDOUT:
		return LR_ERR_TIMEOUT;
	default:
		return lr_problem_from_errno(NULL, os_error);
	}
}

/* Milliseconds of the next wait; 0 at the deadline. */
static unsigned slice(const struct lr_talk *talk)
{
	uint64_t now = lr_clock_ns();
	uint64_t left_ms;

	if (now >= talk->deadline_ns || is_given_up(talk))
		return 0;
	left_ms = (talk->deadline_ns - now + 999999) / 1000000;
	return left_ms < SLICE_MS ? (unsigned)left_ms : SLICE_MS;
}

static int wait_for(struct lr_talk *talk, short events)
{
	struct pollfd one = {.fd = talk->fd, .events = events};
	unsigned left_ms;

	while ((left_ms = slice(talk)) > 0) {
		int got = poll(&one, 1, (int)left_ms);

		if (got > 0)
			return LR_OK;
		if (got < 0 && errno != EINTR)
			return fail(talk, errno);
	}
	return fail(talk, ETIMEDOUT);
}

bool lr_talk_pause(const struct lr_talk *talk, unsigned pause_ms)
{
	while (pause_ms > 0) {
		unsigned left_ms = slice(talk);

		if (left_ms == 0)
			return false;
		if (left_ms > pause_ms)
			left_ms = pause_ms;
		poll(NULL, 0, (int)left_ms);
		pause_ms -= left_ms;
	}
	return slice(talk) > 0;
}

int lr_talk_address(const char *path, struct sockaddr_un *ret_address)
{
	size_t length = strlen(path);

	memset(ret_address, 0, sizeof(*ret_address));
	ret_address->sun_family = AF_UNIX;
	if (length == 0 || length >= sizeof(ret_address->sun_path))
		return LR_ERR_ARGUMENT;
	memcpy(ret_address->sun_path, path, length + 1);
	return LR_OK;
}

int lr_talk_connect(struct lr_talk *talk, const struct sockaddr_un *address)
{
	int code;

	talk->os_error = 0;
	talk->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (talk->fd < 0)
		return fail(talk, errno);
	while (connect(talk->fd, (const struct sockaddr *)address, sizeof(*address)) < 0) {
		int os_error = errno;

		/* It listens, but too many stand there already. */
		if (os_error == EAGAIN && lr_talk_pause(talk, 10))
			continue;
		if (os_error == EINTR)
			continue;
		code = fail(talk, os_error == EAGAIN ? ETIMEDOUT : os_error);
		lr_talk_close(talk);
		return code;
	}
	return LR_OK;
}

int lr_talk_send(struct lr_talk *talk, const void *data, size_t bytes, const int *fds,
		 unsigned fd_count)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(LR_TALK_FDS_MAX * sizeof(int))];
	} control;
	const char *at = data;

	while (bytes > 0) {
		struct iovec part = {.iov_base = (void *)(uintptr_t)at, .iov_len = bytes};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
		ssize_t sent;
		int code;

		if (fd_count > 0) {
			memset(&control, 0, sizeof(control));
			message.msg_control = &control;
			message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
			control.header.cmsg_level = SOL_SOCKET;
			control.header.cmsg_type = SCM_RIGHTS;
			control.header.cmsg_len = CMSG_LEN(fd_count * sizeof(int));
			memcpy(CMSG_DATA(&control.header), fds, fd_count * sizeof(int));
		}
		sent = sendmsg(talk->fd, &message, MSG_NOSIGNAL);
		if (sent > 0) {
			at += sent;
			bytes -= (size_t)sent;
			fd_count = 0;
			continue;
		}
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno != EAGAIN)
			return fail(talk, errno);
		code = wait_for(talk, POLLOUT);
		if (code < 0)
			return code;
	}
	return LR_OK;
}

/* Keep the first of the descriptors that came, if it is wanted, and close the others. */
static void take_fds(struct msghdr *message, int *keep)
{
	for (struct cmsghdr *at = CMSG_FIRSTHDR(message); at; at = CMSG_NXTHDR(message, at)) {
		size_t count = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(at) + i * sizeof(int), sizeof(int));
			if (keep && *keep < 0)
				*keep = fd;
			else
				close(fd);
		}
	}
}

int lr_talk_receive(struct lr_talk *talk, void *ret_data, size_t bytes, int *ret_fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(LR_TALK_FDS_MAX * sizeof(int))];
	} control;
	char *at = ret_data;

	if (ret_fd)
		*ret_fd = -1;
	while (bytes > 0) {
		struct iovec part = {.iov_base = at, .iov_len = bytes};
		struct msghdr message = {
			.msg_iov = &part,
			.msg_iovlen = 1,
			.msg_control = &control,
			.msg_controllen = sizeof(control),
		};
		ssize_t got = recvmsg(talk->fd, &message, MSG_CMSG_CLOEXEC);
		int code = LR_OK;

		if (got > 0) {
			take_fds(&message, ret_fd);
			at += got;
			bytes -= (size_t)got;
			continue;
		}
		if (got == 0)
			code = fail(talk, ECONNRESET);
		else if (errno == EAGAIN)
			code = wait_for(talk, POLLIN);
		else if (errno != EINTR)
			code = fail(talk, errno);
		if (code < 0) {
			if (ret_fd && *ret_fd >= 0) {
				close(*ret_fd);
				*ret_fd = -1;
			}
			return code;
		}
	}
	return LR_OK;
}

int lr_talk_skip(struct lr_talk *talk, uint64_t bytes)
{
	char room[4096];

	while (bytes > 0) {
		size_t part = bytes < sizeof(room) ? (size_t)bytes : sizeof(room);
		int code = lr_talk_receive(talk, room, part, NULL);

		if (code < 0)
			return code;
		bytes -= part;
	}
	return LR_OK;
}

void lr_talk_close(struct lr_talk *talk)
{
	if (talk->fd >= 0)
		close(talk->fd);
	talk->fd = -1;
}
