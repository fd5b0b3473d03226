#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "calls.h"

int lr_source_open(struct lr_source *source, const char *path, struct lr_problem *ret_problem)
{
	struct stat status;

	source->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (source->fd < 0)
		return lr_problem_from_errno(ret_problem, errno);
	if (fstat(source->fd, &status) < 0 || !S_ISREG(status.st_mode)) {
		int os_error = S_ISDIR(status.st_mode) ? EISDIR : ESPIPE;

		lr_source_close(source);
		return lr_problem_from_errno(ret_problem, os_error);
	}
	source->bytes = (uint64_t)status.st_size;
	return LR_OK;
}

void lr_source_close(struct lr_source *source)
{
	if (source->fd >= 0)
		close(source->fd);
	source->fd = -1;
}

int lr_source_read(const struct lr_source *source, uint64_t offset, void *ret_data, uint64_t bytes,
		   struct lr_problem *ret_problem)
{
	uint64_t done = 0;

	while (done < bytes) {
		ssize_t got = pread(source->fd, (uint8_t *)ret_data + done, bytes - done,
				    (off_t)(offset + done));

		if (got < 0 && errno == EINTR)
			continue;
		/* That there is no memory for the file's pages, or for our buffer's (EFAULT), as in
		 * a full cgroup, says nothing of the file. */
		if (got < 0 && (errno == ENOMEM || errno == EFAULT))
			return lr_problem_set(ret_problem, LR_ERR_NOMEM, errno, LR_NOWHERE,
					      offset + done);
		if (got < 0)
			return lr_problem_set(ret_problem, LR_ERR_IO, errno, LR_NOWHERE,
					      offset + done);
		if (got == 0)
			return lr_problem_set(ret_problem, LR_ERR_SHORT, 0, LR_NOWHERE,
					      offset + done);
		done += (uint64_t)got;
	}
	return LR_OK;
}

bool lr_source_is_cached(const struct lr_source *source, uint64_t offset, uint64_t bytes)
{
	uint64_t at[] = {offset, offset + bytes - 1};
	uint8_t byte;
	struct iovec to = {.iov_base = &byte, .iov_len = 1};

	for (int i = 0; i < 2; i++)
		if (lr_calls_preadv2(source->fd, &to, 1, (off_t)at[i], RWF_NOWAIT) < 0
		    && errno == EAGAIN)
			return false;
	return true;
}

bool lr_source_advise(const struct lr_source *source, uint64_t offset, uint64_t bytes)
{
	return posix_fadvise(source->fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED) == 0;
}
