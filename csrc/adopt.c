#include "adopt.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* What its maker asked for: 0, or an errno. */
static int read_features(int fd, uint64_t *ret_features)
{
	char path[48], text[512], *line;
	int info;
	ssize_t got;

	snprintf(path, sizeof(path), "/proc/thread-self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return errno;
	got = read(info, text, sizeof(text) - 1);
	close(info);
	text[got > 0 ? got : 0] = '\0';
	/* "API:\taa:108:1ff": of the interface, features and requests. */
	line = strstr(text, "\nAPI:\t");
	if (!line || sscanf(line, "\nAPI:\taa:%" SCNx64 ":", ret_features) != 1)
		return EINVAL;
	return 0;
}

int lr_adopt(struct lr_uffd *uffd, int fd, bool takes_forks, struct lr_problem *ret_problem)
{
	uint64_t refused = LR_UFFD_FEATURE_SIGBUS | (takes_forks ? 0 : LR_UFFD_FEATURE_EVENT_FORK);
	uint64_t features = 0;

	memset(uffd, 0, sizeof(*uffd));
	uffd->fd = uffd->device = -1;
	if (!lr_uffd_is_one(fd) || read_features(fd, &features) != 0)
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	if (features & refused)
		return lr_problem_set(ret_problem, LR_ERR_UNSUPPORTED, 0, LR_NOWHERE, LR_NOWHERE);
	uffd->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (uffd->fd < 0)
		return lr_problem_from_errno(ret_problem, errno);
	uffd->is_adopted = true;
	/* Of another process's memory nothing can be moved. The top bit is the kernel's own. */
	uffd->features = features & 0x7fffffff & ~(LR_UFFD_FEATURE_POISON | LR_UFFD_FEATURE_MOVE);
	lr_uffd_look(uffd);
	lr_uffd_undo_blocking(uffd);
	return LR_OK;
}
