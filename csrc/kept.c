#include "kept.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "pageset.h"

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3 */
#define MFD_NOEXEC_SEAL 8u
#endif

#define VERSION     1u
#define PAGE        4096u
#define TMPFS_MAGIC 0x01021994
#define SEALS       (F_SEAL_SHRINK | F_SEAL_GROW)
/* Of 1 ms: whoever had the lock may be about to end. */
#define LOCK_TRIES 200

static const char magic[8] = "LRSTATE";

struct layout {
	uint64_t journal;
	uint64_t states;
	uint64_t settled;
	uint64_t tables[2];
	uint64_t bytes;
};

static uint64_t round_up(uint64_t bytes)
{
	return (bytes + PAGE - 1) / PAGE * PAGE;
}

/* By the kind alone: nothing in the file has a say in it. */
static struct layout layout_of(const struct lr_kept_kind *kind)
{
	uint64_t table = round_up(sizeof(struct lr_kept_table)
				  + (uint64_t)kind->pieces_max * sizeof(struct lr_kept_piece));
	struct layout layout = {.journal = round_up(sizeof(struct lr_kept_header))};

	layout.states = layout.journal + LR_KEPT_JOURNAL_BYTES;
	layout.settled = layout.states + round_up(lr_pageset_states_bytes(kind->clusters));
	layout.tables[0] = layout.settled + round_up(lr_pageset_settled_bytes(kind->pages));
	layout.tables[1] = layout.tables[0] + table;
	layout.bytes = layout.tables[1] + table;
	return layout;
}

static int make_file(void)
{
	int fd = (int)syscall(SYS_memfd_create, "lazyrestore-state",
			      MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = (int)syscall(SYS_memfd_create, "lazyrestore-state",
				  MFD_CLOEXEC | MFD_ALLOW_SEALING);
	return fd;
}

int lr_kept_create(const struct lr_kept_kind *kind, int *ret_fd, struct lr_problem *ret_problem)
{
	struct layout layout = layout_of(kind);
	struct lr_kept_header header = {.version = VERSION, .kind = *kind};
	int fd = make_file();

	memcpy(header.magic, magic, sizeof(magic));
	/* (Seals need not be added to what nobody else has yet: but whoever gets it looks for
	 * them.) */
	if (fd < 0 || ftruncate(fd, (off_t)layout.bytes) < 0
	    || pwrite(fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header)
	    || fcntl(fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL) < 0) {
		int error = errno;

		if (fd >= 0)
			close(fd);
		return lr_problem_from_errno(ret_problem, error);
	}
	*ret_fd = fd;
	return LR_OK;
}

/* Its size stays what it is, and its pages can be had. */
static bool is_fit(int fd, uint64_t bytes)
{
	struct statfs file_system;
	struct stat file;
	int seals = fcntl(fd, F_GET_SEALS);

	return seals >= 0 && (seals & SEALS) == SEALS && fstat(fd, &file) == 0
	       && (uint64_t)file.st_size == bytes
	       /* Not of huge pages: there may be none when they are wanted. */
	       && fstatfs(fd, &file_system) == 0 && file_system.f_type == TMPFS_MAGIC;
}

/* An open file description of our own, locked: 0, or an errno. */
static int lock(struct lr_kept *kept, int fd)
{
	struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	struct timespec pause = {.tv_nsec = 1000000};
	char path[48];

	snprintf(path, sizeof(path), "/proc/thread-self/fd/%d", fd);
	/* Whose file it is may have a lease of it, which he need not give back soon. */
	kept->fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (kept->fd < 0)
		return errno;
	for (int tries = 0; fcntl(kept->fd, F_OFD_SETLK, &all) < 0; tries++) {
		if ((errno != EAGAIN && errno != EACCES) || tries == LOCK_TRIES)
			return errno;
		nanosleep(&pause, NULL);
	}
	return 0;
}

static void place(struct lr_kept *kept, const struct layout *layout)
{
	kept->header = (struct lr_kept_header *)kept->memory;
	kept->journal = kept->memory + layout->journal;
	kept->states = kept->memory + layout->states;
	kept->settled = kept->memory + layout->settled;
	for (int i = 0; i < 2; i++)
		kept->tables[i] = (struct lr_kept_table *)(kept->memory + layout->tables[i]);
}

/* Whether it says that it is for this. */
static bool is_for(const struct lr_kept *kept, const struct lr_kept_kind *kind)
{
	struct lr_kept_header found;

	memcpy(&found, kept->memory, sizeof(found));
	return memcmp(found.magic, magic, sizeof(magic)) == 0 && found.version == VERSION
	       && memcmp(&found.kind, kind, sizeof(*kind)) == 0;
}

int lr_kept_open(struct lr_kept *kept, int fd, const struct lr_kept_kind *kind,
		 struct lr_problem *ret_problem)
{
	struct layout layout = layout_of(kind);
	void *memory;
	int error;

	memset(kept, 0, sizeof(*kept));
	kept->fd = -1;
	kept->kind = *kind;
	if (!is_fit(fd, layout.bytes))
		return lr_problem_set(ret_problem, LR_ERR_STATE, 0, LR_NOWHERE, LR_NOWHERE);
	error = lock(kept, fd);
	if (error) {
		lr_kept_close(kept);
		if (error == EAGAIN || error == EACCES)
			return lr_problem_set(ret_problem, LR_ERR_BUSY, error, LR_NOWHERE,
					      LR_NOWHERE);
		return lr_problem_from_errno(ret_problem, error);
	}
	/* Not by the descriptor that has the lock: a mapping keeps that, too. */
	memory = mmap(NULL, layout.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED) {
		error = errno;
		lr_kept_close(kept);
		return lr_problem_from_errno(ret_problem, error);
	}
	kept->memory = memory;
	kept->bytes = layout.bytes;
	place(kept, &layout);
	if (!is_for(kept, kind)) {
		lr_kept_close(kept);
		return lr_problem_set(ret_problem, LR_ERR_STATE, 0, LR_NOWHERE, LR_NOWHERE);
	}
	/* So that the kernel can write to it whatever is going on. A wish. */
	mlock(kept->journal, LR_KEPT_JOURNAL_BYTES);
	return LR_OK;
}

void lr_kept_leave_lock(struct lr_kept *kept)
{
	close(kept->fd);
	kept->fd = -1;
}

void lr_kept_close(struct lr_kept *kept)
{
	if (kept->memory)
		munmap(kept->memory, kept->bytes);
	if (kept->fd >= 0)
		close(kept->fd);
	kept->memory = NULL;
	kept->fd = -1;
}

struct lr_kept_table *lr_kept_current(const struct lr_kept *kept)
{
	/* Acquire: partner of the release in lr_kept_publish. */
	uint32_t current = atomic_load_explicit(&kept->header->current, memory_order_acquire);

	return current == 1 || current == 2 ? kept->tables[current - 1] : NULL;
}

struct lr_kept_table *lr_kept_begin(const struct lr_kept *kept)
{
	return kept->tables[lr_kept_current(kept) == kept->tables[0]];
}

void lr_kept_publish(struct lr_kept *kept, const struct lr_kept_table *table)
{
	atomic_store_explicit(&kept->header->current, table == kept->tables[0] ? 1 : 2,
			      memory_order_release);
}
