/*
 * How a test talks to a program: it connects to a socket of the file system, sends one line, and
 * gets one line, after which the program closes the connection. So the program holds none when it
 * is checkpointed.
 */
#ifndef ANSWERS_H
#define ANSWERS_H

#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static inline void answers_fail(const char *what)
{
	perror(what);
	exit(1);
}

/* A listening socket at a path. */
static inline int answers_listen(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	signal(SIGPIPE, SIG_IGN);
	if (fd < 0 || strlen(path) >= sizeof(address.sun_path))
		answers_fail("socket");
	strcpy(address.sun_path, path);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 8))
		answers_fail(path);
	return fd;
}

/* The next line that somebody sent, without its end; its connection, or -1 where there was none. */
static inline int answers_next(int fd, char *line, size_t room)
{
	int connection = accept(fd, NULL, NULL);
	size_t length = 0;

	while (connection >= 0 && length < room - 1) {
		ssize_t got = read(connection, line + length, room - 1 - length);

		if (got <= 0)
			break;
		length += (size_t)got;
		if (line[length - 1] == '\n') {
			line[length - 1] = '\0';
			return connection;
		}
	}
	if (connection >= 0)
		close(connection);
	return -1;
}

static inline void answers_give(int connection, const char *line)
{
	size_t length = strlen(line);

	for (size_t done = 0; done < length;) {
		ssize_t got = write(connection, line + done, length - done);

		if (got <= 0)
			break;
		done += (size_t)got;
	}
	close(connection);
}

#endif
