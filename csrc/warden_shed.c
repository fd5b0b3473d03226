/*
 * Giving back what was copied with the maker. Every page that stays is kept twice as soon as the
 * maker changes it, and it may have a great deal of memory. What is left: the code and the data of
 * programs and libraries, the warden's own room, and what belongs to the thread that it was.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "warden.h"

/* Around errno lies what the C library has for each thread, and the compiler's guard value. */
#define BEFORE_ERRNO (256u << 10)
#define AFTER_ERRNO  (64u << 10)
/* What the dynamic linker has for itself is in small pieces: it may be needed by a function's first
 * call, where the program was not bound when it was loaded. */
#define SMALL (128u << 10)

/* Which have memory of their own at every step. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED true
#else
#define IS_SANITIZED false
#endif

struct mapping {
	uint64_t start;
	uint64_t end;
	uint64_t inode;
	const char *rights; /* "rw-p" */
	const char *name;
};

static void unmap(uint64_t start, uint64_t end)
{
	if (start < end)
		syscall(SYS_munmap, start, end - start);
}

/* But for the part that is needed. */
static void unmap_around(const struct mapping *mapping, uint64_t from, uint64_t to)
{
	if (to <= mapping->start || from >= mapping->end) {
		unmap(mapping->start, mapping->end);
		return;
	}
	if (from > mapping->start)
		unmap(mapping->start, from);
	if (to < mapping->end)
		unmap(to, mapping->end);
}

static uint64_t parse_number(const char **at, unsigned base)
{
	uint64_t value = 0;

	for (;; ++*at) {
		unsigned digit = **at >= 'a' ? (unsigned)**at - 'a' + 10 : (unsigned)**at - '0';

		if (digit >= base)
			return value;
		value = value * base + digit;
	}
}

static const char *skip_field(const char *at)
{
	while (*at && *at != ' ')
		at++;
	while (*at == ' ')
		at++;
	return at;
}

/* "start-end perms offset device inode  name" */
static struct mapping parse(const char *line)
{
	struct mapping mapping;

	mapping.start = parse_number(&line, 16);
	line++;
	mapping.end = parse_number(&line, 16);
	mapping.rights = line + 1;
	line = skip_field(skip_field(skip_field(skip_field(line))));
	mapping.inode = parse_number(&line, 10);
	mapping.name = skip_field(line);
	return mapping;
}

static bool starts_with(const char *text, const char *prefix)
{
	while (*prefix)
		if (*text++ != *prefix++)
			return false;
	return true;
}

static bool is_heap_or_stack(const char *name)
{
	return starts_with(name, "[heap]") || starts_with(name, "[stack]")
	       || starts_with(name, "[anon");
}

static bool holds(const struct mapping *mapping, const void *address)
{
	return (uintptr_t)address >= mapping->start && (uintptr_t)address < mapping->end;
}

/* `*data_end` is where the last mapping of a file's data ended: what has no file and begins there
 * is the same file's, too. */
static void look_at(struct lr_warden_self *self, const char *line, uint64_t *data_end)
{
	struct mapping mapping = parse(line);
	uint64_t own = (uintptr_t)&errno, page = self->host_page;
	bool is_shared = mapping.rights[3] == 's', is_data = mapping.rights[1] == 'w';

	if (holds(&mapping, self->page) || holds(&mapping, self))
		return;
	/* Others' memory files would be there as long as this is. */
	if (mapping.inode && !is_shared) {
		*data_end = is_data ? mapping.end : 0;
		return;
	}
	if (!mapping.inode
	    && (mapping.name[0]
			? !is_heap_or_stack(mapping.name)
			: mapping.start == *data_end || mapping.end - mapping.start <= SMALL))
		return;
	unmap_around(&mapping, (own - BEFORE_ERRNO) & ~(page - 1),
		     (own + AFTER_ERRNO) & ~(page - 1));
}

void lr_warden_shed(struct lr_warden_self *self)
{
	uint64_t data_end = 0;
	size_t have = 0;
	long got;
	int fd;

	if (IS_SANITIZED)
		return;
	fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	/* (The kernel goes on behind the last address that it told of, whatever was unmapped.) */
	while ((got = syscall(SYS_read, fd, self->text + have, sizeof(self->text) - 1 - have))
	       > 0) {
		char *line = self->text, *end;

		have += (size_t)got;
		self->text[have] = '\0';
		while ((end = strchr(line, '\n'))) {
			*end = '\0';
			look_at(self, line, &data_end);
			line = end + 1;
		}
		have -= (size_t)(line - self->text);
		memmove(self->text, line, have);
	}
	syscall(SYS_close, fd);
}
