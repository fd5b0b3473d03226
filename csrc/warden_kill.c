/* Ending tasks: those that are listed, by their pidfds, and all that descend from them. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "warden.h"

#define PIDS_MAX (2 * LR_WARDEN_TASKS_MAX)

/* As the kernel writes them. */
struct entry {
	uint64_t inode;
	int64_t offset;
	uint16_t bytes;
	uint8_t type;
	char name[];
};

static uint32_t add(struct lr_warden_self *self, uint32_t count, int32_t pid)
{
	if (pid <= 1 || pid == (int32_t)syscall(SYS_getpid))
		return count;
	for (uint32_t i = 0; i < count; i++)
		if (self->pids[i] == pid)
			return count;
	if (count < PIDS_MAX)
		self->pids[count++] = pid;
	return count;
}

/* Add the numbers that a file holds, with spaces between them. */
static uint32_t add_numbers(struct lr_warden_self *self, uint32_t count, const char *path)
{
	int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	char text[512];
	int32_t pid = 0;
	long got;

	if (fd < 0)
		return count;
	while ((got = syscall(SYS_read, fd, text, sizeof(text))) > 0) {
		for (long i = 0; i < got; i++) {
			if (text[i] >= '0' && text[i] <= '9') {
				pid = pid * 10 + (text[i] - '0');
			} else if (pid) {
				count = add(self, count, pid);
				pid = 0;
			}
		}
	}
	syscall(SYS_close, fd);
	return count;
}

/* Add a process's children: each thread has its own. */
static uint32_t add_children(struct lr_warden_self *self, uint32_t count, int32_t pid)
{
	char path[96];
	long got;
	int fd;

	lr_warden_path(path, "/proc/", pid, "/task");
	fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return count;
	while ((got = syscall(SYS_getdents64, fd, self->text, sizeof(self->text))) > 0) {
		for (long at = 0; at < got;) {
			struct entry *entry = (struct entry *)(self->text + at);
			int thread = 0;

			for (const char *digit = entry->name; *digit >= '0' && *digit <= '9';
			     digit++)
				thread = thread * 10 + (*digit - '0');
			if (thread) {
				lr_warden_path(path, "/proc/", pid, "/task/");
				lr_warden_path(path + strlen(path), "", thread, "/children");
				count = add_numbers(self, count, path);
			}
			at += entry->bytes;
		}
	}
	syscall(SYS_close, fd);
	return count;
}

static bool is_over(int pidfd)
{
	struct pollfd one = {.fd = pidfd, .events = POLLIN};
	struct timespec none = {0};

	return syscall(SYS_ppoll, &one, 1, &none, NULL, 8) > 0;
}

bool lr_warden_kill(struct lr_warden_self *self)
{
	uint32_t listed, count = 0;

	/* While the number is its: the others are found from those that are not over. */
	for (uint32_t i = 0; i < LR_WARDEN_TASKS_MAX; i++) {
		uint64_t task = atomic_load(&self->page->tasks[i]);

		if (task && !is_over((int)(uint32_t)task - 1))
			count = add(self, count, (int32_t)(task >> 32));
	}
	listed = count;
	for (uint32_t i = 0; i < count; i++)
		count = add_children(self, count, self->pids[i]);
	/* Those first that beget: what they have begotten since is found the next time. */
	for (uint32_t i = 0; i < LR_WARDEN_TASKS_MAX; i++) {
		uint64_t task = atomic_load(&self->page->tasks[i]);

		if (task)
			syscall(SYS_pidfd_send_signal, (int)(uint32_t)task - 1, SIGKILL, NULL, 0);
	}
	for (uint32_t i = listed; i < count; i++)
		syscall(SYS_kill, self->pids[i], SIGKILL);
	return count > 0;
}
