/*
 * The end of memory that nobody can serve any more, and whose owner cannot be ended because nobody
 * knows who it is: whoever touches what is missing gets SIGBUS, until the memory is gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uffd.h"
#include "warden.h"

#define UFFD_NAME "anon_inode:[userfaultfd]"

static char *put_text(char *to, const char *text)
{
	while (*text)
		*to++ = *text++;
	*to = '\0';
	return to;
}

void lr_warden_path(char *to, const char *prefix, int number, const char *suffix)
{
	char digits[12], *digit = digits + sizeof(digits) - 1;

	*digit = '\0';
	do
		*--digit = (char)('0' + number % 10);
	while (number /= 10);
	to = put_text(to, prefix);
	to = put_text(to, digit);
	put_text(to, suffix);
}

bool lr_warden_is_uffd(int fd)
{
	char path[40], link[sizeof(UFFD_NAME)];
	long bytes;

	if (fd < 0)
		return false;
	lr_warden_path(path, "/proc/self/fd/", fd, "");
	bytes = syscall(SYS_readlinkat, AT_FDCWD, path, link, sizeof(link));
	return bytes == sizeof(UFFD_NAME) - 1 && memcmp(link, UFFD_NAME, (size_t)bytes) == 0;
}

int lr_warden_table_end(void)
{
	static const char name[] = "\nFDSize:\t";
	char text[1024];
	long fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/status", O_RDONLY | O_CLOEXEC), got = 0;
	int end = 0;

	if (fd >= 0) {
		got = syscall(SYS_read, fd, text, sizeof(text) - 1);
		syscall(SYS_close, fd);
	}
	text[got > 0 ? got : 0] = '\0';
	for (const char *at = text; *at; at++) {
		if (strncmp(at, name, sizeof(name) - 1) != 0)
			continue;
		for (at += sizeof(name) - 1; *at >= '0' && *at <= '9' && end < 1 << 26; at++)
			end = end * 10 + (*at - '0');
		return end;
	}
	return 1 << 20; /* the table is full: all that may be in it as a rule */
}

static struct lr_uffd as_uffd(int fd)
{
	/* The kernel says itself where it does not know how. */
	return (struct lr_uffd){.fd = fd, .device = -1, .features = LR_UFFD_FEATURE_POISON};
}

/* Whoever waits asks again: by as much of the addresses as there are. */
static void wake_all(int fd)
{
	struct lr_uffd uffd = as_uffd(fd);
	uint64_t start = 1 << 20;

	for (int bits = 56; bits >= 31; bits--)
		if (lr_uffd_wake(&uffd, start, (1ull << bits) - start - (1 << 16)))
			return;
}

static bool is_in_grave(const struct lr_warden_self *self, int fd)
{
	for (uint32_t i = 0; i < self->grave_count; i++)
		if (self->graves[i] == fd)
			return true;
	return false;
}

/* So that another warden goes on with it, where this one is killed. */
static void note(struct lr_warden_self *self, int fd)
{
	for (uint32_t i = 0; i < LR_WARDEN_BURIED_MAX; i++) {
		uint64_t found = 0;

		if (atomic_compare_exchange_strong(&self->page->buried[i], &found, (uint64_t)fd + 1)
		    || found == (uint64_t)fd + 1)
			return;
	}
}

void lr_warden_bury(struct lr_warden_self *self, int fd)
{
	long flags = syscall(SYS_fcntl, fd, F_GETFL);

	if (is_in_grave(self, fd) || self->grave_count == LR_WARDEN_BURIED_MAX
	    || !lr_warden_is_uffd(fd))
		return;
	if (flags >= 0 && !(flags & O_NONBLOCK))
		syscall(SYS_fcntl, fd, F_SETFL, flags | O_NONBLOCK);
	self->graves[self->grave_count++] = fd;
	note(self, fd);
	wake_all(fd);
}

void lr_warden_bury_all(struct lr_warden_self *self)
{
	int end = lr_warden_table_end();

	for (int fd = 0; fd < end; fd++)
		if (syscall(SYS_fcntl, fd, F_GETFD) >= 0)
			lr_warden_bury(self, fd);
}

void lr_warden_close_others(struct lr_warden_self *self, int other)
{
	/* Closed, that would wake the second warden beside this one. */
	int end = lr_warden_table_end(), watched = atomic_load(&self->page->watched);

	for (int fd = 0; fd < end; fd++)
		if (syscall(SYS_fcntl, fd, F_GETFD) >= 0 && fd != other && fd != watched
		    && !is_in_grave(self, fd))
			syscall(SYS_close, fd);
}

static void poison(struct lr_warden_self *self, int fd, uint64_t address)
{
	/* The memory's pages may be huge ones. */
	const uint64_t sizes[] = {self->host_page, 2u << 20, 1u << 30};
	struct lr_uffd uffd = as_uffd(fd);

	for (int i = 0; i < 3; i++) {
		uint64_t start = address & ~(sizes[i] - 1);
		int64_t done = lr_uffd_poison(&uffd, start, sizes[i]);

		if (done > 0)
			return;
		/* It is there meanwhile, or moved, or gone, or is about to be: asked again, that
		 * shows. */
		if (done != -EINVAL) {
			if (done != -ENOTTY)
				lr_uffd_wake(&uffd, start, sizes[i]);
			return;
		}
	}
}

void lr_warden_answer_graves(struct lr_warden_self *self)
{
	/* (There may be more of them at the end.) */
	for (uint32_t i = 0; i < self->grave_count; i++) {
		struct lr_uffd uffd = as_uffd(self->graves[i]);
		struct lr_uffd_message messages[LR_UFFD_MESSAGES_MAX];
		int got = lr_uffd_read(&uffd, messages, LR_UFFD_MESSAGES_MAX);

		for (int n = 0; n < got; n++) {
			if (messages[n].kind == LR_UFFD_FORK)
				lr_warden_bury(self, messages[n].child);
			else if (messages[n].kind == LR_UFFD_FAULT)
				poison(self, self->graves[i], messages[n].start);
		}
	}
}

void lr_warden_forget_gone(struct lr_warden_self *self)
{
	for (uint32_t i = 0; i < self->grave_count;) {
		int fd = self->graves[i];
		struct lr_uffd uffd = as_uffd(fd);
		/* The other warden, or the maker, may have closed it: the table is theirs too. */
		bool is_there = lr_warden_is_uffd(fd);

		if (is_there && !lr_uffd_is_gone(&uffd, self->host_page)) {
			i++;
			continue;
		}
		for (uint32_t slot = 0; slot < LR_WARDEN_BURIED_MAX; slot++)
			if (atomic_load(&self->page->buried[slot]) == (uint64_t)fd + 1)
				atomic_store(&self->page->buried[slot], 0);
		self->graves[i] = self->graves[--self->grave_count];
		if (is_there)
			syscall(SYS_close, fd);
	}
}
