/*
 * A conversation over a unix stream socket that ends at a deadline, or when somebody gives it up:
 * nothing here waits for longer. Floor 1. One thread at a time; allocates nothing.
 */
#ifndef LR_TALK_H
#define LR_TALK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/un.h>

#include "error.h"

#define LR_TALK_FDS_MAX 2

struct lr_talk {
	int fd;               /* -1: not connected */
	uint64_t deadline_ns; /* of CLOCK_MONOTONIC */
	/* Somebody gives up: looked at every 100 ms. NULL: nobody may. */
	const _Atomic bool *is_given_up;
	int os_error; /* of the last failure, or 0 */
};

/* The address of a path: LR_ERR_ARGUMENT where it is empty or too long. */
int lr_talk_address(const char *path, struct sockaddr_un *ret_address);
/* These return LR_OK or: LR_ERR_TIMEOUT; LR_ERR_GONE (the other side closed, or does not listen);
 * LR_ERR_NOT_FOUND, LR_ERR_PERMISSION, LR_ERR_LIMIT, LR_ERR_SYSTEM. */
int lr_talk_connect(struct lr_talk *talk, const struct sockaddr_un *address);
/* `fds` go with the first byte. */
int lr_talk_send(struct lr_talk *talk, const void *data, size_t bytes, const int *fds,
		 unsigned fd_count);
/* Exactly so many bytes. ret_fd gets a descriptor that came with them, or -1; NULL: those that
 * come are closed. */
int lr_talk_receive(struct lr_talk *talk, void *ret_data, size_t bytes, int *ret_fd);
/* Receive and forget. */
int lr_talk_skip(struct lr_talk *talk, uint64_t bytes);
void lr_talk_close(struct lr_talk *talk);
/* Wait for some milliseconds: false at the deadline, or where it is given up. */
bool lr_talk_pause(const struct lr_talk *talk, unsigned pause_ms);

#endif
